"""What every request passes on its way in and every response on its way out, before and after any
route.

Request ids, API keys, budgets, time-outs, headers that browsers go by, `Server-Timing`, and the
record of the request that logs and metrics are given. Pure ASGI: Starlette's own base class for
middleware costs more than scoring an image.

Not here: one request's state (`passages.py`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.admission import Admission
from serve_app.api.answers import ErrorShape, error_response, own_shape
from serve_app.api.keys import ApiKeys
from serve_app.api.passages import AnsweredRequest, ClientTimes, Passage
from serve_app.errors import TaggerError
from serve_app.telemetry import record as observed

logger = logging.getLogger(__name__)

OPEN_PATHS = (
    "/",
    "/healthz",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
    "/openapi.json",
    "/docs",
)
OPEN_BELOW = ("/page/", "/docs/")
"""Answered without a key, where they are there at all: probes, and what a browser shows before it
could send one. Of `/` only what is read; `POST /` tags an image."""

Observer = Callable[[AnsweredRequest], None]


@dataclass(slots=True)
class Edge:
    """The outermost application, inside CORS.

    Attributes:
        app: Everything else.
        times: In which a client must send and read.
        admission: Budgets of this process; None for none.
        keys: That are known; None where none is asked for.
        shape_of: From a path to the shape of its errors.
        observers: Called with every finished request.
        returns_request_id: Whether the answer's `X-Request-Id` is set here; Serve sets it itself.
    """

    app: ASGIApp
    times: ClientTimes
    admission: Admission | None = None
    keys: ApiKeys | None = None
    shape_of: Callable[[str], ErrorShape] = field(default=lambda _: own_shape)
    observers: Sequence[Observer] = ()
    returns_request_id: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        passage = Passage(scope, receive, send, self.times, self.returns_request_id)
        passage.admission = self.admission
        observed.begin(passage.record)
        try:
            if not _is_open(scope):
                await self._let_in(passage, scope)
            await self.app(scope, passage.receive, passage.send)
        except TaggerError as error:
            if passage.status:  # too late for an answer
                logger.exception("%s %s failed", scope["method"], passage.route)
                passage.failed = True
                raise
            await error_response(error, self.shape_of(scope["path"]))(
                scope, passage.receive, passage.send
            )
        except OSError:
            raise  # the connection broke while the answer was sent
        except Exception:
            if passage.refusal is not None and not passage.status:  # what Starlette made of it
                await error_response(passage.refusal, self.shape_of(scope["path"]))(
                    scope, passage.receive, passage.send
                )
                return
            logger.exception("%s %s failed", scope["method"], passage.route)
            passage.failed = True
            raise
        finally:
            if passage.admitted is not None:
                passage.admitted.leave()
            self._tell(passage.answered())

    async def _let_in(self, passage: Passage, scope: Scope) -> None:
        """Find out whose the request is, and whether the process has room for it; raises
        `Unauthorized` or `Overloaded`.
        """
        address = scope.get("client")
        passage.record.client = str(address[0]) if address else ""
        if self.keys is not None:
            passage.record.key = self.keys.name_of(passage.headers)
            passage.record.client = f"key {passage.record.key}"
        if self.admission is not None:
            passage.admitted = await self.admission.enter(passage.record.client, passage.announced)

    def _tell(self, answered: AnsweredRequest) -> None:
        """Tell every observer; one that fails, as on a full disk, takes no answer with it."""
        for observer in self.observers:
            try:
                observer(answered)
            except Exception:
                logger.exception("a request could not be noted")


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] in ("GET", "HEAD", "OPTIONS") and (
        path in OPEN_PATHS or path.startswith(OPEN_BELOW)
    )

"""`LiveScorer`: the scorer of the newest valid configuration.

The scorer of a new configuration is built in the background: its labels are encoded, and then it
replaces the current scorer in one step. An invalid configuration is refused and the previous one
stays active, because Serve kills a replica whose `reconfigure` raises.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from serve_app.errors import ServiceError
from serve_app.graph import metrics
from serve_app.pipeline.scorer import Scorer
from serve_app.tagging.settings import TagSettings

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 2.0
"""Pause before the next attempt to encode labels that the TextEncoder could not encode."""


class LiveScorer:
    """Holds the current scorer and replaces it as a whole.

    Attributes:
        refused: Why the last configuration was refused; None if it was not.
    """

    def __init__(self, make_scorer: Callable[[TagSettings], Scorer]) -> None:
        """Start without a configuration.

        Args:
            make_scorer: Returns the scorer of a configuration, without banks.
        """
        self.refused: str | None = None
        self._make_scorer = make_scorer
        self._scorer: Scorer | None = None
        self._num_received = 0
        self._retry: asyncio.Task[None] | None = None
        self._refusals = metrics.config_refusals()

    @property
    def current(self) -> Scorer:
        """The scorer for new requests."""
        assert self._scorer is not None, "Serve calls reconfigure before it sends requests"
        return self._scorer

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply new `TagSettings`, or keep the previous ones if the new ones are invalid.

        If the labels cannot be encoded now, for example while the TextEncoder restarts, this is
        retried until it succeeds or a newer configuration arrives.

        Raises:
            Exception: The first configuration is invalid.
        """
        self._num_received += 1
        number = self._num_received
        try:
            settings = TagSettings.from_user_config(user_config)
            await self._apply(settings, number)
        except ServiceError:
            if self._scorer is None:
                raise
            self._retry = asyncio.create_task(self._apply_later(settings, number))
        except Exception as error:
            if self._scorer is None:
                raise
            self._refuse(error)

    async def _apply(self, settings: TagSettings, number: int) -> None:
        """Build the new scorer, and make it current unless a newer configuration has arrived."""
        scorer = self._make_scorer(settings)
        await scorer.every_registered(self._scorer.banks if self._scorer else [])
        if self._is_newest(number):
            self._scorer = scorer
            self.refused = None

    async def _apply_later(self, settings: TagSettings, number: int) -> None:
        while self._is_newest(number):
            logger.warning("the new labels cannot be encoded yet; retrying")
            await asyncio.sleep(RETRY_PAUSE_S)
            if not self._is_newest(number):
                return
            try:
                await self._apply(settings, number)
            except ServiceError:
                continue
            except Exception as error:
                if self._is_newest(number):
                    self._refuse(error)
            return

    def _is_newest(self, number: int) -> bool:
        return number == self._num_received

    def _refuse(self, error: Exception) -> None:
        self.refused = str(error)
        self._refusals.inc()
        logger.error("refused the new configuration; the previous one stays active: %s", error)

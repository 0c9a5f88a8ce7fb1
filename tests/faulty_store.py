"""A real S3 endpoint that misbehaves as real ones do: some requests are refused with SlowDown, some
connections are cut.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.object_store import KEY, REGION, SECRET, Bucket

SLOW_DOWN = (
    b"<?xml version='1.0' encoding='UTF-8'?>"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultyStore:
    """moto behind faults that begin when `refused` and `cut` are set to parts of the requests."""

    def __init__(self, seed: int) -> None:
        self._inner = DomainDispatcherApplication(create_backend_app)
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self.refused = self.cut = 0.0
        self.counts = Counter[str]()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        with self._lock:
            at = self._chance.random()
            kind = (
                "refused"
                if at < self.refused
                else "cut"
                if at < self.refused + self.cut
                else "served"
            )
            self.counts[kind] += 1
        if kind == "refused":
            start_response(
                "503 Slow Down",
                [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))],
            )
            return [SLOW_DOWN]
        if kind == "cut" and environ["REQUEST_METHOD"] == "GET":
            whole = b"".join(self._inner(environ, start_response))
            return [
                whole[: len(whole) // 2]
            ]  # and then the connection ends, short of its Content-Length
        return self._inner(environ, start_response)  # type: ignore[no-any-return]


@contextmanager
def faulty_bucket(name: str = "faulty", seed: int = 0) -> Iterator[tuple[Bucket, FaultyStore]]:
    """Start such an endpoint with an empty bucket, and end it."""
    store = FaultyStore(seed)
    server = make_server("127.0.0.1", 0, store, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        session = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": REGION}
        boto3.client("s3", endpoint_url=endpoint, **session).create_bucket(Bucket=name)
        yield Bucket(name, endpoint), store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

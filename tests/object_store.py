"""A real S3 endpoint for tests: moto's server in this process, and a bucket."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
import pyarrow.fs
from moto.server import ThreadedMotoServer

from serve_app.batch.storage import Storage

KEY = "test-key"
SECRET = "test-secret"
REGION = "us-east-1"


@dataclass(frozen=True)
class Bucket:
    """A bucket of the endpoint, and how it is reached."""

    name: str
    endpoint: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        return (
            ("endpoint", self.endpoint),
            ("access_key_id", KEY),
            ("secret_access_key", SECRET),
            ("region", REGION),
        )

    @property
    def storage(self) -> Storage:
        return Storage(self.options)

    def arrow(self) -> pyarrow.fs.FileSystem:
        """Return the endpoint as a reader of ours would open it."""
        return pyarrow.fs.S3FileSystem(
            endpoint_override=self.endpoint, access_key=KEY, secret_key=SECRET, region=REGION
        )


_numbers = itertools.count(1)


@contextmanager
def bucket() -> Iterator[Bucket]:
    """Start an endpoint with an empty bucket, and end it.

    The bucket has a name of its own: every endpoint of a process shows the same buckets.
    """
    name = f"images-{next(_numbers)}"
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        session = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": REGION}
        boto3.client("s3", endpoint_url=endpoint, **session).create_bucket(Bucket=name)
        yield Bucket(name, endpoint)
    finally:
        server.stop()

"""A Ray cluster in this process for the jobs of these tests, and an S3 endpoint."""

from collections.abc import Iterator

import pytest

from serve_app.processes.private_ray import private_folder, private_ray
from tests.object_store import Bucket, bucket


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """Two CPUs, as the machine of CI has."""
    with (
        private_folder() as folder,
        private_ray(folder, num_cpus=2, object_store_memory=500 * 2**20),
    ):
        yield


@pytest.fixture(scope="package")
def s3() -> Iterator[Bucket]:
    """An endpoint with a bucket."""
    with bucket() as found:
        yield found

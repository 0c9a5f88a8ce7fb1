"""A Ray cluster in this process for the jobs of these tests, and an S3 endpoint."""

from collections.abc import Iterator

import pytest
import ray

from tests.object_store import Bucket, bucket


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """Two CPUs, as the machine of CI has."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=500 * 2**20)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="package")
def s3() -> Iterator[Bucket]:
    """An endpoint with a bucket."""
    with bucket() as found:
        yield found

"""Opens object stores with obstore, with the same settings for batch jobs and tag banks.

Credentials and endpoints come from the environment variables of each cloud's own tools, or from
options with obstore's names, such as `endpoint` and `region`.

Not here: reading and writing objects (`batch/storage.py`, `tagging/bank_store.py`).
"""

import functools
import os
from importlib.util import find_spec
from typing import Any

from obstore.store import from_url

TIMEOUT = "60s"
MAX_RETRIES = 8
"""Default number of retries of a request that fails temporarily; obstore retries it."""

Options = tuple[tuple[str, str], ...]
"""Names and values, as a hashable tuple so that each store is opened only once."""


@functools.cache
def open_store(url: str, options: Options = (), max_retries: int = MAX_RETRIES) -> Any:
    """Return the store of a bucket or prefix, which is cached because it keeps connections.

    Args:
        url: URL such as `s3://bucket` or `gs://bucket/prefix`.
        options: obstore's options, in addition to the environment.
        max_retries: Maximum number of retries of one request.

    Raises:
        obstore.exceptions.BaseError: The URL or an option is not valid.
        ImportError: The credentials need boto3, which cannot be imported.
    """
    config = dict(options)
    if url.startswith("file://"):
        return from_url(url, mkdir=True)
    extra: dict[str, Any] = {}
    if url.startswith("s3") and _needs_boto3(config):
        # imported here, because boto3 is an optional package that only profiles need
        from obstore.auth.boto3 import Boto3CredentialProvider

        extra["credential_provider"] = Boto3CredentialProvider()
    return from_url(
        url,
        config=config or None,
        client_options={"timeout": TIMEOUT, "allow_http": _endpoint(config).startswith("http://")},
        retry_config={"max_retries": max_retries},
        **extra,
    )


def _endpoint(config: dict[str, str]) -> str:
    environment = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    return config.get("endpoint") or environment or ""


def _needs_boto3(config: dict[str, str]) -> bool:
    """Return whether the credentials come from a profile, which only boto3 can read."""
    return (
        "AWS_PROFILE" in os.environ
        and "access_key_id" not in config
        and find_spec("boto3") is not None
    )

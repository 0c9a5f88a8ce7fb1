"""Opens object stores through obstore, with the same settings for batch jobs and tag banks.

Credentials and endpoints come from the environment, as each cloud's own tools read them, or from
options with obstore's names, such as `endpoint` and `region`.

Not here: what is read and written there (`batch/storage.py`, `tagging/bank_store.py`).
"""

import functools
import os
from importlib.util import find_spec
from typing import Any

from obstore.store import from_url

TIMEOUT = "60s"
MAX_RETRIES = 8
"""Default number of retries of a request that is refused for now or breaks; obstore makes them."""

Options = tuple[tuple[str, str], ...]
"""Names and values, hashable so that a store is opened once."""


@functools.cache
def open_store(url: str, options: Options = (), max_retries: int = MAX_RETRIES) -> Any:
    """Return the store of a bucket or prefix; one a process, because it keeps connections.

    Args:
        url: Such as `s3://bucket` or `gs://bucket/prefix`.
        options: obstore's options beside the environment.
        max_retries: Of one request.

    Raises:
        obstore.exceptions.BaseError: The URL or an option is not valid.
        ImportError: The credentials need boto3, which cannot be imported.
    """
    config = dict(options)
    if url.startswith("file://"):
        return from_url(url, mkdir=True)
    further: dict[str, Any] = {}
    if url.startswith("s3") and _wants_boto3(config):
        # here, because boto3 is not a dependency: only profiles need it
        from obstore.auth.boto3 import Boto3CredentialProvider

        further["credential_provider"] = Boto3CredentialProvider()
    return from_url(
        url,
        config=config or None,
        client_options={"timeout": TIMEOUT, "allow_http": _endpoint(config).startswith("http://")},
        retry_config={"max_retries": max_retries},
        **further,
    )


def _endpoint(config: dict[str, str]) -> str:
    environment = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    return config.get("endpoint") or environment or ""


def _wants_boto3(config: dict[str, str]) -> bool:
    """Return whether the credentials are those of a profile, which only boto3 can read."""
    return (
        "AWS_PROFILE" in os.environ
        and "access_key_id" not in config
        and find_spec("boto3") is not None
    )

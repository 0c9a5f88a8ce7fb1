"""Locations in object storage, each written as one URI with all its options.

    s3://bucket/prefix?region=eu-west-1&endpoint=http://minio:9000
    s3://KEY:SECRET@bucket/prefix
    gs://bucket/prefix
    abfss://container@account.dfs.core.windows.net/prefix

Options in the query have obstore's names. The names of `pyarrow.fs`, which earlier versions used,
are also accepted: `endpoint_override` with `scheme`, and `anonymous@` before a bucket.
"""

import os
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import httpx

from serve_app.storage.opening import Options

AWS = "https://s3.amazonaws.com"
REGION_HEADER = "x-amz-bucket-region"
REGION_TIMEOUT_S = 5.0
_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_UNUSED = ("allow_bucket_creation", "allow_bucket_deletion", "retry_limit_seconds")
"""Ignored options of pyarrow: this package neither creates nor deletes buckets."""


class Location(NamedTuple):
    """A prefix of an object store: its URL without options and secrets, and obstore's options."""

    url: str
    options: Options


def parse_location(uri: str, aws: str = AWS) -> Location:
    """Return the location of a URI.

    Args:
        uri: A URI in one of the forms above.
        aws: Endpoint that returns the region of a bucket.
    """
    parts = urlsplit(uri)
    options = {name: value for name, value in parse_qsl(parts.query) if name not in _UNUSED}
    _translate_endpoint(options)
    netloc = parts.netloc
    if parts.scheme in ("s3", "s3a", "gs"):
        netloc = netloc.rpartition("@")[2]
        options |= _user_options(parts)
    if parts.scheme in ("s3", "s3a") and _needs_region(options):
        region = bucket_region(netloc, aws)
        options |= {"region": region} if region else {}
    path = parts.path.rstrip("/")
    return Location(f"{parts.scheme}://{netloc}{path}", tuple(options.items()))


def shown_location(uri: str) -> str:
    """Return a URI without its user and query, which may contain secrets."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def bucket_region(bucket: str, aws: str = AWS) -> str | None:
    """Return the region of a bucket, which AWS publishes; None if AWS does not respond."""
    try:
        response = httpx.head(f"{aws}/{bucket}", timeout=REGION_TIMEOUT_S)
    except httpx.HTTPError:
        return None  # obstore raises a more specific error when the bucket is used
    region: str | None = response.headers.get(REGION_HEADER)
    return region


def _translate_endpoint(options: dict[str, str]) -> None:
    """Turn pyarrow's `scheme` and `endpoint_override` into obstore's `endpoint`."""
    scheme = options.pop("scheme", "https")
    host = options.pop("endpoint_override", None)
    if host:
        options["endpoint"] = host if "://" in host else f"{scheme}://{host}"


def _user_options(parts: SplitResult) -> dict[str, str]:
    """Return the options that are written before a bucket as user and password."""
    if not parts.username:
        return {}
    if parts.username == "anonymous":
        return {"skip_signature": "true"}
    return {
        "access_key_id": unquote(parts.username),
        "secret_access_key": unquote(parts.password or ""),
    }


def _needs_region(options: dict[str, str]) -> bool:
    """Return whether a bucket is on AWS and neither options nor environment name its region."""
    in_environment = any(
        os.environ.get(name) for name in (*_REGION_VARIABLES, *_ENDPOINT_VARIABLES)
    )
    return not in_environment and "region" not in options and "endpoint" not in options

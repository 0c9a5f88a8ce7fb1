"""Lists a bucket in which some keys cannot be requested through obstore, such as `a//b`, `a/../b` or one with a newline.

obstore ends a listing at the first such key, together with the page of good ones around it. pyarrow's
own S3 client lists them all, but without ETags, so those are asked for one by one.
"""

import itertools
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serve_app.errors import ConfigError
from serve_app.picture_files import Skipped

logger = logging.getLogger(__name__)

INVALID_KEY = "InvalidPathError"
"""Name of obstore's error for a key that it cannot handle."""
REQUESTS = 16
"""Requests for ETags that run at the same time."""
WINDOW = 1000
"""Keys whose ETags are requested before the first of them is yielded."""
_CONTROL = re.compile("[\x00-\x1f\x7f]")

Entry = tuple[str, int, str | None]
"""Key, size and ETag."""


def list_around(store: Any, root: str, prefix: str, after: str, skipped: Skipped, error: Exception) -> Iterator[Entry]:
    """Yield the objects below a prefix that can be requested, and count the others.

    Args:
        store: obstore's store of the bucket.
        root: URL of the bucket.
        prefix: Of the listing, without a slash at its end.
        after: The last key that was listed already; only later ones are yielded.
        skipped: Counts keys that cannot be requested.
        error: What obstore said.

    Raises:
        ConfigError: The bucket is not on S3, where there is no second client.
    """
    if not root.startswith("s3"):
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"{root}/{prefix} cannot be listed: it has an object with an unusable key. Rename or delete it. {said}"
        ) from error
    logger.warning("%s/%s has keys that cannot be requested; the listing needs one request for each object", root, prefix)
    listed = _keys_of_s3(store, root.partition("://")[2], prefix)
    left = ((key, size) for key, size in listed if _order(key) > _order(after))
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="etags") as threads:
        while window := list(itertools.islice(left, WINDOW)):
            good = [(key, size) for key, size in window if is_usable(key)]
            skipped.keys += [key for key, _ in window if not is_usable(key)]
            for entry in threads.map(lambda one: _entry_of(store, *one), good):
                if entry is not None:
                    yield entry


def is_usable(key: str) -> bool:
    """Return whether obstore can request a key. Source: `object_store`'s `path/parts.rs`."""
    return not any(part in ("", ".", "..") for part in key.split("/")) and _CONTROL.search(key) is None


def _entry_of(store: Any, key: str, size: int) -> Entry | None:
    """Return an object's entry; None if it has been deleted since it was listed."""
    import obstore

    try:
        entry = obstore.head(store, key)
    except FileNotFoundError:
        return None
    except Exception as error:
        if type(error).__name__ != "PermissionDeniedError":
            raise
        return key, size, None  # reading it is an error of its own
    return key, entry["size"], entry["e_tag"]


def _keys_of_s3(store: Any, bucket: str, prefix: str) -> list[tuple[str, int]]:
    """Return all keys below a prefix and the sizes of their objects, sorted as S3 sorts them."""
    import pyarrow.fs

    config = dict(store.config)
    if store.credential_provider is not None:
        config |= store.credential_provider()
    arrow = pyarrow.fs.S3FileSystem(
        access_key=config.get("access_key_id"),
        secret_key=config.get("secret_access_key"),
        session_token=config.get("token") or config.get("session_token"),
        anonymous=str(config.get("skip_signature")).lower() == "true",
        region=config.get("region"),
        endpoint_override=config.get("endpoint"),
    )
    selector = pyarrow.fs.FileSelector(f"{bucket}/{prefix}".rstrip("/"), recursive=True)
    found = arrow.get_file_info(selector)
    keys = [(one.path[len(bucket) + 1 :], one.size) for one in found if one.type == pyarrow.fs.FileType.File]
    return sorted(keys, key=lambda one: _order(one[0]))


def _order(key: str) -> bytes:
    return key.encode(errors="replace")

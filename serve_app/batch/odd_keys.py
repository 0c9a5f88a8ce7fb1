"""Lists a bucket in which some keys cannot be requested through obstore, such as `a//b`, `a/../b`
or one with a newline.

obstore ends a listing at the first such key, together with the page of good ones around it.
pyarrow's own S3 client lists them all, but without ETags, so those are requested one by one for the
keys around the failure. obstore then continues after them, until the next such key.

pyarrow lists everything below a prefix at once and cannot start at a key. So the listing is made
once, at the first failure, and the keys that are left, some 150 bytes each, stay in memory.

`gs://` and `az://` have no second client here. pyarrow's classes for them take other credentials
than obstore finds: `GcsFileSystem` neither a service account's key as text nor a token without its
time of expiry, `AzureFileSystem` neither a workload identity's token nor a SAS token from a file. A
listing with someone else's credentials could miss objects without an error, so these buckets are
refused.
"""

import logging
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serve_app.errors import ConfigError
from serve_app.untrusted.image_files import Skipped

logger = logging.getLogger(__name__)

INVALID_KEY = "InvalidPathError"
"""Name of obstore's error for a key that it cannot handle."""
REQUESTS = 16
"""Requests for ETags that run at the same time."""
WINDOW = 1000
"""Keys whose ETags are requested at a failure; S3 lists as many in one page."""
_CONTROL = re.compile("[\x00-\x1f\x7f]")

Entry = tuple[str, int, str | None]
"""Key, size and ETag."""


def is_odd_key(error: Exception) -> bool:
    """Return whether obstore ended a listing because of a key that it cannot handle."""
    return type(error).__name__ == INVALID_KEY


def list_after(store: Any, prefix: str, after: str) -> Iterator[Entry]:
    """Yield the objects below a prefix whose keys are greater than `after`; all of them if it is
    empty.
    """
    import obstore

    for page in obstore.list(store, prefix=prefix or None, offset=after or None, chunk_size=1000):
        for entry in page:
            yield entry["path"], entry["size"], entry["e_tag"]


def list_around(
    store: Any, root: str, prefix: str, after: str, skipped: Skipped, error: Exception
) -> Iterator[Entry]:
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
    logger.warning(
        "%s/%s has keys that cannot be requested; the objects near them need a request each",
        root,
        prefix,
    )
    left = deque(_keys_of_s3(store, root.partition("://")[2], prefix, after))
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="etags") as threads:
        while window := _next_window(left):
            good = [(key, size) for key, size in window if is_usable(key)]
            for key, _ in window:
                if not is_usable(key):
                    skipped.keys.add(key)
            for entry in threads.map(lambda one: _entry_of(store, *one), good):
                if entry is not None:
                    yield entry

            last = window[-1][0]
            if not is_usable(last):  # then it is the last of all
                return
            try:
                for entry in list_after(store, prefix, last):
                    yield entry
                    last = entry[0]
                return
            except Exception as failure:
                if not is_odd_key(failure):
                    raise
            while left and _order(left[0][0]) <= _order(last):
                left.popleft()


def _next_window(left: deque[tuple[str, int]]) -> list[tuple[str, int]]:
    """Take the next keys, up to one after which obstore can continue, or up to the end."""
    window: list[tuple[str, int]] = []
    while left and (len(window) < WINDOW or not is_usable(window[-1][0])):
        window.append(left.popleft())
    return window


def is_usable(key: str) -> bool:
    """Return whether obstore can request a key. Source: `object_store`'s `path/parts.rs`."""
    return (
        not any(part in ("", ".", "..") for part in key.split("/")) and _CONTROL.search(key) is None
    )


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


def _keys_of_s3(store: Any, bucket: str, prefix: str, after: str) -> list[tuple[str, int]]:
    """Return the keys below a prefix that are greater than `after`, and the sizes of their objects,
    in S3's order.
    """
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
    keys = (
        (one.path[len(bucket) + 1 :], one.size)
        for one in found
        if one.type == pyarrow.fs.FileType.File
    )
    return sorted(
        (one for one in keys if _order(one[0]) > _order(after)), key=lambda one: _order(one[0])
    )


def _order(key: str) -> bytes:
    return key.encode(errors="replace")

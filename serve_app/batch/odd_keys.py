"""Lists a bucket in which obstore cannot request some keys, such as `a//b` or `a/../b`.

obstore ends a listing at the first such key, together with the page of good ones around it.
pyarrow's own S3 client lists them all, but without ETags, so those are requested one by one for the
keys around the failure. obstore then continues after them, until the next such key.

pyarrow lists everything below a prefix at once and cannot start at a key. So it lists once, at the
first failure, and the remaining keys stay in memory, about 150 bytes each.

Buckets on `gs://` and `az://` are refused. pyarrow's clients for them do not accept the credentials
that obstore finds: `GcsFileSystem` takes neither the key of a service account as text nor a token
without its time of expiry, and `AzureFileSystem` takes neither the token of a workload identity nor
a SAS token from a file. A listing with other credentials could miss objects without an error.
"""

import logging
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
import pyarrow.fs

from serve_app.errors import ConfigError
from serve_app.untrusted.image_names import Skipped

logger = logging.getLogger(__name__)

INVALID_KEY = "InvalidPathError"
"""Name of obstore's error for a key that it cannot handle."""
CONCURRENCY = 16
"""Number of requests for ETags that run at the same time."""
WINDOW = 1000
"""Number of keys whose ETags are requested after a failure; a page of S3 has as many."""
_CONTROL = re.compile("[\x00-\x1f\x7f]")

Entry = tuple[str, int, str | None]
"""Key, size and ETag."""


def is_odd_key(error: Exception) -> bool:
    """Return whether obstore ended a listing because of a key that it cannot handle."""
    return type(error).__name__ == INVALID_KEY


def list_after(store: Any, prefix: str, after: str) -> Iterator[Entry]:
    """Yield the objects below a prefix whose keys are greater than `after`; all if it is empty."""
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
        prefix: Prefix of the listing, without a slash at its end.
        after: The last key that was listed; only later ones are yielded.
        skipped: Counts keys that cannot be requested.
        error: The error of obstore.

    Raises:
        ConfigError: The bucket is not on S3, where there is no second client.
    """
    if not root.startswith("s3"):
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{root}/{prefix} cannot be listed: it has an object with an unusable key. "
            f"Rename or delete it. {reason}"
        ) from error
    logger.warning(
        "%s/%s has keys that cannot be requested; the objects near them need a request each",
        root,
        prefix,
    )
    left = deque(_keys_of_s3(store, root.partition("://")[2], prefix, after))
    with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="etags") as threads:
        while window := _next_window(left):
            usable = _count_unusable(window, skipped)
            entries = threads.map(lambda one: _entry_of(store, *one), usable)
            yield from (entry for entry in entries if entry is not None)

            last = window[-1][0]
            if not is_usable(last):  # a window ends with such a key only at the end of the listing
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
    """Take the next keys, up to a key after which obstore can continue."""
    window: list[tuple[str, int]] = []
    while left and (len(window) < WINDOW or not is_usable(window[-1][0])):
        window.append(left.popleft())
    return window


def _count_unusable(window: list[tuple[str, int]], skipped: Skipped) -> list[tuple[str, int]]:
    """Count the keys that cannot be requested, and return the others with their sizes."""
    for key, _ in window:
        if not is_usable(key):
            skipped.keys.add(key)
    return [(key, size) for key, size in window if is_usable(key)]


def is_usable(key: str) -> bool:
    """Return whether obstore can request a key. Source: `object_store`'s `path/parts.rs`."""
    has_odd_part = any(part in ("", ".", "..") for part in key.split("/"))
    return not has_odd_part and _CONTROL.search(key) is None


def _entry_of(store: Any, key: str, size: int) -> Entry | None:
    """Return an object's entry; None if it has been deleted since it was listed."""
    try:
        entry = obstore.head(store, key)
    except FileNotFoundError:
        return None
    except Exception as error:
        if type(error).__name__ != "PermissionDeniedError":
            raise
        return key, size, None  # the object gets an error row when it is read
    return key, entry["size"], entry["e_tag"]


def _keys_of_s3(store: Any, bucket: str, prefix: str, after: str) -> list[tuple[str, int]]:
    """Return the keys below a prefix that are greater than `after`, and the sizes of the objects.

    They are in the order of S3.
    """
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
    infos = arrow.get_file_info(selector)
    keys = [
        (info.path[len(bucket) + 1 :], info.size)
        for info in infos
        if info.type == pyarrow.fs.FileType.File
    ]
    later = [one for one in keys if _order(one[0]) > _order(after)]
    return sorted(later, key=lambda one: _order(one[0]))


def _order(key: str) -> bytes:
    """Return the bytes by which S3 sorts keys."""
    return key.encode(errors="replace")

"""The images in tar files, as inputs of a job."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa

from serve_app.batch.damage import DamagedFiles
from serve_app.batch.input_rows import DamagedTable
from serve_app.batch.input_tables import own_table
from serve_app.batch.storage import Storage, Stored
from serve_app.batch.store_errors import ObjectUnreadable, StoreFailed
from serve_app.batch.table_rows import ROWS
from serve_app.batch.tar_members import Damage, Member, read_members
from serve_app.batch.urls import shown_url
from serve_app.errors import ConfigError
from serve_app.terminal.printable import printable
from serve_app.untrusted.image_names import is_image, is_litter

logger = logging.getLogger(__name__)

LITTER = "hidden or system file"


def shard_inputs(storage: Storage, files: Iterable[Stored], alone: bool) -> Iterator[pa.Table]:
    """Yield the images of tar files; only headers are read, if images are larger than a buffer.

    Images before the damage of a tar file are inputs; the rest of the file is one input with an
    error.

    Args:
        storage: How they are read.
        files: The tar files.
        alone: Whether INPUT is a single tar file; see `DamagedFiles`.
    """
    damaged = DamagedFiles(alone)
    for found in files:
        skipped = Counter[str]()
        images = _images_of(storage, found, skipped, damaged)
        while page := list(islice(images, ROWS)):
            damaged.readable += 1
            uris = [f"{shown_url(found.url)}#{printable(member.name)}" for member in page]
            sizes = [member.size for member in page]
            offsets = [member.offset for member in page]
            yield own_table(uris, [found.etag] * len(page), sizes, [found.url] * len(page), offsets)
        if skipped:
            counts = ", ".join(f"{count:,} ({reason})" for reason, count in skipped.most_common())
            logger.warning("%s: members that are left out: %s", shown_url(found.url), counts)
    yield from damaged.rows("member")


def _images_of(
    storage: Storage, found: Stored, skipped: Counter[str], damaged: DamagedFiles
) -> Iterator[Member]:
    """Yield the images of one tar file, and record what is skipped and damaged.

    Raises:
        ConfigError: The store does not respond.
    """
    try:
        with storage.open(found.url) as file:
            for member in read_members(file, found.size):
                if isinstance(member, Damage):
                    damaged.add(found, _error_of(member, found), member.offset)
                    continue
                if not is_image(member.name):
                    continue
                reason = LITTER if is_litter(member.name) else member.skipped
                if reason:
                    skipped[reason] += 1
                else:
                    yield member
    except StoreFailed as error:
        raise ConfigError(f"{shown_url(found.url)} cannot be read: {error}.") from error
    except ObjectUnreadable as error:
        damaged.add(found, error)
    except OSError as error:
        damaged.add(found, DamagedTable(f"{shown_url(found.url)} cannot be read: {error}."))


def _error_of(damage: Damage, found: Stored) -> DamagedTable:
    reason = f"{damage.why}, at byte {damage.offset:,}"
    if not damage.offset:
        reason = f"it is not an uncompressed tar file: {damage.why}"
    return DamagedTable(f"{shown_url(found.url)}: {reason}.")

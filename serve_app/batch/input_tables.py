"""The columns that every kind of input has; `inputs.py` documents them."""

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

OWN = pa.schema(
    [
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("file", pa.string()),
        ("offset", pa.int64()),
    ]
)
DAMAGED = -1
"""`offset` of an input that stands for a damaged file."""
MALFORMED = -2
"""`offset` of an input that stands for a row of a manifest that cannot be read."""
Kind = Literal["object", "member", "row"]
"""How one input is read: as an object, as a member of a tar file, as a row of a table."""


def own_table(
    uris: list[str],
    etags: list[str | None],
    sizes: list[Any],
    files: list[str],
    offsets: Sequence[int | None] | None,
) -> pa.Table:
    """Return a table of inputs without other columns.

    Args:
        uris: What the output calls the images.
        etags: Their ETags.
        sizes: Their sizes in bytes.
        files: URLs of the objects that are read.
        offsets: Where the images are in those objects; None if each has an object of its own.
    """
    starts: list[Any] = [None] * len(uris) if offsets is None else list(offsets)
    return pa.table([uris, etags, sizes, files, starts], schema=OWN)

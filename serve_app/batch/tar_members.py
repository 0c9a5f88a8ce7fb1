"""Finds the members of an untrusted tar file by their headers.

Python's `tarfile` reads whole extended headers into memory, follows the maps of sparse members,
keeps an object for every member, and raises at the first damage. This reader holds one header at a
time, yields the members before the damage, and reports where the damage is.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED_BYTES = 2**20
"""Maximum size of an extended header (PAX, or a GNU tar long name).

A member with a longer one is skipped.
"""
MAX_SPARSE_BLOCKS = 10_000
"""Maximum number of headers that continue the map of one sparse member."""
MAX_NAME_BYTES = 4096
"""Maximum length of a member's name; Linux paths are no longer than this."""
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_PASSED_OVER = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_WITHOUT_DATA = (*_LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """One member.

    Attributes:
        name: The name in the tar file; bytes that are not UTF-8 become surrogate escapes.
        offset: Byte offset of its data.
        size: Size of its data in bytes.
        skipped: Why it cannot be read as a file, such as `a link`; empty if it can.
    """

    name: str
    offset: int
    size: int
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Damage:
    """Where and why a tar file stops being readable."""

    offset: int
    why: str


class _Damaged(Exception):
    """The rest of the tar file cannot be read."""


@dataclass(slots=True)
class _Extended:
    """What extended headers say about the member after them."""

    name: str | None = None
    size: int | None = None
    skipped: str = ""


def read_members(file: IO[bytes], file_size: int) -> Iterator[Member | Damage]:
    """Yield the members of a tar file; `Damage` comes last, if there is any.

    Args:
        file: A seekable file; its `OSError`s are raised unchanged.
        file_size: Size of the file in bytes.
    """
    offset = 0
    extended = _Extended()
    while True:
        try:
            header = _header_at(file, offset)
            if header is None:
                return
            data = offset + BLOCK
            if header.type in (*_PAX, *_PASSED_OVER, tarfile.GNUTYPE_LONGNAME):
                _check_inside(data, header.size, file_size)
                _extend(extended, header, file)
                offset = data + _padded(header.size)
                continue
            if header.type == tarfile.GNUTYPE_SPARSE:
                data += BLOCK * _sparse_blocks(file, offset, file_size)
            member = _member(header, extended, data)
            _check_inside(data, member.size, file_size)
        except _Damaged as error:
            yield Damage(offset, str(error))
            return
        yield member
        offset = data + _padded(member.size)
        extended = _Extended()


def _header_at(file: IO[bytes], offset: int) -> tarfile.TarInfo | None:
    """Return the header at an offset, or None at the end of the tar file."""
    file.seek(offset)
    block = file.read(BLOCK)
    if (not block and offset) or block == bytes(BLOCK):
        return None
    if len(block) < BLOCK:
        if not offset:
            raise _Damaged("it is too short for a tar file")
        raise _Damaged("it is cut off in the middle of a header")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise _Damaged("there is no header of a member") from error


def _member(header: tarfile.TarInfo, extended: _Extended, data: int) -> Member:
    """Return the member that a header and the extended headers before it describe."""
    name = header.name if extended.name is None else extended.name
    size = header.size if extended.size is None else extended.size
    skipped = extended.skipped
    if header.type in _LINKS:
        skipped = "a link"
    elif header.type == tarfile.GNUTYPE_SPARSE:
        skipped = "sparse"
    elif header.type not in _FILES:
        skipped = "not a file"
    elif len(name.encode(errors="surrogateescape")) > MAX_NAME_BYTES:
        skipped = "a name that is too long"
    return Member(name, data, 0 if header.type in _WITHOUT_DATA else size, skipped)


def _check_inside(start: int, size: int, file_size: int) -> None:
    if size < 0 or start + size > file_size:
        raise _Damaged("a member is cut off, or announces more bytes than the file has")


def _padded(size: int) -> int:
    """Return a size rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _extend(extended: _Extended, header: tarfile.TarInfo, file: IO[bytes]) -> None:
    """Record what an extended header says about the next member."""
    if header.type in _PASSED_OVER:
        return
    if header.size > MAX_EXTENDED_BYTES:
        extended.skipped = "an extended header that is too long"
        return
    content = file.read(header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        extended.name = content.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        return
    for key, value in _pax_records(content):
        if key == b"path":
            extended.name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise _Damaged("an extended header has a size that is not a number")
            extended.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            extended.skipped = "sparse"


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of `LENGTH KEY=VALUE` lines.

    Source: POSIX.1-2001, pax Extended Header.
    """
    start = 0
    while start < len(content) and content[start]:
        digits, blank, _ = content[start : start + 12].partition(b" ")
        length = int(digits) if digits.isdigit() and blank else 0
        key, equals, value = content[start + len(digits) + 1 : start + length].partition(b"=")
        if not equals or start + length > len(content) or not value.endswith(b"\n"):
            raise _Damaged("an extended header cannot be read")
        yield key, value[:-1]
        start += length


def _sparse_blocks(file: IO[bytes], offset: int, file_size: int) -> int:
    """Return how many blocks continue the header of a sparse member.

    Source: GNU tar's manual, `sparse.c`.
    """
    file.seek(offset)
    continues = file.read(BLOCK)[482:483]
    count = 0
    while continues and continues != b"\0":
        count += 1
        if count > MAX_SPARSE_BLOCKS or offset + BLOCK * (count + 1) > file_size:
            raise _Damaged("the map of a sparse member does not end")
        continues = file.read(BLOCK)[504:505]
    return count

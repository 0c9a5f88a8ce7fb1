"""Reads JPEG headers, up to the first scan.

Source: ITU-T T.81, annex B; libjpeg-turbo's `jdmarker.c` for what decoders skip.
"""

from dataclasses import dataclass, field

from serve_app.errors import ImageTooLarge, UnsupportedImage
from serve_app.images.header import ImageHeader, Piece, damaged, fields
from serve_app.images.orientation import orientation_of

MAX_SCANS = 100
"""Maximum number of scans. Encoders write about ten; libtiff also refuses more than 100."""

MAX_SEGMENTS = 2_000
"""Maximum number of segments before the first scan. Metadata of 20 MiB fills 320 segments."""

MAX_JUNK_BYTES = 4_096
"""Maximum number of bytes between segments, which Pillow reads one by one in Python."""

USUAL_SEGMENTS = 64
"""Maximum number of segments in a header that is passed to Pillow as it is.

From larger headers, metadata is removed, because Pillow concatenates EXIF segments one by one,
which takes quadratic time.
"""

USUAL_EXIF_ENTRIES = 256
"""Maximum number of EXIF entries in a header that is passed to Pillow as it is."""

_SCAN_MARKER = b"\xff\xda"
_SOI = 0xD8
_EOI = 0xD9
_SOS = 0xDA
_APP0 = 0xE0
_APP1 = 0xE1
_APP2 = 0xE2
_APP14 = 0xEE
_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}
_FRAMES = {
    0xC0: "baseline",
    0xC1: "baseline",
    0xC2: "progressive",
    0xC9: "arithmetic",
    0xCA: "arithmetic",
}
_UNSUPPORTED_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC8, 0xCB, 0xCD, 0xCE, 0xCF, 0xDE}


@dataclass(slots=True)
class _Segments:
    """The segments before the first scan."""

    frame: tuple[int, int] | None = None
    """Marker and offset of the frame header."""
    scan: int = 0
    """Offset of the first scan's parameters."""
    kept: list[Piece] = field(default_factory=list)
    exif: list[bytes] = field(default_factory=list)
    xmp: bytes | None = None
    multi_picture: bool = False
    count: int = 0


def read_jpeg(data: bytes) -> ImageHeader:
    """Read the header of a JPEG.

    Raises:
        InvalidImage: It is truncated, damaged or has two frames.
        UnsupportedImage: Its coding is not supported.
        ImageTooLarge: It has more than `MAX_SCANS` scans.
    """
    segments = _segments(data)
    if segments.frame is None:
        raise damaged()
    marker, offset = segments.frame
    precision, height, width, channels = fields(">BHHB", data, offset + 2)
    if precision != 8 or channels not in (1, 3, 4):
        raise UnsupportedImage(
            f"JPEGs of {precision} bits and {channels} channels are not supported. Send 8 bits and "
            "1, 3 or 4 channels."
        )
    if not width or not height or fields(">H", data, offset)[0] != 8 + 3 * channels:
        raise damaged()

    samples = _padded_samples(data, offset, width, height, channels)
    variant = _FRAMES[marker]
    in_first_scan = fields(">B", data, segments.scan + 2)[0]
    single = marker in (0xC0, 0xC1, 0xC9) and in_first_scan == channels
    scans = 1 if single else _count_scans(data, segments.scan)
    if not single and variant == "baseline":
        variant = "multiscan"

    keep = _kept(segments, len(data))
    return ImageHeader(
        format="JPEG",
        width=width,
        height=height,
        coded_nbytes=len(data),
        pixel_nbytes=1 if channels == 1 else 4,
        variant=variant,
        channels=channels,
        conversion={1: "grey", 3: "", 4: "cmyk"}[channels],
        orientation=orientation_of(b"".join(segments.exif[:4]), segments.xmp),
        raw_nbytes=samples,
        # Decoders keep the coefficients of all scans, 2 bytes each. Source: libjpeg's `jdcoefct.c`.
        block_nbytes=0 if single else 2 * samples,
        scans=scans,
        full_size=segments.multi_picture and not keep,
        keep=keep,
    )


def _segments(data: bytes) -> _Segments:
    found = _Segments()
    offset = 2
    junk = 0
    while not found.scan:
        start = offset
        offset = data.find(b"\xff", offset, offset + MAX_JUNK_BYTES)
        if offset < 0:
            raise damaged()
        while data[offset : offset + 1] == b"\xff":
            offset += 1
            if offset - start > MAX_JUNK_BYTES:
                raise damaged()
        junk += offset - start - 1

        (marker,) = fields(">B", data, offset)
        offset += 1
        found.count += 1
        if junk > MAX_JUNK_BYTES or found.count > MAX_SEGMENTS:
            raise damaged()

        # A stuffed zero and restart markers have no parameters.
        if marker == 0 or 0xD0 <= marker <= 0xD7:
            continue
        if marker in (_SOI, _EOI):
            raise damaged()

        (length,) = fields(">H", data, offset)
        if length < 2 or offset + length > len(data):
            raise damaged()
        _note(found, data, marker, offset, length)
        offset += length
    return found


def _note(found: _Segments, data: bytes, marker: int, offset: int, length: int) -> None:
    """Record one segment; `offset` is that of its length field."""
    if marker == _SOS:
        found.scan = offset
        return
    if marker in _UNSUPPORTED_FRAMES:
        raise UnsupportedImage(
            "Lossless and hierarchical JPEGs are not supported. Send a baseline or progressive "
            "JPEG."
        )

    if marker in _FRAMES:
        if found.frame:  # libjpeg uses the first frame, but Pillow the last one
            raise damaged()
        found.frame = (marker, offset)
    elif marker == _APP1:
        start = data[offset + 2 : offset + 31]
        if start.startswith(b"Exif\0\0"):
            body = data[offset + 2 : offset + length]
            found.exif.append(body[6:] if found.exif else body)
        elif start == b"http://ns.adobe.com/xap/1.0/\0":
            found.xmp = data[offset + 31 : offset + length]
        return
    elif marker == _APP2:
        found.multi_picture |= data.startswith(b"MPF\0", offset + 2)
        return
    elif marker not in _TABLES and (marker not in (_APP0, _APP14) or length > 64):
        return
    found.kept.append((offset - 2, offset + length))


def _padded_samples(data: bytes, offset: int, width: int, height: int, channels: int) -> int:
    """Return the number of samples, including the padding to whole coding units."""
    factors = []
    for index in range(channels):
        sampling = fields(">B", data, offset + 9 + 3 * index)[0]
        across = sampling >> 4
        down = sampling & 15
        if not (1 <= across <= 4 and 1 <= down <= 4):
            raise damaged()
        factors.append((across, down))
    columns = -(-width // (8 * max(across for across, _ in factors)))
    rows = -(-height // (8 * max(down for _, down in factors)))
    return sum(64 * columns * rows * across * down for across, down in factors)


def count_scan_markers(data: bytes, start: int, limit: int) -> int:
    """Return the number of start-of-scan markers, of which at most `limit` + 1 are counted."""
    count = 0
    offset = data.find(_SCAN_MARKER, start)
    while offset >= 0:
        count += 1
        if count > limit:
            break
        offset = data.find(_SCAN_MARKER, offset + 2)
    return count


def _count_scans(data: bytes, first: int) -> int:
    """Return an upper bound of the number of scans; `first` is the offset of the first one.

    Raises:
        ImageTooLarge: There are more than `MAX_SCANS`.
    """
    scans = 1 + count_scan_markers(data, first, MAX_SCANS - 1)
    if scans > MAX_SCANS:
        raise ImageTooLarge(
            f"The JPEG has more than {MAX_SCANS} scans, which is the limit. Save it as a baseline "
            "JPEG."
        )
    return scans


def _kept(segments: _Segments, length: int) -> tuple[Piece, ...]:
    """Return the pieces of the file without its metadata; nothing if the metadata is usual."""
    first = segments.exif[0] if segments.exif else b""
    order = "little" if first[6:8] == b"II" else "big"
    start = int.from_bytes(first[10:14], order)  # type: ignore[arg-type]
    entries = int.from_bytes(first[6 + start : 8 + start], order)  # type: ignore[arg-type]
    if (
        segments.count <= USUAL_SEGMENTS
        and len(segments.exif) <= 1
        and entries <= USUAL_EXIF_ENTRIES
    ):
        return ()
    return ((0, 2), *segments.kept, (segments.scan - 2, length))

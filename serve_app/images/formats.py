"""Image formats, their signatures and their installed decoders.

Not here: reading headers (`header_reading.py`), decoding (`decoding.py`).
"""

import functools

from PIL import AvifImagePlugin, features

try:
    import pillow_heif
except ImportError:  # HEIF is optional: the extra `heif`
    pillow_heif = None

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Pillow's names of the supported formats; none of its other decoders is ever called."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II", "TIFF"),
    (b"MM", "TIFF"),
)
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIF",
    b"heix": "HEIF",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"hevc": "HEIF",
}


@functools.cache
def readable_formats(requested: tuple[str, ...] = FORMATS) -> tuple[str, ...]:
    """Return the requested formats that have an installed decoder.

    Most builds of Pillow include AVIF; HEIF needs a separate package.
    """
    # By default, every decode of an AVIF starts one thread per core.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    has_heif = "HEIF" in requested and pillow_heif is not None
    if has_heif:
        pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    present = {"AVIF": features.check("avif"), "HEIF": has_heif}
    return tuple(name for name in requested if present.get(name, True))


def signature_of(data: bytes) -> str:
    """Return Pillow's name of the format whose signature matches, or `other`.

    Source: the formats' own signatures, and the brands of ISO/IEC 23008-12 for AVIF and HEIF.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "other")
    return next((name for start, name in _SIGNATURES if data.startswith(start)), "other")

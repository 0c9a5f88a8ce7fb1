"""Reads BMP headers.

Source: Microsoft's `BITMAPINFOHEADER` and its versions, and Pillow's `BmpImagePlugin`.
"""

from serve_app.errors import UnsupportedImage
from serve_app.images.header import ImageHeader, damaged, fields

_OS2_HEADER = 12
_HEADERS = (40, 52, 56, 64, 108, 124)
_RUN_LENGTH = (1, 2)
_BIT_FIELDS = 3
_BITS = (1, 4, 8, 16, 24, 32)


def read_bmp(data: bytes) -> ImageHeader:
    """Read the header of a BMP.

    Raises:
        InvalidImage: It is truncated or damaged.
        UnsupportedImage: Pillow does not support its kind of header, depth or compression.
    """
    (kind,) = fields("<I", data, 14)

    compression = 0
    if kind == _OS2_HEADER:
        width, height, _, bits = fields("<HHHH", data, 18)
    elif kind in _HEADERS:
        width, height, _, bits, compression = fields("<IIHHI", data, 18)
        # Pillow takes a height as negative if its highest byte is 255.
        if height >> 24 == 0xFF:
            height = 2**32 - height
    else:
        raise UnsupportedImage("This kind of BMP header is not supported. Save the image again.")

    if bits not in _BITS or compression > 3:
        raise UnsupportedImage(
            f"BMPs of {bits} bits and compression {compression} are not supported. Save the image "
            "uncompressed."
        )
    if not width or not height:
        raise damaged()

    conversion = "grey" if bits <= 8 else ""
    if bits == 32 and compression == _BIT_FIELDS:
        conversion = "alpha"
    row_nbytes = (width * bits + 31) // 32 * 4
    return ImageHeader(
        format="BMP",
        width=width,
        height=height,
        coded_nbytes=len(data),
        pixel_nbytes=1 if bits <= 8 else 4,
        variant="run-length" if compression in _RUN_LENGTH else "raw",
        channels=1 if bits <= 8 else 3,
        conversion=conversion,
        raw_nbytes=row_nbytes * height,
        # The run-length decoder is Python and collects all pixels before it hands them over.
        block_nbytes=width * height if compression in _RUN_LENGTH else 0,
    )

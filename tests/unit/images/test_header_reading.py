"""Headers give size, orientation and coding without a decoder, and what Pillow must not get."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.errors import ImageTooLarge, InvalidImage, RequestError, UnsupportedImage
from serve_app.images.decoding import decode_image, image_size
from serve_app.images.formats import FORMATS
from serve_app.images.header import ImageHeader, kept_bytes
from serve_app.images.header_reading import read_header
from serve_app.images.limits import ImageLimits
from tests.hostile import encoded as make

LIMITS = ImageLimits()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def header(data: bytes) -> ImageHeader:
    return read_header(data, FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_size_is_that_of_the_decoded_image(kind: str, orientation: int) -> None:
    """Every format and orientation, also TIFF, where Pillow turns the size itself."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if kind not in ("GIF", "BMP") else {}
    data = make.saved(make.photo(40, 24), kind, **options)
    assert image_size(data, LIMITS) == decode_image(data, LIMITS).size
    if options and kind != "HEIF":  # its encoder leaves this EXIF tag out
        assert image_size(data, LIMITS) == ((24, 40) if orientation >= 5 else (40, 24))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_in_xmp_counts_without_one_in_exif(kind: str) -> None:
    """As Pillow does; the size in the header is 40×24."""
    if kind == "PNG":
        body = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
        data = make.png((40, 24), 2, 8, extra=make.png_chunk(b"iTXt", body))
    elif kind == "TIFF":
        data = make.saved(make.photo(40, 24), kind, tiffinfo={700: XMP})
    else:
        data = make.saved(make.photo(40, 24), kind, xmp=XMP)
    assert image_size(data, LIMITS) == (24, 40)


def test_orientation_behind_the_image_data_of_a_png_is_found() -> None:
    """The size comes from the header, and nothing is decoded for it."""
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    data = make.png((40, 24), 2, 8, after=make.png_chunk(b"eXIf", exif))
    assert image_size(data, LIMITS) == (24, 40)
    assert decode_image(data, LIMITS).size == (24, 40)


def test_size_of_a_truncated_png_is_read_and_decoding_fails() -> None:
    """A job records the size and one error, instead of ending."""
    data = make.saved(make.photo(200, 100), "PNG")
    cut = data[: len(data) // 2]
    assert image_size(cut, LIMITS) == (200, 100)
    with pytest.raises(InvalidImage):
        decode_image(cut, LIMITS)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (make.saved(make.photo(64, 48), "JPEG"), ("baseline", 3, 8, 1, "")),
        (make.saved(make.photo(64, 48).convert("CMYK"), "JPEG"), ("baseline", 4, 8, 1, "cmyk")),
        (make.png((64, 48), 6, 16), ("", 4, 16, 1, "alpha")),
        (make.png((64, 48), 0, 16), ("", 1, 16, 1, "deep")),
        (make.png((64, 48), 3, 4), ("", 1, 4, 1, "grey")),
        (make.saved(make.photo(64, 48), "WEBP"), ("lossy", 3, 8, 1, "")),
        (make.saved(make.photo(64, 48), "WEBP", lossless=True), ("lossless", 3, 8, 1, "")),
        (
            make.saved(make.photo(64, 48).convert("RGBA"), "TIFF", compression="tiff_lzw"),
            ("lzw", 4, 8, 1, "alpha"),
        ),
        (make.saved(make.photo(64, 48).convert("F"), "TIFF"), ("raw", 1, 32, 1, "deep")),
        (make.bmp_rle((64, 48), b"\0\0" * 48), ("run-length", 1, 8, 1, "grey")),
        (make.saved(make.photo(64, 48), "AVIF"), ("", 3, 8, 1, "")),
    ],
)
def test_coding_is_read(data: bytes, expected: tuple[str, int, int, int, str]) -> None:
    """Variant, channels, depth, scans and conversion of one image of each kind."""
    found = header(data)
    assert (found.variant, found.channels, found.depth, found.scans, found.conversion) == expected
    assert (found.width, found.height) == (64, 48)


def test_scans_of_a_progressive_jpeg_are_counted() -> None:
    """Pillow's progressive JPEGs have ten; fifty more are fifty more."""
    data = make.saved(make.photo(64, 48), "JPEG", progressive=True)
    assert header(data).scans == 10
    assert header(make.jpeg_with_scans(data, 50)).scans == 60
    with pytest.raises(ImageTooLarge, match="more than 100 scans"):
        header(make.jpeg_with_scans(data, 91))


def test_coefficients_of_a_progressive_jpeg_are_counted() -> None:
    """64×48 pixels of 4:2:0 are 4,608 samples, of 2 bytes each."""
    found = header(make.saved(make.photo(64, 48), "JPEG", progressive=True, subsampling=2))
    assert found.raw_nbytes == 4_608
    assert found.block_nbytes == 9_216


def test_blocks_of_a_tiff_are_counted() -> None:
    """A tile that is larger than the image is what the decoder unpacks."""
    data = make.tiff((10, 10), (8, 8, 8), 2, [b"x"], 8, tile=(512, 256))
    assert header(data).block_nbytes == 512 * 256 * 3
    planes = make.tiff((10, 10), (8, 8, 8), 2, [bytes(100)] * 3, 5, extra={284: (2,), 278: (10,)})
    assert header(planes).raw_nbytes == 300


def test_metadata_of_a_tiff_is_not_given_to_the_decoder() -> None:
    """Texts, sub-directories and further pages stay behind; the pixels are the same."""
    frames = [make.photo(40, 24, seed) for seed in range(3)]
    data = make.saved(
        frames[0], "TIFF", save_all=True, append_images=frames[1:], description="text" * 50
    )
    kept = kept_bytes(data, header(data))
    with Image.open(io.BytesIO(kept), formats=("TIFF",)) as image:
        assert image.n_frames == 1
        assert 270 not in image.tag_v2
        np.testing.assert_array_equal(np.asarray(image), np.asarray(frames[0]))


def _big_tiff(order: str, pixels: bytes) -> bytes:
    tags = [
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 16),
        (277, 1),
        (278, 8),
        (279, 64),
    ]
    table = b"".join(struct.pack(f"{order}HHQI4x", tag, 4, 1, value) for tag, value in tags)
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(f"{order}HHHQ", 43, 8, 0, 16 + len(pixels))
    return head + pixels + struct.pack(f"{order}Q", len(tags)) + table + bytes(8)


def test_big_tiffs_are_read() -> None:
    """BigTIFF has 64-bit offsets."""
    pixels = bytes(range(64))
    assert np.asarray(decode_image(_big_tiff("<", pixels), LIMITS))[:, :, 0].tobytes() == pixels


def test_big_endian_big_tiffs_are_not_supported() -> None:
    """Pillow would read another directory than our parser."""
    with pytest.raises(UnsupportedImage, match="Big-endian BigTIFF"):
        header(_big_tiff(">", bytes(64)))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_large_compressed_metadata_of_a_png_is_left_out(kind: str) -> None:
    """Pillow refuses more than 1 MiB of it; the image is fine."""
    packed = zlib.compress(bytes(3_000_000), 9)
    prefix = {"zTXt": b"k\0\0", "iTXt": b"k\0\1\0\0\0", "iCCP": b"p\0\0"}[kind]
    data = make.png((10, 10), 2, 8, extra=make.png_chunk(kind.encode(), prefix + packed))
    assert decode_image(data, LIMITS).size == (10, 10)


@pytest.mark.parametrize("kind", [name for name in FORMATS if name not in ("GIF", "BMP")])
def test_large_profiles_and_descriptions_do_not_matter(kind: str) -> None:
    """Headers with 1.5 MB of ICC profile, or of EXIF where a format allows it, are read."""
    junk = np.random.default_rng(0).bytes(1_500_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind != "JPEG":  # one segment has 64 KiB
        exif[0x9286] = junk
    data = make.saved(
        make.photo(40, 24), kind, icc_profile=junk, exif=exif.tobytes() if kind == "HEIF" else exif
    )
    assert len(data) > 1_500_000
    assert decode_image(data, LIMITS).size == (24, 40)


@pytest.mark.parametrize("application", [b"\xfe", b"\xff\x0bXMP DataXMP"])
def test_large_comments_and_xmp_of_a_gif_are_left_out(application: bytes) -> None:
    """1.5 MB before the first frame, whose transparency is still known."""
    image = Image.new("P", (40, 24), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    plain = make.saved(image, "GIF", transparency=1)
    start = 13 + (3 << (plain[10] & 7) + 1)
    blocks = b"".join(b"\xff" + bytes([value]) * 255 for value in range(1, 256)) * 24
    data = plain[:start] + b"!" + application + blocks + b"\0" + plain[start:]

    assert len(kept_bytes(data, header(data))) <= len(plain)
    assert (np.asarray(decode_image(data, LIMITS)) == 255).all()


@pytest.mark.parametrize("body", [b"\x01a" * 500_000, b"\0!\xfe" * 500_000, bytes(1_000_000)])
def test_gifs_of_too_many_blocks_are_refused(body: bytes) -> None:
    """Before their first frame, so that reading a header stays cheap."""
    start = b"GIF89a" + bytes((10, 0, 10, 0, 0, 0, 0))
    with pytest.raises(ImageTooLarge, match="Save it again without metadata"):
        header(start + b"!\xfe" + body)


def test_many_exif_segments_of_a_jpeg_are_left_out() -> None:
    """Pillow would copy all that came before with each of them."""
    data = make.saved(make.photo(64, 48), "JPEG")
    segments = b"\xff\xe1\x00\x0cExif\0\0abcd" * 1_500
    swollen = data[:2] + segments + data[2:]
    assert len(kept_bytes(swollen, header(swollen))) <= len(data)
    np.testing.assert_array_equal(
        np.asarray(decode_image(swollen, LIMITS)), np.asarray(decode_image(data, LIMITS))
    )


def test_grids_are_read() -> None:
    """Size and samples of a HEIF of 2 × 2 tiles of 512 pixels, 4:2:0."""
    found = header(make.heif_grid(make.photo(900, 700), quality=30))
    assert (found.format, found.variant, found.size) == ("HEIF", "grid", (900, 700))
    assert found.raw_nbytes == 4 * 512 * 512 * 3 // 2


def test_exif_of_an_avif_is_left_out() -> None:
    """Pillow would parse it when the file is opened; the orientation is a property of the image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    data = make.saved(make.photo(40, 24), "AVIF", exif=exif)
    kept = kept_bytes(data, header(data))
    assert b"Exif" in data
    with Image.open(io.BytesIO(kept), formats=("AVIF",)) as image:
        assert 0x010E not in image.getexif()


def test_junk_in_a_jpeg_is_bounded() -> None:
    """Pillow reads junk between segments one byte at a time."""
    data = make.saved(make.photo(64, 48), "JPEG")
    assert header(data[:20] + bytes(100) + data[20:]).size == (64, 48)
    with pytest.raises(InvalidImage):
        header(data[:20] + bytes(100_000) + data[20:])


@pytest.mark.parametrize("compression", [6, 32809, 34676, 50001, 99])
def test_rare_compressions_of_tiffs_are_not_supported(compression: int) -> None:
    """Their cost is unknown, so that no decoder is called."""
    with pytest.raises(UnsupportedImage, match="compression"):
        header(make.tiff((10, 10), (8,), 1, [bytes(100)], compression))


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 500),
)
def test_damaged_headers_raise_request_errors_only(
    kind: str, changes: list[tuple[int, int]], cut: int
) -> None:
    """Whatever stands in a header, it is read or refused."""
    data = bytearray(_SAMPLES[kind])
    for offset, value in changes:
        data[offset % len(data)] = value
    if cut < 400:
        del data[cut:]
    try:
        found = read_header(bytes(data), FORMATS)
    except RequestError:
        return
    assert found.width > 0
    assert found.height > 0
    assert 1 <= found.orientation <= 8


_SAMPLES = {kind: make.saved(make.photo(40, 24), kind) for kind in FORMATS}


def test_usual_headers_are_cheap() -> None:
    """A header takes a small part of what decoding takes, here of a 12-megapixel JPEG."""
    data = make.saved(make.photo(4000, 3000), "JPEG", quality=90)
    start = time.process_time()
    decode_image(data, LIMITS, 384)
    decoding = time.process_time() - start
    start = time.process_time()
    for _ in range(100):
        header(data)
    assert time.process_time() - start < decoding

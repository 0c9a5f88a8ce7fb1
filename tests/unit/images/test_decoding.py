"""Every kind of image becomes upright 8-bit RGB, and bad ones are refused for the right reason."""

import io

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from serve_app.images.decoding import decode_image
from serve_app.images.limits import ImageLimits
from tests.conftest import encoded, random_picture

LIMITS = ImageLimits(max_pixels=1_000_000)


def decode(data: bytes, target_px: int | None = None) -> np.ndarray:
    image = decode_image(data, LIMITS, target_px)
    assert image.mode == "RGB"
    return np.asarray(image)


def gradient(mode: str) -> Image.Image:
    """Return an image whose top-left pixel is dark and whose bottom-right pixel is light."""
    values = np.linspace(0, 255, 16 * 24).reshape(16, 24).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_become_rgb(mode: str) -> None:
    """Trap 10: hub configurations carry do_convert_rgb: null, so every mode is converted here."""
    pixels = decode(encoded(gradient(mode)))
    assert pixels.shape == (16, 24, 3)
    assert pixels[0, 0].max() < 60
    assert pixels[-1, -1].min() > 200


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_modes_become_rgb(mode: str) -> None:
    """Grey, colour and CMYK photographs keep dark dark and light light."""
    pixels = decode(encoded(gradient(mode), "JPEG", quality=95))
    assert pixels[0, 0].max() < 60
    assert pixels[-1, -1].min() > 200


@pytest.mark.parametrize("make", ["alpha", "palette", "grey"])
def test_transparency_is_laid_on_white(make: str) -> None:
    """A fully transparent black pixel becomes white, however the file stores the transparency."""
    if make == "alpha":
        data = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    elif make == "palette":
        data = encoded(Image.new("P", (8, 8), 0), transparency=0)
    else:
        data = encoded(Image.new("L", (8, 8), 0), transparency=0)
    assert (decode(data) == 255).all()


def test_half_transparent_red_is_pink() -> None:
    """Compositing is arithmetic: half of red on white."""
    assert decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128))))[0, 0].tolist() == [
        255,
        127,
        127,
    ]


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    """Half of 65,535 becomes half of 255; Pillow's own conversion would clip it to white."""
    values = np.full((8, 8), 32768, np.uint16)
    assert decode(encoded(Image.fromarray(values)))[0, 0].tolist() == [128, 128, 128]


def test_floating_point_tiff_is_scaled() -> None:
    """A float image from 0 to 1 keeps its middle grey."""
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(values), "TIFF"))
    assert pixels[0, 0, 0] == 0
    assert pixels[-1, -1, 0] == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """All eight orientations give the upright image: red above, blue below, white at the left."""
    upright = Image.new("RGB", (40, 20), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 40, 10))
    upright.paste((255, 255, 255), (0, 0, 8, 20))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, np.asarray(upright))


def test_first_frame_of_an_animation_is_read() -> None:
    """An animated GIF is its first frame."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated_files_are_refused(kind: str) -> None:
    """A truncated file is invalid, and not half an image."""
    data = encoded(random_picture(64, 64), kind)
    with pytest.raises((InvalidImage, UnsupportedImage)):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"<svg/>", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"],
)
def test_other_formats_are_refused(data: bytes) -> None:
    """Only the listed decoders are ever tried."""
    with pytest.raises(UnsupportedImage):
        decode(data)


def test_too_many_pixels_are_refused_by_the_header() -> None:
    """The size is checked before a pixel is decoded; the message has both numbers."""
    with pytest.raises(ImageTooLarge, match=r"1001×1000.*1,000,000"):
        decode(encoded(Image.new("1", (1001, 1000))))


def test_bomb_is_refused() -> None:
    """A header that announces 20 gigapixels is refused although the file is tiny."""
    png = bytearray(encoded(Image.new("1", (8, 8))))
    png[16:24] = (200_000).to_bytes(4, "big") + (100_000).to_bytes(4, "big")
    import zlib

    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageTooLarge):
        decode(bytes(png))


def test_data_after_the_picture_is_ignored() -> None:
    """A file that is also of another type is decoded as an image."""
    data = encoded(Image.new("RGB", (8, 8), "red"), "JPEG") + b"PK\x03\x04 and a zip"
    assert decode(data).shape == (8, 8, 3)


def test_source_is_read_from_memory_only() -> None:
    """Decoding leaves nothing of an image open."""
    buffer = io.BytesIO(encoded(Image.new("RGB", (8, 8), "red")))
    image = decode_image(buffer.getvalue(), LIMITS)
    assert image.getpixel((0, 0)) == (255, 0, 0)

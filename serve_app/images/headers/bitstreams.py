"""Reads frame sizes from AV1 and HEVC bitstreams, which may differ from the sizes in the file.

Decoders allocate and decode frames of the bitstream's size, and compare it with the file's size
afterwards.

Source: AV1 Bitstream and Decoding Process Specification, 5.3 to 5.5; ITU-T H.265, 7.3.
"""

from dataclasses import dataclass

from serve_app.images.header import damaged

MAX_UNITS = 256
"""Maximum number of OBUs in one coded image; encoders write about four."""

MAX_AV1_FRAMES = 4
"""Maximum number of frames in one coded image: one, or up to four layers of a progressive AVIF."""

_AV1_SEQUENCE = 1
_AV1_FRAME_HEADER = 3
_AV1_FRAME = 6
HEVC_SPS = 33


@dataclass(frozen=True, slots=True)
class CodedFrame:
    """The largest frame that a bitstream declares.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        depth: Bits per sample.
        samples_per_pixel: Samples of all planes per pixel, from 1 (grey) to 3 (4:4:4).
        frames: Number of frames that are decoded.
    """

    width: int
    height: int
    depth: int
    samples_per_pixel: float
    frames: int = 1


class _Bits:
    """Reads bits, most significant first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        self._left -= count
        if self._left < 0:
            raise damaged("bitstream")
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """Return the next unsigned Exp-Golomb number."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise damaged("bitstream")
        return (1 << zeros) - 1 + self.read(zeros)


def av1_frame(data: bytes, offset: int, stop: int) -> CodedFrame | None:
    """Return the largest frame of AV1 data; None if there is no sequence header.

    Args:
        data: Bytes that contain the AV1 data.
        offset: Start of the AV1 data.
        stop: End of the AV1 data, exclusive.

    Raises:
        InvalidImage: The data is damaged, or has more than `MAX_UNITS` units or
            `MAX_AV1_FRAMES` frames.
    """
    largest: CodedFrame | None = None
    frames = 0
    for _ in range(MAX_UNITS):
        if offset >= stop:
            break

        # OBU header: type, an extension byte, and the size if it is not the rest of the data.
        header = data[offset]
        kind = header >> 3 & 15
        offset += 2 if header & 4 else 1
        size = stop - offset
        if header & 2:
            size, offset = _leb128(data, offset)

        body = data[offset : min(offset + size, offset + 64)]
        if kind == _AV1_SEQUENCE:
            found = _av1_sequence(body)
            if largest is None or found.width * found.height > largest.width * largest.height:
                largest = found
        frames += kind in (_AV1_FRAME_HEADER, _AV1_FRAME)
        offset += size
    else:
        raise damaged("bitstream")

    if frames > MAX_AV1_FRAMES:
        raise damaged("bitstream")
    if largest is None:
        return None
    return CodedFrame(
        largest.width, largest.height, largest.depth, largest.samples_per_pixel, max(1, frames)
    )


def _leb128(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[offset : offset + 8]):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, offset + index + 1
    raise damaged("bitstream")


def _av1_sequence(body: bytes) -> CodedFrame:
    """Read a sequence header up to the largest frame size and the colour configuration."""
    bits = _Bits(body)
    profile = bits.read(3)
    bits.read(1)  # still_picture
    reduced = bits.read(1)
    if reduced:
        bits.read(5)  # seq_level_idx
    else:
        _skip_operating_points(bits)

    width_bits = bits.read(4) + 1
    height_bits = bits.read(4) + 1
    width = bits.read(width_bits) + 1
    height = bits.read(height_bits) + 1

    if not reduced and bits.read(1):  # frame identifiers
        bits.read(4 + 3)
    bits.read(3)  # superblock size and two intra tools
    if not reduced:
        _skip_inter_tools(bits)
    bits.read(3)  # super-resolution, CDEF and loop restoration

    depth = 8
    if bits.read(1):
        depth = 12 if profile == 2 and bits.read(1) else 10
    # Profile 0 is 4:2:0, 1 is 4:4:4, and 2 may be either. Grey images have one plane.
    samples = 1.5 if profile == 0 else 3.0
    if profile != 1 and bits.read(1):
        samples = 1.0
    return CodedFrame(width, height, depth, samples)


def _skip_inter_tools(bits: _Bits) -> None:
    bits.read(4)
    order_hint = bits.read(1)
    if order_hint:
        bits.read(2)
    force_screen_content = 2 if bits.read(1) else bits.read(1)
    if force_screen_content and not bits.read(1):
        bits.read(1)
    if order_hint:
        bits.read(3)


def _skip_operating_points(bits: _Bits) -> None:
    decoder_model = 0
    delay_bits = 0
    if bits.read(1):  # timing information
        bits.read(32)
        bits.read(32)
        if bits.read(1):
            bits.golomb()
        decoder_model = bits.read(1)
        if decoder_model:
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5 + 5)

    display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)  # operating_point_idc
        if bits.read(5) > 7:  # seq_level_idx
            bits.read(1)  # seq_tier
        if decoder_model and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if display_delay and bits.read(1):
            bits.read(4)


def hevc_frame(units: list[bytes]) -> CodedFrame | None:
    """Return the largest frame of the sequence parameter sets in NAL units, or None without any.

    Raises:
        InvalidImage: A parameter set is damaged.
    """
    found = [
        _hevc_parameters(unit[:512])
        for unit in units
        if len(unit) > 2 and unit[0] >> 1 & 63 == HEVC_SPS
    ]
    return max(found, key=lambda frame: frame.width * frame.height, default=None)


def is_first_slice(unit: bytes) -> bool:
    """Return whether a NAL unit begins a coded HEVC image."""
    return len(unit) > 2 and unit[0] >> 1 & 63 < 32 and bool(unit[2] & 0x80)


def _hevc_parameters(unit: bytes) -> CodedFrame:
    bits = _Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))  # removes emulation prevention bytes
    bits.read(4)  # video parameter set
    sub_layers = bits.read(3)
    bits.read(1)  # temporal nesting

    # Profile, tier and level, in general and of each sub-layer.
    bits.read(88 + 8)
    present = [(bits.read(1), bits.read(1)) for _ in range(sub_layers)]
    if sub_layers:
        bits.read(2 * (8 - sub_layers))
    for profile, level in present:
        bits.read(88 * profile + 8 * level)

    bits.golomb()  # sequence parameter set
    chroma = bits.golomb()
    if chroma == 3:
        bits.read(1)  # separate colour planes
    width = bits.golomb()
    height = bits.golomb()
    if bits.read(1):  # conformance window
        for _ in range(4):
            bits.golomb()
    depth = 8 + max(bits.golomb(), bits.golomb())
    samples = {0: 1.0, 1: 1.5, 2: 2.0}.get(chroma, 3.0)
    return CodedFrame(width, height, depth, samples)

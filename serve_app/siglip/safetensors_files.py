"""Reads untrusted safetensors files with numpy, within limits.

A file may declare a header of exabytes, a tensor of terabytes, or offsets outside the file.
Everything it declares is compared with the size of the file before it is read.

Not here: loading a tower's weights, which transformers does (`towers/tower.py`).
"""

import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from serve_app.errors import ConfigError
from serve_app.untrusted.bounded_files import FileMissing, FileProblem, open_regular, parse_json

MAX_HEADER_BYTES = 32 * 2**20
"""Maximum size of a header.

The format allows 100 MB. The header of the largest SigLIP has 0.1 MB. The header of a tag bank with
100,000 labels has about 5 MB, because it contains their names.
"""
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 16
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of a number by dtype. Source: `Dtype::bitsize` of safetensors 0.6."""
_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "F16": "<f2",
    "I32": "<i4",
    "F32": "<f4",
    "I64": "<i8",
    "F64": "<f8",
}


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The header of a safetensors file, consistent with the size of the file.

    Attributes:
        tensors: Dtype, shape, and offsets of begin and end relative to `start`, of each tensor.
        metadata: Strings stored beside the tensors.
        start: Offset of the first tensor's bytes in the file.
    """

    tensors: dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]
    metadata: dict[str, str]
    start: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a safetensors file: an 8-byte length, then JSON.

    Source: https://github.com/huggingface/safetensors#format

    Raises:
        ConfigError: The file is missing, is not a safetensors file, or is truncated.
    """
    with _opened(path) as file:
        return _header_of(file, path)


def read_tensors(path: Path, names: Iterable[str], max_bytes: int) -> dict[str, np.ndarray]:
    """Read some tensors of a file; bfloat16 becomes float32.

    Args:
        path: The file.
        names: Tensors to read. Tensors that the file lacks are missing from the result.
        max_bytes: Maximum total size of these tensors.

    Raises:
        ConfigError: The file cannot be read, or a tensor has a dtype that is not supported.
    """
    found: dict[str, np.ndarray] = {}
    with _opened(path) as file:
        header = _header_of(file, path)
        wanted = {name: header.tensors[name] for name in names if name in header.tensors}
        nbytes = sum(end - begin for _, _, (begin, end) in wanted.values())
        if nbytes > max_bytes:
            raise ConfigError(
                f"{path} has {nbytes:,} bytes of needed tensors; at most {max_bytes:,} are read."
            )
        for name, (dtype, shape, (begin, end)) in wanted.items():
            file.seek(header.start + begin)
            found[name] = _numbers(file.read(end - begin), dtype, path, name).reshape(shape)
    return found


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except FileMissing as error:
        raise ConfigError(f"{path} is missing; it should contain weights.") from error


def _header_of(file: BinaryIO, path: Path) -> SafetensorsHeader:
    size = os.fstat(file.fileno()).st_size
    try:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"it announces a header of {header_bytes:,} bytes")
        content = parse_json(file.read(header_bytes), "its header")
        if not isinstance(content, dict) or len(content) > MAX_TENSORS:
            raise ValueError("its header is not an object of tensors, or has too many")

        metadata = content.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(
            isinstance(text, str) for text in metadata.values()
        ):
            raise ValueError("its metadata is not an object of strings")

        start = 8 + header_bytes
        tensors = {name: _entry(name, entry, size - start) for name, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {error}.") from error
    except FileProblem as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {error}") from error
    return SafetensorsHeader(tensors, metadata, start)


def _entry(name: str, entry: Any, data_bytes: int) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Return the dtype, shape and offsets of one tensor.

    Raises:
        ValueError: Its shape, dtype and offsets contradict each other or the size of the file.
    """
    dtype = entry["dtype"]
    shape = tuple(entry["shape"])
    (begin, end) = tuple(entry["data_offsets"])
    if len(shape) > MAX_DIMENSIONS or not all(
        type(n) is int and n >= 0 for n in (*shape, begin, end)
    ):
        raise ValueError(f"the shape or offsets of {name[:100]} are not whole numbers")
    if dtype not in _BITS:
        raise ValueError(f"the dtype of {name[:100]} is not known")
    if math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise ValueError(f"the shape of {name[:100]} does not match its number of bytes")
    if end > data_bytes:
        raise ValueError(
            f"it ends before {name[:100]}, so it was not written or downloaded completely"
        )
    return dtype, shape, (begin, end)


def _numbers(raw: bytes, dtype: str, path: Path, name: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype not in _NUMPY:
        raise ConfigError(
            f"{path} stores {name} as {dtype}, which is not supported; convert it to float32."
        )
    return np.frombuffer(raw, _NUMPY[dtype])

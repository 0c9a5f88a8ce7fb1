"""Stored image embeddings: a safetensors file with `image_embeds` (n, D) float16 and names."""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.lib.format as npy_format
from safetensors import SafetensorError
from safetensors.numpy import save_file

from serve_app.errors import ConfigError, InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.safetensors_files import read_header, read_tensors
from serve_app.siglip.scoring import stored_embeddings
from serve_app.untrusted.bounded_files import open_regular, parse_json

TENSOR = "image_embeds"
NPY_HEADERS = {
    (1, 0): ("<H", npy_format.read_array_header_1_0),
    (2, 0): ("<I", npy_format.read_array_header_2_0),
}
"""By version: how the length of the header is written, and what reads it.

Source: `numpy.lib.format`.
"""
MAX_NPY_HEADER_BYTES = 10_000
MAX_EMBEDDING_BYTES = 8 * 2**30
"""Bytes of one file: 3.7 million embeddings of the largest SigLIP as float16."""


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """Names of n images, their embeddings (n, D) float32, unit norm, and the fingerprint of the
    checkpoint that made them.
    """

    names: tuple[str, ...]
    image_embeds: FloatArray
    checkpoint: str | None


def write_embeddings(stored: StoredEmbeddings, path: Path) -> None:
    """Store embeddings as float16: half the bytes, and cosines right to 0.0005.

    Raises:
        InvalidRequest: The file cannot be written.
    """
    metadata = {
        "names": json.dumps(stored.names, ensure_ascii=False),
        "checkpoint": stored.checkpoint or "",
    }
    try:
        save_file({TENSOR: stored.image_embeds.astype(np.float16)}, path, metadata)
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(f"{path} cannot be written: {error}.") from error


def read_embeddings(path: Path) -> StoredEmbeddings:
    """Read embeddings from a file of ours, or from `.npy` or a safetensors file that others wrote.

    Raises:
        InvalidRequest: It cannot be read, is larger than `MAX_EMBEDDING_BYTES`, or holds something
            else.
    """
    try:
        values, metadata = (
            (_read_npy(path), {}) if path.suffix == ".npy" else _read_safetensors(path)
        )
        names = (
            _names(metadata["names"], path)
            if "names" in metadata
            else tuple(str(i) for i in range(len(values)))
        )
    except (OSError, ValueError, struct.error, ConfigError) as error:
        raise InvalidRequest(f"{path} cannot be read as .npy or safetensors: {error}") from error
    if (
        values.ndim != 2
        or not np.issubdtype(values.dtype, np.floating)
        or len(names) != len(values)
    ):
        raise InvalidRequest(
            f"{path} holds {values.dtype} of the shape {values.shape}; "
            "expected (n, D) floating-point numbers."
        )
    return StoredEmbeddings(names, stored_embeddings(values), metadata.get("checkpoint") or None)


def _read_safetensors(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    found = read_tensors(path, (TENSOR,), MAX_EMBEDDING_BYTES)
    if TENSOR not in found:
        raise InvalidRequest(f"{path} holds no tensor {TENSOR}.")
    return found[TENSOR], read_header(path).metadata


def _read_npy(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file whose header fits the file; numpy would allocate what the
    header announces.

    Raises:
        ValueError: It is something else.
        ConfigError: It cannot be read.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        version = npy_format.read_magic(file)
        if version not in NPY_HEADERS:
            raise ValueError(f"version {version} of the format is not read here.")
        length, read_header_of = NPY_HEADERS[version]
        (header_bytes,) = struct.unpack(length, file.peek(4)[: struct.calcsize(length)])
        if header_bytes > MAX_NPY_HEADER_BYTES:  # numpy takes the memory that a header announces
            raise ValueError(f"it announces a header of {header_bytes:,} bytes.")
        try:
            shape, column_major, dtype = read_header_of(file)
        except Exception as error:  # numpy lets errors of Python's own tokenizer through
            raise ValueError("its header is not one of numpy's.") from error
        nbytes = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or len(shape) != 2 or min(shape) < 0:
            raise ValueError(
                f"it holds {dtype} of the shape {shape}; expected (n, D) floating-point numbers."
            )
        if nbytes != status.st_size - file.tell() or nbytes > MAX_EMBEDDING_BYTES:
            left = status.st_size - file.tell()
            raise ValueError(
                f"its header announces {nbytes:,} bytes and it has {left:,}; "
                f"at most {MAX_EMBEDDING_BYTES:,} are read."
            )
        return np.fromfile(file, dtype).reshape(shape, order="F" if column_major else "C")


def _names(text: str, path: Path) -> tuple[str, ...]:
    names = parse_json(text, f"{path}: names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its names are not a list of texts.")
    return tuple(names)

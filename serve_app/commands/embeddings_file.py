"""Reads and writes image embeddings: `image_embeds` (n, D) float16 and names, as safetensors."""

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
"""Format of the header's length, and the function that reads the header, by format version.

Source: `numpy.lib.format`.
"""
MAX_NPY_HEADER_BYTES = 10_000
MAX_EMBEDDING_BYTES = 8 * 2**30
"""Maximum size of a file: 3.7 million embeddings of the largest SigLIP as float16."""


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """Embeddings of n images.

    Attributes:
        names: Names of the images.
        image_embeds: (n, D) float32, unit norm.
        checkpoint: Fingerprint of the checkpoint that encoded them; None if it is unknown.
    """

    names: tuple[str, ...]
    image_embeds: FloatArray
    checkpoint: str | None


def write_embeddings(stored: StoredEmbeddings, path: Path) -> None:
    """Write embeddings as float16, which halves the size and changes cosines by at most 0.0005.

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
    """Read embeddings from a `.npy` or safetensors file, of this program or of another.

    Raises:
        InvalidRequest: The file cannot be read, is larger than `MAX_EMBEDDING_BYTES`, or contains
            something other than embeddings.
    """
    try:
        values, metadata = _read_array(path)
        if "names" in metadata:
            names = _names(metadata["names"], path)
        else:
            names = tuple(str(i) for i in range(len(values)))
    except (OSError, ValueError, struct.error, ConfigError) as error:
        raise InvalidRequest(f"{path} cannot be read as .npy or safetensors: {error}") from error
    if (
        values.ndim != 2
        or not np.issubdtype(values.dtype, np.floating)
        or len(names) != len(values)
    ):
        raise InvalidRequest(
            f"{path} contains {values.dtype} of shape {values.shape}; "
            "expected (n, D) floating-point numbers."
        )
    return StoredEmbeddings(names, stored_embeddings(values), metadata.get("checkpoint") or None)


def _read_array(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Return the array of a file and the file's metadata."""
    if path.suffix == ".npy":
        return _read_npy(path), {}
    tensors = read_tensors(path, (TENSOR,), MAX_EMBEDDING_BYTES)
    if TENSOR not in tensors:
        raise InvalidRequest(f"{path} contains no tensor named {TENSOR}.")
    return tensors[TENSOR], read_header(path).metadata


def _read_npy(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file.

    The header is checked first, because numpy allocates as much memory as the header declares.

    Raises:
        ValueError: The file is not a valid `.npy` file, or does not contain (n, D) numbers.
        ConfigError: The file cannot be read.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        version = npy_format.read_magic(file)
        if version not in NPY_HEADERS:
            raise ValueError(f"version {version} of the format is not supported.")
        length, read_header_of = NPY_HEADERS[version]
        (header_bytes,) = struct.unpack(length, file.peek(4)[: struct.calcsize(length)])
        if header_bytes > MAX_NPY_HEADER_BYTES:
            raise ValueError(
                f"it declares a header of {header_bytes:,} bytes; "
                f"at most {MAX_NPY_HEADER_BYTES:,} are supported."
            )
        try:
            shape, column_major, dtype = read_header_of(file)
        except Exception as error:  # numpy does not catch errors of Python's own tokenizer
            raise ValueError("its header is not a valid .npy header.") from error
        nbytes = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or len(shape) != 2 or min(shape) < 0:
            raise ValueError(
                f"it contains {dtype} of shape {shape}; expected (n, D) floating-point numbers."
            )
        data_bytes = status.st_size - file.tell()
        if nbytes != data_bytes or nbytes > MAX_EMBEDDING_BYTES:
            raise ValueError(
                f"its header declares {nbytes:,} bytes of data, but the file has {data_bytes:,}; "
                f"at most {MAX_EMBEDDING_BYTES:,} are supported."
            )
        return np.fromfile(file, dtype).reshape(shape, order="F" if column_major else "C")


def _names(text: str, path: Path) -> tuple[str, ...]:
    names = parse_json(text, f"{path}: names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its names are not a list of strings.")
    return tuple(names)

"""Stored image embeddings: a safetensors file with `image_embeds` (n, D) float16, and whose they are."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from serve_app.errors import ConfigError, InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import stored_embeddings
from serve_app.siglip.weights import read_header

TENSOR = "image_embeds"


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """Names of n images, their embeddings (n, D) float32, unit norm, and the fingerprint of the checkpoint that made them."""

    names: tuple[str, ...]
    image_embeds: FloatArray
    checkpoint: str | None


def write_embeddings(stored: StoredEmbeddings, path: Path) -> None:
    """Store embeddings as float16: half the bytes, and cosines right to 0.0005.

    Raises:
        InvalidRequest: The file cannot be written.
    """
    metadata = {"names": json.dumps(stored.names, ensure_ascii=False), "checkpoint": stored.checkpoint or ""}
    try:
        save_file({TENSOR: stored.image_embeds.astype(np.float16)}, path, metadata)
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(f"{path} cannot be written: {error}.") from error


def read_embeddings(path: Path) -> StoredEmbeddings:
    """Read embeddings from a file of ours, or from `.npy` or a safetensors file that others wrote.

    Raises:
        InvalidRequest: It cannot be read or holds something else.
    """
    try:
        if path.suffix == ".npy":
            values, metadata = np.load(path, allow_pickle=False), {}
        else:
            values, metadata = load_file(path)[TENSOR], read_header(path).metadata
        names = tuple(json.loads(metadata["names"])) if "names" in metadata else tuple(str(at) for at in range(len(values)))
    except KeyError as error:
        raise InvalidRequest(f"{path} holds no tensor {TENSOR}.") from error
    except (OSError, ValueError, TypeError, SafetensorError, ConfigError) as error:
        raise InvalidRequest(f"{path} cannot be read as .npy or safetensors: {error}.") from error
    if not isinstance(values, np.ndarray):
        raise InvalidRequest(f"{path} holds several arrays; expected one (n, D).")
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating) or len(names) != len(values):
        raise InvalidRequest(f"{path} holds {values.dtype} of the shape {values.shape}; expected (n, D) floating-point numbers.")
    return StoredEmbeddings(names, stored_embeddings(values), metadata.get("checkpoint") or None)

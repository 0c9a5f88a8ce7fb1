"""The similarity head's two scalars, straight from the safetensors.

Loading a checkpoint in bfloat16 rounds them too (a temperature of 117.9 becomes 119.5), so they are never taken from
a loaded model. Reading them needs neither torch nor the towers.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import WEIGHTS, weight_files

MAX_HEADER_BYTES = 100_000_000
"""Source: the safetensors format's own bound."""


@dataclass(frozen=True, slots=True)
class SimilarityHead:
    """What turns a cosine into a logit: `logit_scale` (already exponentiated) and `logit_bias`."""

    logit_scale: float
    logit_bias: float


def read_similarity_head(folder: Path) -> SimilarityHead:
    """Read the head of a checkpoint folder, in float32.

    Raises:
        ConfigError: One of the two scalars is not in the weights.
    """
    scale, bias = (_read_scalar(folder, name) for name in ("logit_scale", "logit_bias"))
    return SimilarityHead(logit_scale=float(np.exp(np.float32(scale))), logit_bias=float(bias))


def _read_scalar(folder: Path, name: str) -> np.float32:
    """Read one scalar without the `safetensors` package, whose numpy reader knows no bfloat16."""
    path = weight_files(folder).get(name, folder / WEIGHTS)
    header = read_header(path)
    if name not in header.tensors:
        raise ConfigError(f"{path} holds no {name}; without it scores cannot be computed. Is this a SigLIP checkpoint?")
    dtype, _, (begin, end) = header.tensors[name]
    with path.open("rb") as file:
        file.seek(header.start + begin)
        raw = file.read(end - begin)
    match dtype:
        case "F32" | "F16" | "F64":
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype])
        case "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        case _:
            raise ConfigError(f"{path} stores {name} as {dtype}; expected a floating-point scalar.")
    if not len(values):
        raise ConfigError(f"{path} ends before {name}; it was not written or downloaded to its end.")
    return np.float32(values[0])


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a safetensors file says of itself.

    Attributes:
        tensors: Of each tensor its dtype, shape, and first and last byte, counted from `start`.
        metadata: Texts that were written beside.
        start: Where the tensors' bytes begin in the file.
    """

    tensors: dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]
    metadata: dict[str, str]
    start: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file: an 8-byte length, then JSON.

    Source: https://github.com/huggingface/safetensors#format

    Raises:
        ConfigError: The file is missing or is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > MAX_HEADER_BYTES:
                raise ValueError("its header is longer than the format allows")
            content = json.loads(file.read(header_bytes))
        metadata = content.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no block")
        tensors = {name: (t["dtype"], tuple(t["shape"]), tuple(t["data_offsets"])) for name, t in content.items()}
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; it should hold weights.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {error}.") from error
    return SafetensorsHeader(tensors, metadata, 8 + header_bytes)

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
    """Read one scalar by the safetensors layout: an 8-byte header length, a JSON header, then the tensors' bytes.

    Not by the `safetensors` package: its numpy reader knows no bfloat16.
    Source: https://github.com/huggingface/safetensors#format
    """
    path = weight_files(folder).get(name, folder / WEIGHTS)
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > MAX_HEADER_BYTES:
                raise ValueError("its header is longer than the format allows")
            header = json.loads(file.read(header_bytes))
            begin, end = header[name]["data_offsets"]
            file.seek(8 + header_bytes + begin)
            raw = file.read(end - begin)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; it should hold {name}.") from error
    except KeyError as error:
        raise ConfigError(f"{path} holds no {name}; without it scores cannot be computed. Is this a SigLIP checkpoint?") from error
    except (OSError, ValueError, struct.error) as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {error}.") from error
    dtype = header[name]["dtype"]
    match dtype:
        case "F32" | "F16" | "F64":
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype])
        case "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        case _:
            raise ConfigError(f"{path} stores {name} as {dtype}; expected a floating-point scalar.")
    return np.float32(values[0])

"""The similarity head's two scalars, straight from the safetensors.

Loading a checkpoint in bfloat16 rounds them too (a temperature of 117.9 becomes 119.5), so they are never taken from
a loaded model. Reading them needs neither torch nor the towers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import WEIGHTS, weight_files
from serve_app.siglip.safetensors_files import read_tensors

MAX_SCALAR_BYTES = 64


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
    found = read_tensors(path, (name,), MAX_SCALAR_BYTES)
    if name not in found:
        raise ConfigError(f"{path} holds no {name}; without it scores cannot be computed. Is this a SigLIP checkpoint?")
    values = found[name].ravel()
    if values.size != 1 or not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values[0]):
        raise ConfigError(f"{path} stores {name} as something else than one finite floating-point number.")
    return np.float32(values[0])

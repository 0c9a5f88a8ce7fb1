"""Reads the similarity head's two scalars and the tensors' dtypes from a checkpoint's weights.

Loading a checkpoint in bfloat16 also rounds the scalars (a temperature of 117.9 becomes 119.5). So
they are read from the safetensors files instead of from a loaded model, which needs no torch. These
are the files that the towers are loaded from.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import WEIGHTS, WEIGHTS_INDEX, weight_files, weight_paths
from serve_app.siglip.safetensors_files import read_header, read_tensors

MAX_SCALAR_BYTES = 64


@dataclass(frozen=True, slots=True)
class SimilarityHead:
    """Maps a cosine to a logit by `logit_scale` (already exponentiated) and `logit_bias`."""

    logit_scale: float
    logit_bias: float


def read_similarity_head(folder: Path) -> SimilarityHead:
    """Read the head of a checkpoint folder, in float32.

    Raises:
        ConfigError: The weights lack one of the two scalars.
    """
    scale = _read_scalar(folder, "logit_scale")
    bias = _read_scalar(folder, "logit_bias")
    return SimilarityHead(logit_scale=float(np.exp(np.float32(scale))), logit_bias=float(bias))


def tensor_dtypes(folder: Path) -> dict[str, str]:
    """Return the safetensors dtype of every tensor of a checkpoint by name.

    Raises:
        ConfigError: A shard is missing, two shards contain the same tensor, or the index does not
            match its shards.
    """
    found: dict[str, Path] = {}
    dtypes: dict[str, str] = {}
    for path in weight_paths(folder):
        for name, (dtype, _, _) in read_header(path).tensors.items():
            if name in found:
                raise ConfigError(
                    f"{name} is in {found[name].name} and in {path}; download both files again."
                )
            found[name] = path
            dtypes[name] = dtype
    for name, path in weight_files(folder).items():
        if found.get(name) != path:
            raise ConfigError(
                f"{folder / WEIGHTS_INDEX} says that {name} is in {path.name}, but it is not; "
                "download both files again."
            )
    return dtypes


def _read_scalar(folder: Path, name: str) -> np.float32:
    """Read one scalar without the `safetensors` package, whose numpy reader lacks bfloat16."""
    path = weight_files(folder).get(name, folder / WEIGHTS)
    found = read_tensors(path, (name,), MAX_SCALAR_BYTES)
    if name not in found:
        raise ConfigError(
            f"{path} has no {name}, which scores need; check that this is a SigLIP checkpoint."
        )
    values = found[name].ravel()
    if (
        values.size != 1
        or not np.issubdtype(values.dtype, np.floating)
        or not np.isfinite(values[0])
    ):
        raise ConfigError(
            f"{path} stores {name} as something other than one finite floating-point number."
        )
    return np.float32(values[0])

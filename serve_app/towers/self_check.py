"""Checks a loaded tower by reference vectors if the checkpoint has them, else by invariants.

A checkpoint folder may contain `reference_vectors.safetensors`, as the demo checkpoint does: inputs
with their expected embeddings. Without it, embeddings must be finite, have unit norm, and differ
between different inputs. Text embeddings must also depend on the padding; they would not if the
tower got an attention mask or unpadded text.
"""

import math
from pathlib import Path

import numpy as np

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.inputs import FloatArray, ImageBatch, PreparedImage, collate
from serve_app.siglip.naflex import MIN_PATCHES
from serve_app.siglip.safetensors_files import read_tensors
from serve_app.towers.tower import ImageTower, TextTower
from serve_app.untrusted.bounded_files import read_text

REFERENCE_FILE = "reference_vectors.safetensors"
REFERENCE_PROMPTS = "reference_prompts.txt"
REFERENCE_TENSORS = ("pixel_values", "image_embeds", "text_embeds")
MAX_REFERENCE_BYTES = 256 * 2**20
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.99}
MIN_QUANTIZED_COSINE = 0.9
NORM_TOLERANCE = 1e-3
SAME_COSINE = 1 - 1e-6
"""Two embeddings with a larger cosine than this count as equal."""


def check_image_tower(tower: ImageTower) -> None:
    """Raise `ConfigError` if the vision tower's embeddings are wrong."""
    reference = _reference(tower.checkpoint)
    if reference is not None:
        embeds = tower.encode(ImageBatch(reference["pixel_values"]))
        _expect_close(
            "image",
            embeds,
            reference["image_embeds"],
            tower.runtime.dtype,
            tower.runtime.quantization,
        )
        return
    embeds = tower.encode(collate(probe_images(tower.checkpoint)))
    _expect_sound("image", embeds)


def check_text_tower(tower: TextTower) -> None:
    """Raise `ConfigError` if the embeddings of the text tower and its tokenizer are wrong."""
    reference = _reference(tower.checkpoint)
    if reference is not None:
        prompts = read_text(tower.checkpoint.folder / REFERENCE_PROMPTS).splitlines()
        embeds = tower.encode(prompts)
        _expect_close(
            "text",
            embeds,
            reference["text_embeds"],
            tower.runtime.dtype,
            tower.runtime.quantization,
        )
        return
    ids = tower.text_inputs.input_ids(["this is a photo of a cat.", "two dogs"])
    _expect_sound("text", tower.encode_ids(ids))

    # The number of tokens of the second prompt without its padding.
    length = int((ids[1] != ids[1, -1]).sum()) + 1
    if length < ids.shape[1]:
        unpadded = tower.encode_ids(ids[1:, :length])
        padded = tower.encode_ids(ids[1:])
        if float((unpadded * padded).sum()) > SAME_COSINE:
            raise ConfigError(
                "the text tower gives the same embedding with and without padding; it must attend "
                "to padding."
            )


def probe_images(checkpoint: Checkpoint, max_num_patches: int = MIN_PATCHES) -> list[PreparedImage]:
    """Return two different inputs for a checkpoint.

    For NaFlex, they have different grids, one of which has `max_num_patches` patches if this is a
    square number.
    """
    rng = np.random.default_rng(0)
    if checkpoint.image_size_px is not None:
        shape = (2, checkpoint.image_size_px, checkpoint.image_size_px, 3)
        return [PreparedImage(pixels) for pixels in rng.integers(0, 256, shape, np.uint8)]
    width = checkpoint.patch_size_px**2 * 3
    side = math.isqrt(max_num_patches)
    grids = ((side, side), (1, 12))
    return [
        PreparedImage(rng.integers(0, 256, (rows * columns, width), np.uint8), (rows, columns))
        for rows, columns in grids
    ]


def _reference(checkpoint: Checkpoint) -> dict[str, np.ndarray] | None:
    path: Path = checkpoint.folder / REFERENCE_FILE
    if not path.is_file():
        return None
    found = read_tensors(path, REFERENCE_TENSORS, MAX_REFERENCE_BYTES)
    if missing := [name for name in REFERENCE_TENSORS if name not in found]:
        raise ConfigError(f"{path} lacks {', '.join(missing)}; download the checkpoint again.")
    return found


def _expect_close(
    which: str, embeds: FloatArray, expected: FloatArray, dtype: str, quantization: str
) -> None:
    min_cosine = MIN_COSINE[dtype] if quantization == "none" else MIN_QUANTIZED_COSINE
    lowest = float((embeds * expected).sum(axis=1).min())
    if not lowest >= min_cosine:  # also refuses NaN
        raise ConfigError(
            f"the {which} tower's embeddings have a cosine of {lowest:.4f} to the stored "
            f"reference, below {min_cosine}."
        )


def _expect_sound(which: str, embeds: FloatArray) -> None:
    if not np.isfinite(embeds).all():
        raise ConfigError(f"the {which} tower gives NaN or infinite embeddings; try dtype float32.")
    if np.abs(np.linalg.norm(embeds, axis=1) - 1).max() > NORM_TOLERANCE:
        raise ConfigError(f"the {which} tower's embeddings do not have unit norm.")
    if float(embeds[0] @ embeds[1]) > SAME_COSINE:
        raise ConfigError(
            f"the {which} tower gives the same embedding for different inputs; its weights are not "
            "loaded correctly."
        )

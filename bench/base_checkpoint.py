"""Writes a base-size checkpoint with random weights: `python -m bench.base_checkpoint FOLDER`.

It has the shape of `google/siglip-base-patch16-224`
(https://huggingface.co/google/siglip-base-patch16-224/blob/main/config.json). The text tower has
the demo's tokenizer and so a smaller vocabulary, which does not concern images.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import SiglipConfig, SiglipModel, SiglipTokenizer

from serve_app.config.plugin import DEMO_CHECKPOINT
from tools.demo_training import checkpoint_files

IMAGE_SIZE_PX = 224
CONTEXT_LENGTH = 64
TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def build_base_checkpoint(folder: Path) -> Path:
    """Write the checkpoint and return its folder."""
    return build_checkpoint(folder, IMAGE_SIZE_PX, TOWER)


def build_checkpoint(folder: Path, image_size_px: int, tower: Mapping[str, int]) -> Path:
    """Write a checkpoint with towers of any shape, and return its folder.

    Args:
        folder: Where to write it.
        image_size_px: Side of an image.
        tower: Layer sizes of both towers, as transformers names them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(DEMO_CHECKPOINT / name, folder / name)
    vocab_size = len(SiglipTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    text = dict(tower) | {
        "vocab_size": vocab_size,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = dict(tower) | {"image_size": image_size_px, "patch_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(4.77)
        model.logit_bias.fill_(-12.9)
    model.save_pretrained(folder)
    checkpoint_files.write_processor(folder)
    _replace(
        folder / "preprocessor_config.json", size={"height": image_size_px, "width": image_size_px}
    )  # not the demo's
    _replace(folder / "tokenizer_config.json", model_max_length=CONTEXT_LENGTH)
    return folder


def _replace(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


if __name__ == "__main__":
    print(build_base_checkpoint(Path(sys.argv[1])))

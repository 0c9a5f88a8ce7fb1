"""The demo checkpoint's shape, tokenizer and processor files, in the Hugging Face layout."""

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import SiglipTokenizer

from serve_app.demo import scenes

IMAGE_SIZE_PX = 64
PATCH_SIZE_PX = 8
RESAMPLE = 3
"""Pillow's bicubic filter, like every SigLIP (v1) checkpoint of Google."""
CONTEXT_LENGTH = 16
"""In tokens, like `google/siglip-so400m-patch14-224`; every prompt of the demo is shorter."""
TEMPLATES = (
    "this is a photo of {label}.",
    "{label}",
    "a {label}",
    "a photo of a {label}.",
    "a photo of {label}.",
    "this is a photo of a {label}.",
    "a picture of a {label}",
    "an image with a {label}",
    "a drawing of a {label} on a textured background",
    "there is something {label} in the picture",
)
"""Prompt templates of the training; the first is the service's default template."""
FURTHER_WORDS = (
    "small large one two three and the objects shapes colour color background left right top bottom"
)
CHARACTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9"

_TOWER = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}


def model_config(vocab_size: int) -> dict[str, Any]:
    """Return the keyword arguments of `transformers.SiglipConfig`."""
    text = _TOWER | {
        "num_hidden_layers": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "vocab_size": vocab_size,
        "projection_size": 128,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = _TOWER | {
        "num_hidden_layers": 4,
        "image_size": IMAGE_SIZE_PX,
        "patch_size": PATCH_SIZE_PX,
    }
    return {"text_config": text, "vision_config": vision}


def write_tokenizer(out: Path) -> SiglipTokenizer:
    """Train a SentencePiece tokenizer on the demo's prompts, write its files and load it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus()),
        model_writer=model,
        vocab_size=256,
        model_type="unigram",
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    (out / "spiece.model").write_bytes(model.getvalue())
    settings = {
        "do_lower_case": True,
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "model_input_names": ["input_ids"],
        "model_max_length": CONTEXT_LENGTH,
        "processor_class": "SiglipProcessor",
        "tokenizer_class": "SiglipTokenizer",
        "sp_model_kwargs": {},
        "clean_up_tokenization_spaces": True,
    }
    _write_json(out / "tokenizer_config.json", settings)
    return SiglipTokenizer.from_pretrained(out)


def _corpus() -> list[str]:
    attributes = scenes.attribute_labels()
    combinations = scenes.combination_labels(scenes.SEEN)
    labels = attributes + combinations + scenes.pair_labels()
    corpus = [
        template.format(label=label).replace(".", "") for label in labels for template in TEMPLATES
    ]
    corpus += [FURTHER_WORDS] * 20
    corpus += [CHARACTERS] * 5
    return corpus


def write_processor(out: Path) -> None:
    """Write `preprocessor_config.json` like that of the released checkpoints."""
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": None,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": RESAMPLE,
        "size": {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
    }
    _write_json(out / "preprocessor_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

"""Tiny checkpoints with random weights, in the layout that the hub's repositories have, one for
each family.

They are built, not committed. Shapes differ where the released ones do: SigLIP's context length
here is 16, as that of `google/siglip-so400m-patch14-224`, the others' 64.
"""

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

FAMILIES = ("siglip", "siglip2", "siglip2-naflex")
LABELS = ("cat", "Red Bicycle", "t-shirt", "snow_leopard", "Mountain lake")
CORPUS = [
    "a photo of a cat",
    "this is a photo of a dog",
    "a photo of many cars",
    "a low resolution photo of the red bicycle",
    "sunset over the sea , mountain lake , people walking in the street , "
    "a bowl of fruit on a table",
    "this is a photo of a t shirt",
    "this is a photo of a snow leopard",
    "this is a photo of a mountain lake",
    "this is a photo of red bicycle , an image of something , "
    "a blurry picture of a background , text .",
    "cat dog car bicycle sunset sea mountain street fruit table "
    "person woman man child tree house bird horse",
] * 40
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LOGIT_SCALE = 4.77
LOGIT_BIAS = -12.9
"""Near the released values: exp(4.77) = 117.9."""


def build(family: str, folder: Path) -> Path:
    """Write a checkpoint of a family to a folder and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    {"siglip": _build_siglip, "siglip2": _build_siglip2, "siglip2-naflex": _build_naflex}[family](
        folder
    )
    return folder


def _build_siglip(folder: Path) -> None:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=buffer, minloglevel=2,
        vocab_size=400, model_type="unigram", hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(buffer.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue()).get_piece_size()
    text = TOWER | {
        "vocab_size": size,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    _save(
        SiglipModel(
            SiglipConfig(
                text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}
            )
        ),
        folder,
    )
    tokenizer = {
        "do_lower_case": True, "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
        "model_input_names": ["input_ids"], "model_max_length": 16,
        "tokenizer_class": "SiglipTokenizer", "sp_model_kwargs": {},
        "clean_up_tokenization_spaces": True,
    }  # fmt: skip
    _write(folder / "tokenizer_config.json", tokenizer)
    _write(
        folder / "preprocessor_config.json",
        _image_processor("SiglipImageProcessor", resample=3, size={"height": 32, "width": 32}),
    )


def _build_siglip2(folder: Path) -> None:
    size = _gemma_tokenizer(folder, "SiglipProcessor")
    text = TOWER | {
        "vocab_size": size,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    _save(
        SiglipModel(
            SiglipConfig(
                text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}
            )
        ),
        folder,
    )
    _write(
        folder / "preprocessor_config.json",
        _image_processor("SiglipImageProcessor", resample=2, size={"height": 32, "width": 32}),
    )


def _build_naflex(folder: Path) -> None:
    size = _gemma_tokenizer(folder, "Siglip2Processor")
    text = TOWER | {
        "vocab_size": size,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    _save(
        Siglip2Model(
            Siglip2Config(
                text_config=text, vision_config=TOWER | {"num_patches": 16, "patch_size": 16}
            )
        ),
        folder,
    )
    processor = _image_processor(
        "Siglip2ImageProcessorFast", resample=2, patch_size=16, max_num_patches=256
    )
    _write(folder / "preprocessor_config.json", processor)


def _gemma_tokenizer(folder: Path, processor: str) -> int:
    """Write SigLIP 2's tokenizer: no lower-casing of its own, `GemmaTokenizer` in its settings,
    padding fixed at 64.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"] + [f"<0x{i:02X}>" for i in range(256)]
    cased = [
        *CORPUS,
        *(c.upper() for c in CORPUS),
        *(c.title() for c in CORPUS),
    ]  # so that missing lower-casing shows in the ids
    tokenizer.train_from_iterator(
        cased, trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    )
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < 5]
    eos = {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, eos],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}}, eos, {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
    }  # fmt: skip
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False), encoding="utf-8"
    )
    settings = {
        "add_bos_token": False, "add_eos_token": True, "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>", "do_lower_case": True,
        "model_input_names": ["input_ids"], "model_max_length": 10**30,
        "padding_side": "right", "processor_class": processor, "tokenizer_class": "GemmaTokenizer",
    }  # fmt: skip
    _write(folder / "tokenizer_config.json", settings)
    return len(content["model"]["vocab"])


def _image_processor(kind: str, **settings: Any) -> dict[str, Any]:
    return {
        "image_processor_type": kind, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "do_convert_rgb": None,
    } | settings  # fmt: skip


def _save(model: PreTrainedModel, folder: Path) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
        model.logit_scale.fill_(LOGIT_SCALE)
        model.logit_bias.fill_(LOGIT_BIAS)
    model.eval().save_pretrained(folder)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")

"""The two towers: batches of images, or prompts, to embeddings.

Each tower is loaded alone from the whole checkpoint: for siglip2-so400m the image tower is 817 MiB
of 2,167 in float16. Outputs are float32 and of unit norm whatever the tower ran in.

Not here: which files make a checkpoint (`checkpoints.py`), token ids (`tokenizer.py`), scores
(`scoring.py`).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    Siglip2TextModel,
    Siglip2VisionModel,
    SiglipTextModel,
    SiglipVisionModel,
)
from transformers.utils import logging as hf_logging

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Checkpoint, Family
from serve_app.siglip.inputs import FloatArray, ImageBatch
from serve_app.siglip.precision import Precision, Runtime
from serve_app.siglip.scoring import unit_norm
from serve_app.siglip.weights import tensor_dtypes
from serve_app.towers.runtime import DTYPES, resolve_runtime
from serve_app.towers.tokenizer import SiglipTextInputs

UNQUANTIZED = ("vision_model.head", "text_model.head", "head", "patch_embedding")
"""Modules that bitsandbytes must leave alone. The NaFlex patch embedding is a linear layer whose
weight dtype the pixels are cast to: quantised to 4 bit, the image embedding is noise (cosine 0)
without an error; to 8 bit, it crashes. The pooling heads lose accuracy for almost no memory."""
TEXT_BATCH = 64
"""Prompts per forward pass of the text tower."""
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
"""Dtypes in safetensors files that are weights; integers would be a quantized checkpoint's, or
positions."""
PACKED_ROWS = 32
PACKED_COLUMNS = 64
"""Multiples of rows and columns that bitsandbytes' fast 4-bit layout on CPUs needs.
Source: `_convert_weight_packed_for_cpu` of bitsandbytes 0.50, whose block size is 64."""


class ImageTower:
    """The vision tower of a checkpoint, on one device."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision = Precision()) -> None:
        self.checkpoint = checkpoint
        kind = Siglip2VisionModel if checkpoint.family is Family.NAFLEX else SiglipVisionModel
        self._model = _load_tower(kind, checkpoint, resolve_runtime(precision, checkpoint.family))
        self.runtime = _read_back(self._model)
        _check_patch_embedding(self._model, checkpoint)
        # rescaling and normalising in one multiply and one add
        self._factor = torch.tensor(
            checkpoint.pixel_scale, dtype=torch.float32, device=self.runtime.device
        )
        self._offset = torch.tensor(
            checkpoint.pixel_offset, dtype=torch.float32, device=self.runtime.device
        )

    @torch.inference_mode()
    def encode(self, batch: ImageBatch) -> FloatArray:
        """Return image_embeds (B, D) float32, unit norm.

        A row of an image that the model cannot represent may hold NaN; `encode` does not hide it.
        """
        output = self._model(**self._inputs(batch)).pooler_output
        return unit_norm(output.float().cpu().numpy())

    def _inputs(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        device = self.runtime.device
        dtype = DTYPES[self.runtime.dtype]
        pixels = torch.tensor(batch.pixel_values, device=device)
        if batch.spatial_shapes is None or batch.pixel_attention_mask is None:
            channels_last = pixels.float() * self._factor + self._offset
            return {"pixel_values": channels_last.permute(0, 3, 1, 2).contiguous().to(dtype)}
        mask = torch.tensor(batch.pixel_attention_mask, device=device)
        repeat = pixels.shape[-1] // 3
        patches = pixels.float() * self._factor.repeat(repeat) + self._offset.repeat(repeat)
        # padding is masked out of attention and pooling; zeros keep the tensor equal to the
        # reference processor's
        patches = (patches * mask[..., None]).to(dtype)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": mask,
            "spatial_shapes": torch.tensor(batch.spatial_shapes),
        }


class TextTower:
    """The text tower of a checkpoint with its tokenizer, on one device."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision = Precision()) -> None:
        self.checkpoint = checkpoint
        self.text_inputs = SiglipTextInputs(checkpoint)
        kind = Siglip2TextModel if checkpoint.family is Family.NAFLEX else SiglipTextModel
        self._model = _load_tower(kind, checkpoint, resolve_runtime(precision, checkpoint.family))
        self.runtime = _read_back(self._model)

    def encode(self, prompts: Sequence[str]) -> FloatArray:
        """Return text_embeds (n, D) float32, unit norm, of finished prompts.

        Prompts of the same token ids are encoded once, so that their embeddings are exactly equal.
        """
        unique, places = np.unique(self.text_inputs.input_ids(prompts), axis=0, return_inverse=True)
        return self.encode_ids(unique)[places.reshape(-1)]

    @torch.inference_mode()
    def encode_ids(self, input_ids: np.ndarray[Any, np.dtype[np.int64]]) -> FloatArray:
        """Return text_embeds (n, D) float32, unit norm, of token ids (n, L); no attention mask, as
        in training.
        """
        parts = [
            input_ids[start : start + TEXT_BATCH] for start in range(0, len(input_ids), TEXT_BATCH)
        ]
        outputs = [
            self._model(input_ids=torch.tensor(part, device=self.runtime.device)).pooler_output
            for part in parts
        ]
        return unit_norm(torch.cat(outputs).float().cpu().numpy())


def _load_tower(
    kind: type[PreTrainedModel], checkpoint: Checkpoint, runtime: Runtime
) -> PreTrainedModel:
    dtypes = tensor_dtypes(checkpoint.folder)
    options: dict[str, Any] = {
        "dtype": DTYPES[runtime.dtype],
        "attn_implementation": runtime.attention,
    }
    if runtime.quantization != "none":
        options |= {
            "quantization_config": _quantization(runtime),
            "device_map": {"": runtime.device},
        }
    try:
        with _quiet_transformers():
            model, info = kind.from_pretrained(
                checkpoint.folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # transformers checks a configuration with exceptions and assertions of many libraries
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"{reason} is missing or not known"
        if (
            "ignore_mismatched_sizes" in reason
        ):  # transformers prints the tensors apart from the exception
            reason = "they have other shapes than config.json describes; use the config.json that belongs to them"
        raise ConfigError(
            f"the weights in {checkpoint.folder} cannot be loaded as {kind.__name__}: {reason}"
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(
        str(key) for key in info.get("mismatched_keys", ())
    )
    if missing:
        raise ConfigError(
            f"{checkpoint.folder / 'model.safetensors'} lacks {len(missing)} tensors of {kind.__name__}, first {missing[0]}."
        )
    _check_names(model, dtypes, checkpoint)
    model.config.return_dict = (
        True  # config.json may say otherwise, which changes the type of outputs and nothing else
    )
    # parameters keep requires_grad, though no gradient is ever asked for: without it torch.matmul
    # copies the pooling head's weights for
    # every image of a batch (`should_fold` in ATen's LinearAlgebra.cpp), a fifth of a base-size
    # tower's time on a CPU
    model.eval()
    if runtime.quantization == "none":
        return model.to(runtime.device)
    _avoid_packing(model)
    return model


def _check_names(model: PreTrainedModel, dtypes: dict[str, str], checkpoint: Checkpoint) -> None:
    """Refuse weights of the tower that its configuration has no place for: transformers would leave
    them out.

    Args:
        model: The loaded tower.
        dtypes: Names and dtypes of all tensors in the files.
        checkpoint: Where they are, for the message.
    """
    prefix = f"{model.base_model_prefix}."
    own = {
        name for name in dtypes if name.startswith(prefix) and not name.endswith(".position_ids")
    }
    expected = {prefix + name for name, _ in model.named_parameters()}
    if unexpected := sorted(own - expected):
        raise ConfigError(
            f"the weights in {checkpoint.folder} have {len(unexpected)} tensors that config.json has no place for, first "
            f"{unexpected[0][:200]}; without them the model would be another one. Use the config.json that belongs to the weights."
        )
    if twice := sorted(
        name for name in dtypes if name.startswith(prefix) and name.removeprefix(prefix) in dtypes
    ):
        raise ConfigError(
            f"the weights in {checkpoint.folder} hold {twice[0][:200]} also without {prefix!r} before it; only one of them can be meant."
        )
    if integers := sorted(name for name in own if dtypes[name] not in FLOATS):
        raise ConfigError(
            f"the weights in {checkpoint.folder} hold {integers[0][:200]} as {dtypes[integers[0]]}; use a checkpoint with "
            "floating-point weights, and set quantization in the service's configuration."
        )


def _avoid_packing(model: PreTrainedModel) -> None:
    """Keep 4-bit layers of odd sizes from the fast layout on CPUs, which fails for them in the
    first forward pass.

    So400m, with 4,304 hidden units, is such a model.
    """
    for module in model.modules():
        if not hasattr(
            module, "support_avx512bf16_for_cpu"
        ):  # an attribute of bitsandbytes' 4-bit layers only
            continue
        if module.out_features % PACKED_ROWS or module.in_features % PACKED_COLUMNS:
            module.support_avx512bf16_for_cpu = False


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from reporting the other tower's tensors as unexpected, and CLIP's token
    ids left in hub configs.
    """
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _quantization(runtime: Runtime) -> BitsAndBytesConfig:
    skipped = list(UNQUANTIZED)
    if runtime.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=DTYPES[runtime.dtype],
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=skipped,
    )


def _read_back(model: PreTrainedModel) -> Runtime:
    """Return what a loaded model runs as, by the model itself and not by what was asked for."""
    bits = next(
        (f"{n}bit" for n in (8, 4) if getattr(model, f"is_loaded_in_{n}bit", False)), "none"
    )
    # the first parameter may be a quantised one, which has an integer dtype
    dtype = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return Runtime(
        model.device.type,
        str(dtype).removeprefix("torch."),
        str(model.config._attn_implementation),
        bits,
    )


def _check_patch_embedding(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Refuse a patch embedding that is not floating point: pixels would be cast to its dtype."""
    for name, parameter in model.named_parameters():
        if "patch_embedding.weight" in name and not parameter.dtype.is_floating_point:
            raise ConfigError(
                f"the patch embedding of {checkpoint.name} was quantised to {parameter.dtype}; pixels would be cast to it and "
                "every embedding would be noise. Keep patch_embedding in the quantiser's skip list."
            )

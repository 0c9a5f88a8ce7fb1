"""Loading one tower from the files of a checkpoint, in a given precision.

What cannot run as planned, or would run as another model, is refused here.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.precision import Precision
from serve_app.siglip.weights import tensor_dtypes
from serve_app.towers.runtime import DTYPES, check_runs_here

UNQUANTIZED = ("vision_model.head", "text_model.head", "head", "patch_embedding")
"""Modules that bitsandbytes must not quantize.

The NaFlex patch embedding is a linear layer, and pixels are cast to the dtype of its weights. In
4bit the image embedding is noise (cosine 0) without an error; in 8bit it crashes. The pooling heads
lose accuracy and would save almost no memory.
"""
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
"""Dtypes of weights in safetensors files; integers are positions or a quantized checkpoint."""
PACKED_ROWS = 32
PACKED_COLUMNS = 64
"""Multiples of rows and columns that bitsandbytes' fast 4-bit layout on CPUs needs.

Source: `_convert_weight_packed_for_cpu` of bitsandbytes 0.50, whose block size is 64.
"""


def load_tower(
    kind: type[PreTrainedModel], checkpoint: Checkpoint, precision: Precision
) -> PreTrainedModel:
    """Load one tower from a checkpoint's files, in evaluation mode and on its device.

    Raises:
        ConfigError: This process cannot run the precision, or the files do not hold the tower.
    """
    check_runs_here(precision)
    dtypes = tensor_dtypes(checkpoint.folder)
    model = _from_files(kind, checkpoint, _load_options(precision))
    _check_names(model, dtypes, checkpoint)

    # config.json may say otherwise, which changes the type of outputs and nothing else
    model.config.return_dict = True
    # Parameters keep requires_grad although nothing asks for a gradient: without it torch.matmul
    # copies the pooling head's weights for every image of a batch (`should_fold` in ATen's
    # LinearAlgebra.cpp), a fifth of a base-size tower's time on a CPU.
    model.eval()
    if precision.quantization == "none":
        model = model.to(precision.device)
    else:
        _avoid_packing(model)

    _check_precision(model, precision)
    _check_patch_embedding(model, checkpoint)
    return model


def _load_options(precision: Precision) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that apply a precision."""
    options: dict[str, Any] = {
        "dtype": DTYPES[precision.dtype],
        "attn_implementation": precision.attention,
    }
    if precision.quantization == "none":
        return options
    return options | {
        "quantization_config": _quantization(precision),
        "device_map": {"": precision.device},
    }


def _from_files(
    kind: type[PreTrainedModel], checkpoint: Checkpoint, options: dict[str, Any]
) -> PreTrainedModel:
    """Load a tower from its files; refuse files that lack tensors of it or hold other shapes."""
    try:
        with _quiet_transformers():
            model, info = kind.from_pretrained(
                checkpoint.folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # transformers raises exceptions and assertions of many libraries
        raise ConfigError(
            f"the weights in {checkpoint.folder} cannot be loaded as {kind.__name__}: "
            f"{_load_failure(error)}"
        ) from error

    mismatched = [str(key) for key in info.get("mismatched_keys", ())]
    missing = sorted(info["missing_keys"]) + sorted(mismatched)
    if missing:
        raise ConfigError(
            f"{checkpoint.folder / 'model.safetensors'} lacks {len(missing)} tensors of "
            f"{kind.__name__}, first {missing[0]}."
        )
    return model


def _load_failure(error: Exception) -> str:
    """Return in one line why transformers could not load a tower."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        return f"{reason} is missing or not known"
    if "ignore_mismatched_sizes" in reason:  # the tensors are printed, and not in the exception
        return (
            "they have other shapes than config.json describes; "
            "use the config.json that belongs to them"
        )
    return reason


def _check_names(model: PreTrainedModel, dtypes: dict[str, str], checkpoint: Checkpoint) -> None:
    """Refuse weights that the tower's configuration has no place for.

    transformers would leave them out.

    Args:
        model: The loaded tower.
        dtypes: Names and dtypes of all tensors in the files.
        checkpoint: The checkpoint that a message names.
    """
    prefix = f"{model.base_model_prefix}."
    own = {
        name for name in dtypes if name.startswith(prefix) and not name.endswith(".position_ids")
    }
    expected = {prefix + name for name, _ in model.named_parameters()}
    if unexpected := sorted(own - expected):
        raise ConfigError(
            f"the weights in {checkpoint.folder} have {len(unexpected)} tensors that config.json "
            f"has no place for, first {unexpected[0][:200]}; without them the model would be "
            "another one. Use the config.json that belongs to the weights."
        )
    if twice := sorted(
        name for name in dtypes if name.startswith(prefix) and name.removeprefix(prefix) in dtypes
    ):
        raise ConfigError(
            f"the weights in {checkpoint.folder} hold {twice[0][:200]} also without {prefix!r} "
            "before it; only one of them can be meant."
        )
    if integers := sorted(name for name in own if dtypes[name] not in FLOATS):
        raise ConfigError(
            f"the weights in {checkpoint.folder} hold {integers[0][:200]} as "
            f"{dtypes[integers[0]]}; use a checkpoint with floating-point weights, and set "
            "quantization in the service's configuration."
        )


def _avoid_packing(model: PreTrainedModel) -> None:
    """Keep 4-bit layers of odd sizes from the fast layout on CPUs.

    It fails for them in the first forward pass. So400m, with 4,304 hidden units, is such a model.
    """
    for module in model.modules():
        # only bitsandbytes' 4-bit layers have this attribute
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        if module.out_features % PACKED_ROWS or module.in_features % PACKED_COLUMNS:
            module.support_avx512bf16_for_cpu = False


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers while it loads.

    It reports the other tower's tensors as unexpected, and CLIP's token ids left in hub configs.
    """
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _quantization(precision: Precision) -> BitsAndBytesConfig:
    skipped = list(UNQUANTIZED)
    if precision.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=DTYPES[precision.dtype],
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=skipped,
    )


def _check_precision(model: PreTrainedModel, precision: Precision) -> None:
    """Refuse a loaded model that does not run as it was planned."""
    found = read_back(model)
    if found != precision:
        raise ConfigError(
            f"the tower was loaded as {found}, and {precision} was planned; "
            "set device, dtype, attention and quantization to values that work together."
        )


def read_back(model: PreTrainedModel) -> Precision:
    """Return what a loaded model runs as, read from the model itself."""
    loaded = (f"{n}bit" for n in (8, 4) if getattr(model, f"is_loaded_in_{n}bit", False))
    # the first parameter may be a quantized one, which has an integer dtype
    dtype = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return Precision(
        device=model.device.type,
        dtype=str(dtype).removeprefix("torch."),
        attention=str(model.config._attn_implementation),
        quantization=next(loaded, "none"),
    )


def _check_patch_embedding(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Refuse a patch embedding that is not floating point: pixels would be cast to its dtype."""
    for name, parameter in model.named_parameters():
        if "patch_embedding.weight" in name and not parameter.dtype.is_floating_point:
            raise ConfigError(
                f"the patch embedding of {checkpoint.name} was quantised to {parameter.dtype}; "
                "pixels would be cast to it and every embedding would be noise. "
                "Keep patch_embedding in the quantiser's skip list."
            )

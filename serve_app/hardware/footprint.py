"""Bytes of a tower: weights in every dtype and quantization, and activations of a batch.

Weights are exact arithmetic, checked against real models. Activations are an estimate of the peak
in inference mode; `bench/gpu.py` compares it with `torch.cuda.max_memory_allocated`.
"""

from dataclasses import dataclass

from serve_app.siglip.architecture import CHANNELS, Architecture, Parameters
from serve_app.siglip.precision import PROCESS_BYTES, Precision

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
NF4_BLOCK = 64
NF4_NESTED_BLOCK = 256
"""Weights that share one scale, and scales that share another with `bnb_4bit_use_double_quant`.

Source: bitsandbytes' `functional.quantize_4bit` and transformers' `BitsAndBytesConfig`.
"""
HEADROOM = 0.2
"""Fraction of a replica's memory that is kept free for fragmentation and for what the estimate
misses."""
PROMPTS_PER_PASS = 64
"""Prompts in the text tower's largest batch (`towers/tower.py`, `TEXT_BATCH`)."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of one replica in bytes.

    Attributes:
        weights: Parameters and their quantization scales.
        activations: Peak of the largest batch.
        process: Memory of the process besides its tensors.
    """

    weights: int
    activations: int
    process: int

    @property
    def needed(self) -> int:
        """The sum with the headroom."""
        return int((self.weights + self.activations + self.process) / (1 - HEADROOM))


def weight_bytes(parameters: Parameters, dtype: str, quantization: str) -> int:
    """Return the bytes of a tower's weights.

    8bit stores one float32 scale for each output row. 4bit stores one byte for 64 weights and a
    float32 for 256 of those bytes.
    """
    other = parameters.other * DTYPE_BYTES[dtype]
    match quantization:
        case "8bit":
            return parameters.linear + 4 * parameters.linear_rows + other
        case "4bit":
            scales = parameters.linear / NF4_BLOCK
            return int(parameters.linear / 2 + scales + 4 * scales / NF4_NESTED_BLOCK) + other
        case _:
            return parameters.linear * DTYPE_BYTES[dtype] + other


def image_footprint(
    shape: Architecture,
    precision: Precision,
    batch_size: int,
    max_num_patches: int,
    process_bytes: int = PROCESS_BYTES,
) -> Footprint:
    """Return what a replica of the vision tower needs.

    Args:
        shape: Shape of the checkpoint.
        precision: What the tower runs as.
        batch_size: Images in one forward pass.
        max_num_patches: Maximum number of patches of a NaFlex image.
        process_bytes: See `Footprint.process`; 0 on a CPU.
    """
    dtype = precision.dtype
    tokens = shape.image_tokens(max_num_patches)
    layers = _layer_bytes(shape.vision.hidden_size, shape.vision.intermediate_size, tokens, dtype)
    if precision.attention == "eager":  # scores, softmax in float32 and its cast
        layers += shape.vision.num_attention_heads * tokens**2 * (4 + DTYPE_BYTES[dtype])
    # uint8, and three float32 copies while they are normalised and laid out
    pixels = tokens * shape.patch_size_px**2 * CHANNELS * (1 + 3 * 4 + DTYPE_BYTES[dtype])
    weights = weight_bytes(shape.vision_parameters, dtype, precision.quantization)
    return Footprint(weights, batch_size * max(layers, pixels), process_bytes)


def text_footprint(
    shape: Architecture, precision: Precision, process_bytes: int = PROCESS_BYTES
) -> Footprint:
    """Return what a replica of the text tower needs."""
    text = shape.text
    layers = _layer_bytes(
        text.hidden_size, text.intermediate_size, shape.context_length, precision.dtype
    )
    weights = weight_bytes(shape.text_parameters, precision.dtype, precision.quantization)
    return Footprint(weights, PROMPTS_PER_PASS * layers, process_bytes)


def _layer_bytes(width: int, mlp_width: int, tokens: int, dtype: str) -> int:
    """Return the peak of one sequence in a layer.

    That is residual, norm and the MLP's two inner tensors, or q, k, v and copies.
    """
    return tokens * (4 * width + 2 * mlp_width) * DTYPE_BYTES[dtype]

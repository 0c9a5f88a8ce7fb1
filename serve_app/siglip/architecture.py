"""The architecture of a checkpoint's two towers, with their parameters and FLOPs.

An architecture is read from `config.json`, or for released checkpoints from the table in
`released.py`; neither needs torch or the weights. Keys that `config.json` omits have the defaults
of transformers' `SiglipVisionConfig` and `SiglipTextConfig`.

Not here: the size in bytes for a dtype (`hardware/footprint.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import DEFAULT_CONTEXT_LENGTH, Family

CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Parameters:
    """Number of parameters of a tower, grouped by how quantization stores them.

    Attributes:
        linear: Weights of the linear modules in the encoder layers. Only these are quantized by
            bitsandbytes.
        linear_rows: Total output rows of those modules; 8-bit stores one float32 scale per row.
        other: All other parameters: biases, norms, embeddings and the pooling head.
    """

    linear: int
    linear_rows: int
    other: int

    @property
    def total(self) -> int:
        """All parameters of the tower."""
        return self.linear + self.other


@dataclass(frozen=True, slots=True)
class Encoder:
    """A stack of transformer layers, with the names of transformers' configuration."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int

    @property
    def layer_weights(self) -> int:
        """Number of weights in one layer's six linear modules: q, k, v, out, fc1 and fc2."""
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size

    def parameters(self, other: int) -> Parameters:
        """Return the parameters of a tower: this stack, and `other` ones outside it."""
        layers = self.num_hidden_layers
        width = self.hidden_size
        rows = 5 * width + self.intermediate_size
        norms = 4 * width  # two layer norms, weight and bias
        return Parameters(
            layers * self.layer_weights, layers * rows, layers * (rows + norms) + 2 * width + other
        )

    def flops(self, tokens: int) -> int:
        """Return the FLOPs of one sequence's matrix products; a multiply-add counts as two."""
        attention = 2 * 2 * tokens**2 * self.hidden_size
        return self.num_hidden_layers * (2 * tokens * self.layer_weights + attention)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The architecture of a checkpoint.

    Attributes:
        family: The kind of SigLIP.
        vision: Layers of the vision tower.
        text: Layers of the text tower.
        patch_size_px: Patch side in pixels.
        image_size_px: Side of the square input in pixels; None for NaFlex.
        num_patches: Number of learned positions. NaFlex resizes their grid to each image.
        vocab_size: Rows of the token embedding.
        context_length: Number of tokens that every text is padded to.
        embedding_width: D of both towers.
    """

    family: Family
    vision: Encoder
    text: Encoder
    patch_size_px: int
    image_size_px: int | None
    num_patches: int
    vocab_size: int
    context_length: int
    embedding_width: int

    @property
    def vision_parameters(self) -> Parameters:
        """Parameters of `SiglipVisionModel` or `Siglip2VisionModel`, including the pooling head."""
        width = self.vision.hidden_size
        mlp = self.vision.intermediate_size
        patches = self.patch_size_px**2 * CHANNELS * width + width
        pooling_attention = 4 * width**2 + 4 * width + width  # in_proj, out_proj and the probe
        pooling_mlp = 2 * width * mlp + mlp + width
        return self.vision.parameters(
            patches + self.num_patches * width + pooling_attention + pooling_mlp + 2 * width
        )

    @property
    def text_parameters(self) -> Parameters:
        """Parameters of `SiglipTextModel` or `Siglip2TextModel`."""
        width = self.text.hidden_size
        head = width * self.embedding_width + self.embedding_width
        return self.text.parameters((self.vocab_size + self.context_length) * width + head)

    @property
    def total_parameters(self) -> int:
        """Parameters of both towers, `logit_scale` and `logit_bias`."""
        return self.vision_parameters.total + self.text_parameters.total + 2

    def image_tokens(self, max_num_patches: int) -> int:
        """Return the maximum number of patches of an image; only NaFlex has a choice."""
        return max_num_patches if self.image_size_px is None else self.num_patches

    def image_flops(self, max_num_patches: int = 256) -> int:
        """Return the FLOPs of one image in the vision tower."""
        tokens = self.image_tokens(max_num_patches)
        width = self.vision.hidden_size
        embedding = 2 * tokens * self.patch_size_px**2 * CHANNELS * width
        # The pooling head has a single query: keys and values are computed for every token, but
        # attention, projection and MLP for one.
        pooling = 2 * (
            2 * tokens * width**2
            + 2 * tokens * width
            + 2 * width**2
            + 2 * width * self.vision.intermediate_size
        )
        return self.vision.flops(tokens) + embedding + pooling

    def text_flops(self) -> int:
        """Return the FLOPs of one prompt in the text tower."""
        return (
            self.text.flops(self.context_length) + 2 * self.text.hidden_size * self.embedding_width
        )


def read_architecture(config: Mapping[str, Any], family: Family) -> Architecture:
    """Return the architecture in a `config.json`; missing keys have transformers' defaults.

    Raises:
        ConfigError: A value is not a number of at least 1.
    """
    try:
        return _read(config, family)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"config.json does not describe two valid towers: {error}.") from error


def _read(config: Mapping[str, Any], family: Family) -> Architecture:
    vision = config.get("vision_config") or {}
    text = config.get("text_config") or {}
    patch_size_px = int(vision.get("patch_size", 16))
    image_size_px = int(vision.get("image_size", 224))
    if family is Family.NAFLEX:
        num_patches = int(vision.get("num_patches", 256))
    else:
        num_patches = (image_size_px // patch_size_px) ** 2
    text_encoder = _encoder(text)

    return Architecture(
        family=family,
        vision=_encoder(vision),
        text=text_encoder,
        patch_size_px=patch_size_px,
        image_size_px=None if family is Family.NAFLEX else image_size_px,
        num_patches=num_patches,
        vocab_size=int(text.get("vocab_size", 32_000)),
        context_length=int(text.get("max_position_embeddings", DEFAULT_CONTEXT_LENGTH)),
        embedding_width=int(text.get("projection_size") or text_encoder.hidden_size),
    )


def _encoder(config: Mapping[str, Any]) -> Encoder:
    defaults = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    values = {key: int(config.get(key, default)) for key, default in defaults.items()}
    for key, value in values.items():
        if value < 1:
            raise ValueError(f"{key} is {value}")
    return Encoder(**values)

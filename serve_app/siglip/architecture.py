"""The shape of a checkpoint's two towers and what follows from it: parameters and FLOPs. No torch,
no weights.

A shape comes from `config.json`, or for released checkpoints from the table in `released.py`. What
a configuration leaves out is what transformers' `SiglipVisionConfig` and `SiglipTextConfig` leave
it to.

Not here: how many bytes that is in some dtype (`hardware/footprint.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import DEFAULT_CONTEXT_LENGTH, Family

CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters of a tower by what quantisation does to them.

    Attributes:
        linear: Weights of the encoder layers' linear modules: the only ones that bitsandbytes
            stores in fewer bits.
        linear_rows: Output rows of those modules together; 8-bit keeps one float32 scale for each.
        other: Everything else: biases, norms, embeddings, the pooling head.
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
    """A stack of transformer layers: `hidden_size`, `num_hidden_layers`, `num_attention_heads`,
    `intermediate_size`.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's six linear modules: q, k, v and out, fc1 and fc2."""
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size

    def parameters(self, other: int) -> Parameters:
        """Return the stack's parameters with `other` ones of the tower around it."""
        layers = self.num_hidden_layers
        width = self.hidden_size
        rows = 5 * width + self.intermediate_size
        norms = 4 * width  # two layer norms, weight and bias
        return Parameters(
            layers * self.layer_weights, layers * rows, layers * (rows + norms) + 2 * width + other
        )

    def flops(self, tokens: int) -> int:
        """Return the FLOPs (two a multiply-add) of the matrix products of one sequence."""
        attention = 2 * 2 * tokens**2 * self.hidden_size
        return self.num_hidden_layers * (2 * tokens * self.layer_weights + attention)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a checkpoint.

    Attributes:
        family: Which kind of SigLIP.
        vision: The image tower's layers.
        text: The text tower's layers.
        patch_size_px: Patch side in pixels.
        image_size_px: Side of the square input in pixels; None for NaFlex.
        num_patches: Learned image positions; for NaFlex the grid that is resized to each image.
        vocab_size: Rows of the token embedding.
        context_length: Tokens of every text.
        embedding_width: D, of both towers' outputs.
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
        """Parameters of `SiglipVisionModel` or `Siglip2VisionModel`, pooling head included."""
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
        """Parameters of the whole model: both towers, `logit_scale` and `logit_bias`."""
        return self.vision_parameters.total + self.text_parameters.total + 2

    def image_tokens(self, max_num_patches: int) -> int:
        """Return the most patches of an image: fixed, or what NaFlex is allowed."""
        return max_num_patches if self.image_size_px is None else self.num_patches

    def image_flops(self, max_num_patches: int = 256) -> int:
        """Return the FLOPs of one image in the vision tower."""
        tokens = self.image_tokens(max_num_patches)
        width = self.vision.hidden_size
        embedding = 2 * tokens * self.patch_size_px**2 * CHANNELS * width
        # the probe asks once: keys and values of every token, then one token's attention,
        # projection and MLP
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
    """Return the shape that a checkpoint's `config.json` describes; keys it leaves out have
    transformers' defaults.

    Raises:
        ConfigError: A value is not a number of at least 1.
    """
    try:
        return _read(config, family)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"config.json does not describe two towers that can be planned: {error}."
        ) from error


def _read(config: Mapping[str, Any], family: Family) -> Architecture:
    vision = config.get("vision_config") or {}
    text = config.get("text_config") or {}
    patch_size_px = int(vision.get("patch_size", 16))
    image_size_px = int(vision.get("image_size", 224))
    naflex = family is Family.NAFLEX
    text_encoder = _encoder(text)
    return Architecture(
        family=family,
        vision=_encoder(vision),
        text=text_encoder,
        patch_size_px=patch_size_px,
        image_size_px=None if naflex else image_size_px,
        num_patches=int(vision.get("num_patches", 256))
        if naflex
        else (image_size_px // patch_size_px) ** 2,
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

"""The model before training: its shape, its starting weights and its loss."""

import math

import torch
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.modeling_siglip import SiglipAttention

from tools.demo_training import checkpoint_files

INITIAL_SCALE = 10.0
INITIAL_BIAS = -3.0
"""At the start most logits are negative, because few labels of a scene are true."""


def build_model(vocab_size: int) -> SiglipModel:
    """Return the untrained model."""
    model = SiglipModel(SiglipConfig(**checkpoint_files.model_config(vocab_size)))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(INITIAL_SCALE))
        model.logit_bias.fill_(INITIAL_BIAS)
        start_local(model)
    return model


def start_local(model: SiglipModel) -> None:
    """Initialise the vision tower so that each patch attends to its neighbourhood.

    Position embeddings are sine waves, queries resemble keys, and values start near minus the
    identity. Without this start a tower of this size needs thousands of steps to learn that
    neighbouring patches belong together. Source: https://arxiv.org/abs/2305.09828 ("Mimetic
    initialization of self-attention layers").
    """
    vision = model.vision_model
    side = checkpoint_files.IMAGE_SIZE_PX // checkpoint_files.PATCH_SIZE_PX
    width = model.config.vision_config.hidden_size
    heads = model.config.vision_config.num_attention_heads
    vision.embeddings.position_embedding.weight.copy_(position_waves(side, width))
    for layer in vision.encoder.layers:
        _start_attention(layer.self_attn, width, heads)


def _start_attention(attention: SiglipAttention, width: int, heads: int) -> None:
    depth = width // heads
    queries = []
    keys = []
    for _ in range(heads):
        u, s, v = torch.linalg.svd(_noise(0.7, width) + 0.7 * torch.eye(width))
        root = s[:depth].sqrt()
        queries.append((u[:, :depth] * root).T)
        keys.append(v[:depth] * root[:, None])
    attention.q_proj.weight.copy_(torch.cat(queries))
    attention.k_proj.weight.copy_(torch.cat(keys))

    u, s, v = torch.linalg.svd(_noise(0.4, width) - 0.4 * torch.eye(width))
    attention.v_proj.weight.copy_(s.sqrt()[:, None] * v)
    attention.out_proj.weight.copy_(u * s.sqrt())


def _noise(scale: float, width: int) -> torch.Tensor:
    noise: torch.Tensor = scale * torch.randn(width, width) / width**0.5
    return noise


def position_waves(side: int, width: int) -> torch.Tensor:
    """Return fixed sine and cosine position embeddings (side², width) of a square patch grid.

    Source: https://arxiv.org/abs/2205.01580 ("Better plain ViT baselines").
    """
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequency = 1.0 / 10_000 ** (torch.arange(width // 4) / (width // 4 - 1))
    waves = [
        wave(axis.flatten()[:, None] * frequency)
        for axis in (x, y)
        for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(waves, dim=1)


class PatchHead(torch.nn.Module):
    """Scores every patch against the labels during training; it is not part of the checkpoint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(width, width)
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.logit_bias = torch.nn.Parameter(torch.tensor(INITIAL_BIAS))

    def forward(self, patches: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Return logits (B, N, T) for patches (B, N, D) and unit text embeddings (T, D)."""
        embeds = torch.nn.functional.normalize(self.projection(patches), dim=-1)
        logits: torch.Tensor = embeds @ text_embeds.T * self.logit_scale.exp() + self.logit_bias
        return logits


def sigmoid_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the sigmoid loss of (B, T) logits and truth, summed over T and averaged over B.

    Source: https://arxiv.org/abs/2303.15343, section 3.2.
    """
    signs = truth.float() * 2 - 1
    return -torch.nn.functional.logsigmoid(signs * logits).sum(dim=-1).mean()

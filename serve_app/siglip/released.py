"""A table of all released SigLIP and SigLIP 2 checkpoints.

Source of the architectures: transformers' `convert_siglip_to_hf.py` and
`convert_siglip2_to_hf.py`, and big_vision's demo notebooks. Parameter counts are computed from
them; a test builds every model on torch's meta device and compares.

Source of the zero-shot accuracy on ImageNet: big_vision's README_siglip2.md, which lists SigLIP 2
only.
"""

from dataclasses import dataclass

from serve_app.siglip.architecture import Architecture, Encoder
from serve_app.siglip.checkpoints import Family

BICUBIC = 3
BILINEAR = 2
"""Pillow's numbers of the filters, as in the checkpoints' `preprocessor_config.json`."""
BASE = Encoder(768, 12, 12, 3072)
LARGE = Encoder(1024, 24, 16, 4096)
SO400M = Encoder(1152, 27, 16, 4304)
GIANT = Encoder(1536, 40, 16, 6144)
ENGLISH = 32_000
MULTILINGUAL = 250_000
GEMMA = 256_000
"""Vocabulary sizes of SentencePiece on English C4, SentencePiece on mC4, and Gemma's tokenizer."""


@dataclass(frozen=True, slots=True)
class Released:
    """A released checkpoint.

    Attributes:
        hub_id: Its repository on the hub.
        architecture: Its architecture.
        resample: Pillow's filter number.
        imagenet_accuracy: Published zero-shot top-1 accuracy on ImageNet in per cent, for NaFlex
            with 256 patches; None if no source was found.
    """

    hub_id: str
    architecture: Architecture
    resample: int
    imagenet_accuracy: float | None

    @property
    def family(self) -> Family:
        """The kind of SigLIP."""
        return self.architecture.family


def _fixed(
    name: str,
    towers: tuple[Encoder, Encoder],
    accuracy: float | None = None,
    vocab_size: int = 0,
    context_length: int = 64,
) -> Released:
    """Return a fixed-resolution checkpoint; its name has the patch size and the image size."""
    family = Family.SIGLIP2 if name.startswith("siglip2") else Family.SIGLIP
    resample = BILINEAR if family is Family.SIGLIP2 else BICUBIC
    patch_px = int(name.split("patch")[1].split("-")[0])
    image_px = int(name.split("patch")[1].split("-")[1])
    positions = (image_px // patch_px) ** 2
    vocabulary = vocab_size or (GEMMA if family is Family.SIGLIP2 else ENGLISH)

    # The text tower of giant is that of so400m, projected to the vision tower's width.
    vision, text = towers
    width = vision.hidden_size
    architecture = Architecture(
        family, vision, text, patch_px, image_px, positions, vocabulary, context_length, width
    )
    return Released(f"google/{name}", architecture, resample, accuracy)


def _naflex(name: str, tower: Encoder, accuracy: float) -> Released:
    width = tower.hidden_size
    architecture = Architecture(Family.NAFLEX, tower, tower, 16, None, 256, GEMMA, 64, width)
    return Released(f"google/{name}", architecture, BILINEAR, accuracy)


_BASES = (BASE, BASE)
_LARGES = (LARGE, LARGE)
_SO400MS = (SO400M, SO400M)
_GIANTS = (GIANT, SO400M)

RELEASED: tuple[Released, ...] = (
    _fixed("siglip-base-patch16-224", _BASES),
    _fixed("siglip-base-patch16-256", _BASES),
    _fixed("siglip-base-patch16-384", _BASES),
    _fixed("siglip-base-patch16-512", _BASES),
    _fixed("siglip-base-patch16-256-multilingual", _BASES, vocab_size=MULTILINGUAL),
    _fixed("siglip-large-patch16-256", _LARGES),
    _fixed("siglip-large-patch16-384", _LARGES),
    _fixed("siglip-so400m-patch14-224", _SO400MS, context_length=16),
    _fixed("siglip-so400m-patch14-384", _SO400MS),
    _fixed("siglip-so400m-patch16-256-i18n", _SO400MS, vocab_size=MULTILINGUAL),
    _fixed("siglip2-base-patch32-256", _BASES, 74.0),
    _fixed("siglip2-base-patch16-224", _BASES, 78.2),
    _fixed("siglip2-base-patch16-256", _BASES, 79.1),
    _fixed("siglip2-base-patch16-384", _BASES, 80.6),
    _fixed("siglip2-base-patch16-512", _BASES, 81.2),
    _fixed("siglip2-large-patch16-256", _LARGES, 82.5),
    _fixed("siglip2-large-patch16-384", _LARGES, 83.1),
    _fixed("siglip2-large-patch16-512", _LARGES, 83.5),
    _fixed("siglip2-so400m-patch14-224", _SO400MS, 83.2),
    _fixed("siglip2-so400m-patch14-384", _SO400MS, 84.1),
    _fixed("siglip2-so400m-patch16-256", _SO400MS, 83.4),
    _fixed("siglip2-so400m-patch16-384", _SO400MS, 84.1),
    _fixed("siglip2-so400m-patch16-512", _SO400MS, 84.3),
    _fixed("siglip2-giant-opt-patch16-256", _GIANTS, 84.5),
    _fixed("siglip2-giant-opt-patch16-384", _GIANTS, 85.0),
    _naflex("siglip2-base-patch16-naflex", BASE, 78.5),
    _naflex("siglip2-so400m-patch16-naflex", SO400M, 83.5),
)


def find_released(hub_id: str) -> Released | None:
    """Return the checkpoint of a hub id, or None if it was not released."""
    return next((row for row in RELEASED if row.hub_id == hub_id), None)

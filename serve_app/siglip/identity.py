"""A fingerprint of a checkpoint: what embeddings are comparable by, and stored ones are found again by.

It follows from what the files hold and not from where they lie or what they are called, so a moved folder keeps it and
a checkpoint trained further loses it.
"""

import hashlib
from pathlib import Path

from serve_app.bounded_files import read_regular
from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import WEIGHTS, Checkpoint, weight_files
from serve_app.siglip.safetensors_files import read_header

CLEANING = "nfc-lower-underscore-1"
"""How `text.py` writes text; changed whenever the same label would be written otherwise."""
SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
    "special_tokens_map.json",
    "preprocessor_config.json",
)
"""Read whole; those that a checkpoint does not have are skipped."""
MAX_SMALL_BYTES = 128 * 2**20
"""Bytes of one of them. The largest is the tokenizer of SigLIP 2 with 34 MB."""
SAMPLE_BYTES = 4096
"""Read of every tensor at its beginning, middle and end; smaller ones whole. Training changes every weight of a tensor that it
changes at all, so samples tell, and 4 GB need not be read at every start."""


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """Return sixteen hex digits that change with the weights, the tokenizer and how text is cleaned.

    Raises:
        ConfigError: A weights file is missing or cannot be read.
    """
    digest = hashlib.sha256(CLEANING.encode())
    for name in SMALL_FILES:
        path = checkpoint.folder / name
        if path.is_file():
            digest.update(name.encode() + read_regular(path, MAX_SMALL_BYTES))
    weights = sorted(set(weight_files(checkpoint.folder).values())) or [checkpoint.folder / WEIGHTS]
    for path in weights:
        _add_samples(digest, path)
    return digest.hexdigest()[:16]


def encoder_fingerprint(checkpoint: Checkpoint, dtype: str, quantization: str) -> str:
    """Return what text embeddings follow from besides the text: the checkpoint, and what its text tower was asked to run as.

    `auto` stands for itself: what it becomes is known where the tower is loaded, which may be another machine.
    """
    return f"{checkpoint_fingerprint(checkpoint)}-{dtype}-{quantization}"


def _add_samples(digest: "hashlib._Hash", path: Path) -> None:
    header = read_header(path)
    try:
        with path.open("rb") as file:
            for name, (dtype, shape, (begin, end)) in sorted(header.tensors.items()):
                digest.update(f"{name} {dtype} {shape} {end - begin}".encode())
                last = max(begin, end - SAMPLE_BYTES)
                for at in (begin, (begin + last) // 2, last):
                    file.seek(header.start + at)
                    digest.update(file.read(min(SAMPLE_BYTES, end - at)))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}.") from error

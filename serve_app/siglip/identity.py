"""A fingerprint of a checkpoint: what embeddings are comparable by, and stored ones are found again
by.

It follows from what the files hold and not from where they are or what they are called, so a moved
folder keeps it and a checkpoint trained further loses it. All bytes of every file that can change
an embedding count.
"""

import hashlib

from serve_app.siglip.checkpoints import Checkpoint, weight_paths
from serve_app.siglip.digests import file_digest
from serve_app.untrusted.bounded_files import read_regular

CLEANING = "nfc-lower-underscore-1"
"""How `text.py` writes text; changed whenever the same label would be written otherwise."""
SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Read whole; those that a checkpoint does not have are skipped."""
MAX_SMALL_BYTES = 128 * 2**20
"""Bytes of one of them. The largest is the tokenizer of SigLIP 2 with 34 MB."""


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """Return sixteen hex digits that change with the weights, every setting, the tokenizer and how
    text is cleaned.

    Raises:
        ConfigError: A weights file is missing or cannot be read.
    """
    digest = hashlib.sha256(CLEANING.encode())
    for name in SMALL_FILES:
        path = checkpoint.folder / name
        if path.is_file():
            content = read_regular(path, MAX_SMALL_BYTES)
            digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    for path in weight_paths(checkpoint.folder):
        digest.update(f"weights {file_digest(path)}\n".encode())
    return digest.hexdigest()[:16]


def encoder_fingerprint(checkpoint_fingerprint: str, dtype: str, quantization: str) -> str:
    """Return what text embeddings follow from besides the text: the checkpoint, and what its text
    tower was asked to run as.

    `auto` stands for itself: what it becomes is known where the tower is loaded, which may be
    another machine.
    """
    return f"{checkpoint_fingerprint}-{dtype}-{quantization}"

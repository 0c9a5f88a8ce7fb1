"""Fingerprints of checkpoints; embeddings are comparable if their fingerprints are equal.

A fingerprint depends on the contents of every file that can change an embedding, and not on paths
or names. So a moved folder keeps its fingerprint, and a fine-tuned checkpoint gets a new one.
"""

import hashlib

from serve_app.siglip.checkpoints import Checkpoint, weight_paths
from serve_app.siglip.digests import file_digest
from serve_app.untrusted.bounded_files import read_regular

CLEANING = "nfc-lower-underscore-1"
"""Version of the text cleaning in `text.py`; it changes whenever the result for a label changes."""
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
"""Files that are hashed on every call; files that a checkpoint lacks are skipped."""
MAX_SMALL_BYTES = 128 * 2**20
"""Maximum size of one of these files. The largest is SigLIP 2's tokenizer with 34 MB."""


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """Return sixteen hex digits that identify weights, settings, tokenizer and text cleaning.

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
    """Return the identity of text embeddings: the checkpoint and the text tower's precision."""
    return f"{checkpoint_fingerprint}-{dtype}-{quantization}"

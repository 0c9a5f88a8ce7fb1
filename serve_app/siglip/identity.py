"""A fingerprint of a checkpoint: what embeddings are comparable by, and stored ones are found again by.

It follows from what the files hold and not from where they lie or what they are called, so a moved folder keeps it and
a checkpoint trained further loses it.
"""

import hashlib
from pathlib import Path

from serve_app.siglip.checkpoints import WEIGHTS, Checkpoint, weight_files

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
SAMPLES, SAMPLE_BYTES = 64, 4096
"""Of each weights file: training changes every weight, so samples of it tell, and 4 GB need not be read at every start."""


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """Return sixteen hex digits that change with the weights, the tokenizer and how text is cleaned."""
    digest = hashlib.sha256(CLEANING.encode())
    for name in SMALL_FILES:
        path = checkpoint.folder / name
        if path.is_file():
            digest.update(name.encode() + path.read_bytes())
    weights = sorted(set(weight_files(checkpoint.folder).values())) or [checkpoint.folder / WEIGHTS]
    for path in weights:
        _add_samples(digest, path)
    return digest.hexdigest()[:16]


def encoder_fingerprint(checkpoint: Checkpoint, dtype: str, quantization: str) -> str:
    """Return what text embeddings follow from besides the text: the checkpoint, and what its text tower runs as."""
    return f"{checkpoint_fingerprint(checkpoint)}-{dtype}-{quantization}"


def _add_samples(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for at in range(SAMPLES):
            file.seek(max(0, (size - SAMPLE_BYTES) * at // (SAMPLES - 1)))
            digest.update(file.read(SAMPLE_BYTES))

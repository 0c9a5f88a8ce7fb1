"""Finds a checkpoint: a local folder, or a hub id that is downloaded once and cached.

Only safetensors weights, JSON files and tokenizer files are downloaded, never code. `HF_ENDPOINT`,
`HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` work as in the other Hugging Face libraries.

Not here: the download and its errors (`hub_download.py`, `hub_errors.py`).
"""

import re
from pathlib import Path

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Checkpoint, read_checkpoint
from serve_app.siglip.hub_errors import check_hub_environment
from serve_app.siglip.user_folders import expand_user

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint by folder or hub id, download it if needed, and read its JSON files.

    Args:
        model: A folder, or a hub id `owner/name`.
        revision: Branch, tag or commit of the hub repository; None for its main branch. A folder
            has no revisions.

    Raises:
        ConfigError: The folder, the hub, the id or the revision cannot be found; the message says
            which one, and what to do.
    """
    folder = expand_user(model)
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(
                f"revision {revision!r} is set, but {folder} is a folder; only hub ids have "
                "revisions."
            )
        return read_checkpoint(folder)
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f"model {model!r} is neither a folder on this machine nor a hub id of the form "
            "owner/name."
        )
    return read_checkpoint(_download(model, revision), name=model, revision=revision)


def is_here(model: str, revision: str | None = None) -> bool:
    """Return whether a checkpoint can be loaded without a request to the hub."""
    if expand_user(model).is_dir():
        return True
    try:
        _download(model, revision, cached_only=True)
    except Exception:
        # Either the cache lacks the checkpoint or it cannot be read; both need a download.
        return False
    return True


def _download(model: str, revision: str | None, cached_only: bool = False) -> Path:
    check_hub_environment()
    # Imported here, because the import reads the environment, which must be checked first.
    from serve_app.siglip.hub_download import download

    return download(model, revision, cached_only)

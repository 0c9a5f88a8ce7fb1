"""Finding a checkpoint: a folder on this machine, or a hub id that is downloaded once and cached.

Only safetensors weights and the JSON and tokenizer files are fetched, never code. `HF_ENDPOINT`,
`HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` work as everywhere in the Hugging Face libraries.

Not here: what is said of a failed download (`hub_errors.py`).
"""

import re
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Checkpoint, read_checkpoint
from serve_app.siglip.hub_errors import check_hub_environment, download_problem
from serve_app.siglip.user_folders import expand_user

FETCHED = ("*.json", "*.safetensors", "spiece.model")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint by folder or hub id, download it if needed, and read its facts.

    Args:
        model: A folder, or a hub id `owner/name`.
        revision: Branch, tag or commit of the hub repository; None for its main branch. Not for
            folders.

    Raises:
        ConfigError: The folder, the hub, the id or the revision is not there; says which, and what
            to do.
    """
    folder = expand_user(model)
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(
                f"revision {revision!r} was given with the folder {folder}; only a hub id has revisions."
            )
        return read_checkpoint(folder)
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f"model {model!r} is neither a folder on this machine nor a hub id of the form owner/name."
        )
    return read_checkpoint(_download(model, revision), name=model, revision=revision)


def is_here(model: str, revision: str | None = None) -> bool:
    """Return whether a checkpoint can be loaded without asking the hub."""
    if expand_user(model).is_dir():
        return True
    try:
        _snapshot(model, revision, local_files_only=True)
    except (
        Exception
    ):  # not in the cache, or the cache cannot be read: either way it would be downloaded
        return False
    return True


def _download(model: str, revision: str | None) -> Path:
    try:
        return _snapshot(model, revision)
    except ConfigError:
        raise
    except (
        Exception
    ) as error:  # the library lets those of its HTTP client, of JSON and of the file system through
        raise download_problem(model, revision, error) from error


def _snapshot(model: str, revision: str | None, **options: Any) -> Path:
    check_hub_environment()
    # not at the top: importing it reads the environment, which is checked first
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(model, revision=revision, allow_patterns=list(FETCHED), **options)
    )

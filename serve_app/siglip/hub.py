"""Finding a checkpoint: a folder on this machine, or a hub id that is downloaded once and cached.

Only safetensors weights and the JSON and tokenizer files are fetched, never code. `HF_ENDPOINT`, `HF_HOME`,
`HF_HUB_OFFLINE` and `HF_TOKEN` work as everywhere in the Hugging Face libraries.
"""

import re
from pathlib import Path

import httpx
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from serve_app.errors import ConfigError
from serve_app.siglip.checkpoints import Checkpoint, read_checkpoint

FETCHED = ("*.json", "*.safetensors", "spiece.model")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint by folder or hub id, download it if needed, and read its facts.

    Args:
        model: A folder, or a hub id `owner/name`.
        revision: Branch, tag or commit of the hub repository; None for its main branch. Not for folders.

    Raises:
        ConfigError: The folder, the hub, the id or the revision is not there; says which, and what to do.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision {revision!r} was given with the folder {folder}; only a hub id has revisions.")
        return read_checkpoint(folder)
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(f"model {model!r} is neither a folder on this machine nor a hub id of the form owner/name.")
    return read_checkpoint(_download(model, revision), name=model, revision=revision)


def is_here(model: str, revision: str | None = None) -> bool:
    """Return whether a checkpoint can be loaded without asking the hub."""
    if Path(model).expanduser().is_dir():
        return True
    try:
        snapshot_download(model, revision=revision, allow_patterns=list(FETCHED), local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return False
    return True


def _download(model: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FETCHED)))
    except GatedRepoError as error:
        raise ConfigError(f"{model} needs permission on the hub; accept its terms there and set HF_TOKEN.") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"{model} is not on the hub at {constants.ENDPOINT} (or is private: set HF_TOKEN).") from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{model} has no revision {revision!r} on the hub.") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise ConfigError(_not_reached(model)) from error
    except HFValidationError as error:
        raise ConfigError(f"model {model!r} is not a valid hub id.") from error
    except (HfHubHTTPError, OSError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: an answer that is not JSON
        raise ConfigError(f"{model} could not be downloaded from {constants.ENDPOINT}: {type(error).__name__}.") from error


def _not_reached(model: str) -> str:
    if constants.HF_HUB_OFFLINE:
        return f"{model} is not in the cache and HF_HUB_OFFLINE is set; download it first, or name a local folder."
    return (
        f"{model} is not in the cache and the hub at {constants.ENDPOINT} cannot be reached. "
        "Check the network or HF_ENDPOINT, or name a local folder."
    )

"""Downloads a checkpoint with huggingface_hub, and explains the library's own errors.

Importing this module imports huggingface_hub, which reads environment variables. Call
`hub_errors.check_hub_environment` first.

Not here: errors that the library does not wrap (`hub_errors.py`).
"""

from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

from serve_app.errors import ConfigError
from serve_app.siglip.hub_errors import (
    OTHERWISE,
    not_downloaded,
    transport_problem,
    without_credentials,
)

DOWNLOADED = ("*.json", "*.safetensors", "spiece.model")


def download(model: str, revision: str | None, cached_only: bool = False) -> Path:
    """Return the folder of a checkpoint in the cache, and download it if needed.

    Args:
        model: The hub id.
        revision: Branch, tag or commit; None for the main branch.
        cached_only: Whether to fail instead of sending a request to the hub.

    Raises:
        ConfigError: The checkpoint cannot be downloaded; the message says why, and what to do.
    """
    try:
        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=list(DOWNLOADED),
            local_files_only=cached_only,
        )
    except Exception as error:
        # The library does not wrap the errors of its HTTP client, of JSON and of the file system.
        raise download_problem(model, revision, error) from error
    return Path(folder)


def download_problem(model: str, revision: str | None, error: Exception) -> ConfigError:
    """Return the error for a failed download.

    Args:
        model: The hub id.
        revision: The requested revision.
        error: The exception of the download.
    """
    endpoint = without_credentials(constants.ENDPOINT)
    if isinstance(error, errors.GatedRepoError):
        return ConfigError(
            f"{model} needs permission on the hub; accept its terms there and set HF_TOKEN."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigError(
            f"{model} is not on the hub at {endpoint} (or is private: set HF_TOKEN)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(f"{model} has no revision {revision!r} on the hub.")
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"model {model!r} is not a valid hub id.")
    if constants.HF_HUB_OFFLINE and isinstance(
        error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError
    ):
        return ConfigError(
            f"{model} is not in the cache and HF_HUB_OFFLINE is set; download it first, "
            f"{OTHERWISE}."
        )

    problem = transport_problem(model, error, endpoint, constants.HF_HUB_CACHE)
    if problem is not None:
        return problem
    reason = "it cannot be reached; check the network or HF_ENDPOINT"
    if not isinstance(error, errors.LocalEntryNotFoundError):
        kind = type(error).__name__
        reason = f"its response is not understood ({kind}); check HF_ENDPOINT and the network"
    return not_downloaded(model, endpoint, reason)

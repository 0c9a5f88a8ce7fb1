"""Error messages for failed downloads, each one sentence that says what to do.

huggingface_hub raises its own exceptions for what the hub answers, and lets those of its HTTP
client, of the file system and of the standard library through for everything else: a proxy, a cut
connection, a page instead of JSON. The HTTP client changed its name more than once, so exceptions
are matched by class name.
"""

import errno
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from serve_app.errors import ConfigError

_WHOLE_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_OTHERWISE = "or name a local folder"
_HTTP_CLIENT = {
    "ProxyError": "the proxy refused the connection; check HTTPS_PROXY, its user and its password",
    "TooManyRedirects": "it redirects without end; check HF_ENDPOINT, and whether a proxy asks for a login",
    "RemoteProtocolError": "it ended the connection before its answer was complete; try again",
    "ReadError": "the connection broke off; try again",
    "WriteError": "the connection broke off; try again",
    "ReadTimeout": "it did not answer in time; try again, or raise HF_HUB_DOWNLOAD_TIMEOUT",
    "ConnectTimeout": "it cannot be reached in time; check the network or HF_ENDPOINT",
    "ConnectError": "it cannot be reached; check the network or HF_ENDPOINT",
    "UnsupportedProtocol": "its address is not valid; set HF_ENDPOINT to one that begins with https://",
    "InvalidURL": "its address is not valid; set HF_ENDPOINT to one that begins with https://",
    "LocalProtocolError": "the request could not be made; check HF_TOKEN and HF_ENDPOINT for stray characters",
    "DecodingError": "its answer cannot be decoded; check whether a proxy changes it",
    "JSONDecodeError": "it answered with something else than the hub's JSON; check HF_ENDPOINT, and whether a proxy asks for a login",
}
"""Names of exceptions, and what each means."""
_STATUSES = {
    401: "it does not accept HF_TOKEN; set another one",
    403: "it forbids the download; check HF_TOKEN and the permissions of its owner",
    407: "the proxy wants a user and a password; write them into HTTPS_PROXY",
    429: "it takes no more requests for now; wait, or set HF_TOKEN",
}
_FILES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EROFS: "it is read-only",
    errno.EFBIG: "it takes no file of this size",
    errno.ENOTDIR: "a part of its path is a file",
}


def check_hub_environment() -> None:
    """Check the environment variables that huggingface_hub reads when it is imported, and would
    raise bare errors for.

    Raises:
        ConfigError: One of them is not valid; names it.
    """
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and not _is_address(endpoint):
        raise ConfigError(
            f"HF_ENDPOINT is {_shown(endpoint)!r}, which is not an address; write one such as https://huggingface.co."
        )
    for name in _WHOLE_NUMBERS:
        value = os.environ.get(name)
        try:
            int(value or 0)
        except ValueError as error:
            raise ConfigError(f"{name} is {value!r}; write a whole number of seconds.") from error


def download_problem(model: str, revision: str | None, error: Exception) -> ConfigError:
    """Return the error for a failed download.

    Args:
        model: The hub id.
        revision: The revision that was asked for.
        error: What was raised.
    """
    from huggingface_hub import constants, errors  # the environment was checked before the download

    if isinstance(error, errors.GatedRepoError):
        return ConfigError(
            f"{model} needs permission on the hub; accept its terms there and set HF_TOKEN."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigError(
            f"{model} is not on the hub at {_shown(constants.ENDPOINT)} (or is private: set HF_TOKEN)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(f"{model} has no revision {revision!r} on the hub.")
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"model {model!r} is not a valid hub id.")
    if constants.HF_HUB_OFFLINE and isinstance(
        error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError
    ):
        return ConfigError(
            f"{model} is not in the cache and HF_HUB_OFFLINE is set; download it first, {_OTHERWISE}."
        )
    chain = list(_causes(error))
    for cause in chain:
        problem = _file_problem(model, cause, constants.HF_HUB_CACHE)
        if problem is not None:
            return problem
    reason = next((reason for cause in chain if (reason := _answer_problem(cause))), None)
    if reason is None and isinstance(error, errors.LocalEntryNotFoundError):
        reason = "it cannot be reached; check the network or HF_ENDPOINT"
    if reason is None:
        reason = f"its answer was not understood ({type(error).__name__}); check HF_ENDPOINT and the network"
    return ConfigError(
        f"{model} is not in the cache, and could not be downloaded from {_shown(constants.ENDPOINT)}: {reason}, {_OTHERWISE}."
    )


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not any(c.isspace() for c in text)
        )
    except ValueError:  # a broken IPv6 address, or a port out of range
        return False


def _shown(endpoint: str) -> str:
    """Return an address without the user and the password that it may hold."""
    scheme, separator, rest = endpoint.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from or beside, the outermost first."""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _file_problem(model: str, error: BaseException, cache: str) -> ConfigError | None:
    """Return what is said of a cache folder that cannot be used."""
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return ConfigError(
            f"{model} cannot be cached: this user has no home folder. Set HF_HOME to a folder that it can write to."
        )
    if isinstance(error, OSError) and error.errno in _FILES:
        reason = _FILES[error.errno]
        return ConfigError(
            f"{model} cannot be stored in {cache}: {reason}. Make room or give permission there, or set HF_HOME to another folder."
        )
    return None


def _answer_problem(error: BaseException) -> str | None:
    """Return what an exception says of the hub's answer, or None where it says nothing."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        if status >= 500:
            return f"it answered with the status {status}; try again later"
        return _STATUSES.get(status, f"it answered with the status {status}; check HF_ENDPOINT")
    for kind in type(error).__mro__:
        if kind.__name__ in _HTTP_CLIENT:
            return _HTTP_CLIENT[kind.__name__]
    if isinstance(error, ValueError) and "proxy" in str(error).lower():
        return "a proxy's address is not valid; check HTTP_PROXY and HTTPS_PROXY"
    return None

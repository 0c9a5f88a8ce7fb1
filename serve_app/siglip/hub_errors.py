"""Explains download errors that huggingface_hub does not wrap; each message says what to do.

The exceptions of the HTTP client, of the file system and of the standard library stand for proxies,
broken connections and HTML pages in place of JSON. The library has changed its HTTP client more
than once, so exceptions of the client are matched by class name.

Not here: the library's own exceptions (`hub_download.py`).
"""

import errno
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from serve_app.errors import ConfigError

_WHOLE_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
OTHERWISE = "or set model to a local folder"
_BAD_ADDRESS = "its address is not valid; set HF_ENDPOINT to one that begins with https://"
_HTTP_CLIENT = {
    "ProxyError": "the proxy refused the connection; check HTTPS_PROXY, its user and its password",
    "TooManyRedirects": (
        "it redirects endlessly; check HF_ENDPOINT, and whether a proxy requires a login"
    ),
    "RemoteProtocolError": "it closed the connection before the response was complete; retry",
    "ReadError": "the connection was lost; retry",
    "WriteError": "the connection was lost; retry",
    "ReadTimeout": "it did not respond in time; retry, or raise HF_HUB_DOWNLOAD_TIMEOUT",
    "ConnectTimeout": "the connection timed out; check the network or HF_ENDPOINT",
    "ConnectError": "it cannot be reached; check the network or HF_ENDPOINT",
    "UnsupportedProtocol": _BAD_ADDRESS,
    "InvalidURL": _BAD_ADDRESS,
    "LocalProtocolError": (
        "the request could not be built; check HF_TOKEN and HF_ENDPOINT for stray characters"
    ),
    "DecodingError": "its response cannot be decoded; check whether a proxy modifies it",
    "JSONDecodeError": (
        "its response is not the hub's JSON; check HF_ENDPOINT, and whether a proxy requires a "
        "login"
    ),
}
"""What each exception of the HTTP client means, by the name of its class."""
_STATUSES = {
    401: "it does not accept HF_TOKEN; set a valid one",
    403: "it forbids the download; check HF_TOKEN and the permissions of its owner",
    407: "the proxy requires a user and a password; add them to HTTPS_PROXY",
    429: "its rate limit is reached; wait, or set HF_TOKEN",
}
_FILES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EROFS: "it is read-only",
    errno.EFBIG: "the file is too large for it",
    errno.ENOTDIR: "a part of its path is a file",
}


def check_hub_environment() -> None:
    """Check the environment variables that huggingface_hub reads at import.

    The library does not explain invalid values.

    Raises:
        ConfigError: A variable is not valid; the message names it.
    """
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and not _is_address(endpoint):
        raise ConfigError(
            f"HF_ENDPOINT is {without_credentials(endpoint)!r}, which is not a URL; set it to one "
            "such as https://huggingface.co."
        )
    for name in _WHOLE_NUMBERS:
        value = os.environ.get(name)
        try:
            int(value or 0)
        except ValueError as error:
            raise ConfigError(
                f"{name} is {value!r}; set it to a whole number of seconds."
            ) from error


def transport_problem(
    model: str, error: Exception, endpoint: str, cache: str
) -> ConfigError | None:
    """Return the error for a failure of the HTTP client or the file system, or None for others.

    Args:
        model: The hub id.
        error: The exception of the download; its causes are examined as well.
        endpoint: The URL of the hub.
        cache: The folder of the cache.
    """
    chain = list(_causes(error))
    for cause in chain:
        problem = _file_problem(model, cause, cache)
        if problem is not None:
            return problem
    for cause in chain:
        reason = _response_problem(cause)
        if reason is not None:
            return not_downloaded(model, endpoint, reason)
    return None


def not_downloaded(model: str, endpoint: str, reason: str) -> ConfigError:
    """Return the error for a checkpoint that the hub did not deliver."""
    return ConfigError(
        f"{model} is not in the cache, and could not be downloaded from {endpoint}: {reason}, "
        f"{OTHERWISE}."
    )


def without_credentials(url: str) -> str:
    """Return a URL without its user and password."""
    scheme, separator, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not any(c.isspace() for c in text)
        )
    except ValueError:  # an invalid IPv6 address, or a port out of range
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and the chain of its causes and contexts, outermost first."""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _file_problem(model: str, error: BaseException, cache: str) -> ConfigError | None:
    """Return the error for a cache folder that cannot be written, or None for other exceptions."""
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return ConfigError(
            f"{model} cannot be cached: this user has no home folder. Set HF_HOME to a writable "
            "folder."
        )
    if isinstance(error, OSError) and error.errno in _FILES:
        reason = _FILES[error.errno]
        return ConfigError(
            f"{model} cannot be stored in {cache}: {reason}. Free space or grant permission there, "
            "or set HF_HOME to another folder."
        )
    return None


def _response_problem(error: BaseException) -> str | None:
    """Return the reason for a failure to read the hub's response, or None if there is none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        if status >= 500:
            return f"it responded with status {status}; retry later"
        return _STATUSES.get(status, f"it responded with status {status}; check HF_ENDPOINT")
    for kind in type(error).__mro__:
        if kind.__name__ in _HTTP_CLIENT:
            return _HTTP_CLIENT[kind.__name__]
    if isinstance(error, ValueError) and "proxy" in str(error).lower():
        return "the proxy's address is not valid; check HTTP_PROXY and HTTPS_PROXY"
    return None

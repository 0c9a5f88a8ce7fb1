"""API keys: several, hashed where they are kept, compared in constant time, and taken anew when their file changes.

A key is made by `siglip-serve key NAME`: 256 random bits. So its SHA-256 is kept: a slow hash protects what people choose,
and would cost every request its time.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers

from serve_app.errors import ConfigError, Unauthorized

logger = logging.getLogger(__name__)

VARIABLE = "SIGLIP_API_KEYS"
FROM_ENVIRONMENT = "env"
CHECK_EVERY_S = 2.0
"""How often the file is looked at, at most."""
MAX_KEY_CHARACTERS = 512
PREFIX = "sk-siglip-"
"""So that scanners for leaked secrets find them."""
_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})[\s:=]+sha256:(?P<digest>[0-9a-f]{64})")


class NewKey(NamedTuple):
    """A key, which is shown once, and the line that is kept of it."""

    key: str
    line: str


def make_key(name: str) -> NewKey:
    """Make a key for somebody.

    Raises:
        ConfigError: The name has other characters than letters, digits and `._-`.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} sha256:{_digest(key).hex()}"
    if not _LINE.fullmatch(line):
        raise ConfigError("a key's name has letters, digits and ._- only, at most 64, and begins with a letter or digit.")
    return NewKey(key, line)


class ApiKeys:
    """The keys that are known now."""

    def __init__(self, source: str, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        """Read them.

        Args:
            source: A file with a line for each key, or `env` for the variable SIGLIP_API_KEYS, where `;` or `,` may stand for
                a new line.
            environment: In which the variable is.
            clock: Seconds that only go up.

        Raises:
            ConfigError: There is none, or a line cannot be read.
        """
        self._path = None if source == FROM_ENVIRONMENT else Path(source)
        self._clock, self._looked_s = clock, clock()
        text = environment.get(VARIABLE, "").replace(";", "\n").replace(",", "\n") if self._path is None else _read(self._path)
        self._stamp = _stamp(self._path)
        self._problem: str | None = None
        self._digests = _parse(text, VARIABLE if self._path is None else self._path.name)

    def name_of(self, headers: Headers) -> str:
        """Return whose key a request came with, as `Authorization: Bearer` or `X-Api-Key`.

        Raises:
            Unauthorized: None came, or none that is known.
        """
        self._look()
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        key = credentials.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise Unauthorized("An API key is needed. Send it as Authorization: Bearer KEY.")
        digest = _digest(key[:MAX_KEY_CHARACTERS])
        found = [name for known, name in self._digests.items() if hmac.compare_digest(known, digest)]  # all, whichever it is
        if not found:
            raise Unauthorized("The API key is not known here. Check that it was copied whole and was not replaced.")
        return found[0]

    def _look(self) -> None:
        """Read the file again if it changed; what cannot be read leaves the last keys as they are."""
        now_s = self._clock()
        if self._path is None or now_s - self._looked_s < CHECK_EVERY_S:
            return
        self._looked_s = now_s
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._digests = _parse(_read(self._path), self._path.name)
        except ConfigError as error:  # tried again at the next look: what cannot be read now may be a moment later
            if str(error) != self._problem:
                logger.error("the API keys stay as they were: %s", error)
            self._problem = str(error)
            return
        self._stamp, self._problem = stamp, None
        logger.warning("the API keys were read anew: %s", ", ".join(self._digests.values()))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"access.api_keys: {path} cannot be read ({type(error).__name__}).") from error


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Return what changes with a file, a mounted secret that is a link included."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _parse(text: str, where: str) -> dict[bytes, str]:
    digests: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        match = _LINE.fullmatch(content)
        if match is None:  # the line itself is not shown: it may hold a key by mistake
            raise ConfigError(f"access.api_keys: {where}, line {number} is not NAME sha256:HEX as `siglip-serve key NAME` prints it.")
        digests[bytes.fromhex(match["digest"])] = match["name"]
    if not digests:
        raise ConfigError(f"access.api_keys: {where} holds no key; make one with `siglip-serve key NAME`, or leave access.api_keys out.")
    return digests

"""API keys: stored as hashes, compared in constant time, and reloaded when their file changes.

`siglip-serve key NAME` makes a key of 256 random bits. Only its SHA-256 is stored. A slow hash
would protect passwords that people choose, but random keys do not need it, and it would slow every
request down.

The request path only compares digests in memory. A thread reads the file (`KeyFile`), so a file
that hangs, such as one on a network share, does not block requests or probes.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers

from serve_app.errors import ConfigError, Unauthorized
from serve_app.untrusted.bounded_files import FileMissing, FileProblem, read_text, read_within

logger = logging.getLogger(__name__)

VARIABLE = "SIGLIP_API_KEYS"
FROM_ENVIRONMENT = "env"
CHECK_EVERY_S = 2.0
"""Seconds between two reads of the file."""
REVOKE_AFTER_S = 30.0
"""How long the file may be missing or empty before all keys are revoked. An atomic replacement or
the swap of a mounted secret takes less time, and must not lock out all clients."""
READ_TIMEOUT_S = 10.0
"""Maximum time for one read. After it, start-up fails; later, an error is logged."""
MAX_FILE_BYTES = 2**20
"""Maximum size of the key file: about 10,000 lines."""
MAX_KEY_CHARACTERS = 512
PREFIX = "sk-siglip-"
"""Prefix of every key, by which scanners for leaked secrets find them."""
_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})[\s:=]+sha256:(?P<digest>[0-9a-f]{64})"
)

Digests = dict[bytes, str]
"""From the SHA-256 of a key to its name."""


class NewKey(NamedTuple):
    """A key, which is shown once, and the line to store."""

    key: str
    line: str


def make_key(name: str) -> NewKey:
    """Make a new key.

    Raises:
        ConfigError: The name is empty or too long, or has characters other than letters, digits and
            `._-`.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} sha256:{_digest(key).hex()}"
    if not _LINE.fullmatch(line):
        raise ConfigError(
            "a key's name must have only letters, digits and ._-, at most 64 in all, "
            "and begin with a letter or digit."
        )
    return NewKey(key, line)


class ApiKeys:
    """The valid keys."""

    def __init__(
        self,
        source: str,
        environment: Mapping[str, str] = os.environ,
        *,
        clock: Callable[[], float] = time.monotonic,
        watch: bool = True,
    ) -> None:
        """Read the keys.

        Args:
            source: A file with a line for each key, or `env` for the variable SIGLIP_API_KEYS,
                which may separate lines with `;` or `,`.
            environment: The environment that contains the variable.
            clock: A monotonic clock in seconds.
            watch: Read the file again every `CHECK_EVERY_S` seconds, in a thread. Tests call
                `file.check` instead.

        Raises:
            ConfigError: There is no key, a line cannot be parsed, or reading the file takes longer
                than `READ_TIMEOUT_S`.
        """
        self.file: KeyFile | None = None
        if source == FROM_ENVIRONMENT:
            text = environment.get(VARIABLE, "").replace(";", "\n").replace(",", "\n")
            self._digests = _some(parse_keys(text, VARIABLE), VARIABLE)
            return
        self.file = KeyFile(Path(source), clock)
        if watch:
            self.file.watch()

    @property
    def digests(self) -> Digests:
        """The keys that are valid now; empty after they were revoked."""
        return self._digests if self.file is None else self.file.digests

    def name_of(self, headers: Headers) -> str:
        """Return the name of the key that a request sends as `Authorization: Bearer` or
        `X-Api-Key`.

        Raises:
            Unauthorized: The request sends no key, or an unknown one.
        """
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        key = credentials.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise Unauthorized("An API key is needed. Send it as Authorization: Bearer KEY.")
        digest = _digest(key[:MAX_KEY_CHARACTERS])
        # compares every key, so the time does not depend on which one matches
        found = [name for known, name in self.digests.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthorized(
                "The API key is not known here. "
                "Check that it was copied whole and was not replaced."
            )
        return found[0]


class KeyFile:
    """A key file that is read periodically while the service runs.

    - New contents are valid at the next check.
    - If the file is missing or empty, all keys are revoked after `REVOKE_AFTER_S`, until it
      contains keys again.
    - If the file cannot be read or parsed, the previous keys stay valid and an error is logged.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file for the first time.

        Raises:
            ConfigError: It contains no key, cannot be read, or reading it takes longer than
                `READ_TIMEOUT_S`.
        """
        self._path = path
        self._clock = clock
        self._problem: str | None = None
        self._gone_since_s: float | None = None
        try:
            read = read_within(lambda: read_text(path, MAX_FILE_BYTES), READ_TIMEOUT_S)
        except FileProblem as error:
            raise ConfigError(f"access.api_keys: {error}") from error
        except TimeoutError as error:
            raise ConfigError(
                f"access.api_keys: {path} cannot be read within {READ_TIMEOUT_S:g} s; "
                "check its file system."
            ) from error
        self.digests: Digests = _some(parse_keys(read, path.name), path.name)

    def watch(self) -> None:
        """Check the file in a thread until this object is garbage-collected."""
        threading.Thread(
            target=_watch, args=(weakref.ref(self),), name="api-keys", daemon=True
        ).start()

    def check(self) -> None:
        """Read the file once and apply its keys; problems are logged, not raised."""
        try:
            digests = parse_keys(read_text(self._path, MAX_FILE_BYTES), self._path.name)
        except FileMissing:
            self._gone("is missing")
        except ConfigError as error:
            self._gone_since_s = None
            self.keep(str(error))
        else:
            if digests:
                self._take(digests)
            else:
                self._gone("holds no key")

    def keep(self, why: str) -> None:
        """Keep the previous keys valid, and log the reason once."""
        if why != self._problem:
            logger.error("the API keys stay as they were: %s", why)
        self._problem = why

    def _take(self, digests: Digests) -> None:
        self._problem = None
        self._gone_since_s = None
        if digests != self.digests:
            self.digests = digests
            logger.warning("the API keys were reloaded: %s", ", ".join(digests.values()))

    def _gone(self, why: str) -> None:
        """Revoke all keys once the file has been missing or empty for long enough."""
        now_s = self._clock()
        if self._gone_since_s is None:
            self._gone_since_s = now_s
        if not self.digests:
            return
        if now_s - self._gone_since_s < REVOKE_AFTER_S:
            self.keep(
                f"{self._path} {why}; all keys are revoked if it stays so for {REVOKE_AFTER_S:g} s."
            )
            return
        self.digests = {}
        logger.error(
            "all API keys are revoked, and every request is answered 401: %s %s. "
            "Write keys to it to let clients in again.",
            self._path,
            why,
        )


def _watch(reference: "weakref.ref[KeyFile]") -> None:
    while (file := reference()) is not None:
        check = threading.Thread(target=file.check, name="api-keys-check", daemon=True)
        check.start()
        check.join(READ_TIMEOUT_S)
        if check.is_alive():  # do not start another check, or hanging threads would accumulate
            file.keep(f"it has not been possible to read the file for {READ_TIMEOUT_S:g} s.")
            check.join()
        del file, check  # otherwise this thread would keep the object alive
        time.sleep(CHECK_EVERY_S)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def parse_keys(text: str, where: str) -> Digests:
    """Return the keys of a text with one key a line; blank lines and `#` comments are ignored.

    Raises:
        ConfigError: A line is not `NAME sha256:HEX`.
    """
    digests: Digests = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        match = _LINE.fullmatch(content)
        if match is None:  # the line itself is not shown: it may hold a key by mistake
            raise ConfigError(
                f"access.api_keys: {where}, "
                f"line {number} is not NAME sha256:HEX as `siglip-serve key NAME` prints it."
            )
        digests[bytes.fromhex(match["digest"])] = match["name"]
    return digests


def _some(digests: Digests, where: str) -> Digests:
    if not digests:
        raise ConfigError(
            f"access.api_keys: {where} holds no key; make one with `siglip-serve key NAME`, "
            "or leave access.api_keys out."
        )
    return digests

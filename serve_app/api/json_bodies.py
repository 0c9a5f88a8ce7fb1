"""JSON bodies, parsed while they arrive and counted while they are parsed.

A body is refused at the first item, key or level above a limit, so a refusal costs only what was
read so far. The parser works on slices of `SLICE_BYTES`. Slices of a large body are parsed in a
worker thread, which releases the GIL between slices.

ijson restarts a string with every slice (20 MiB of base64 took 2.2 s of CPU, 2026-11). Long strings
therefore never reach it: they are cut out first and become a `LongText`.
"""

import json
import re
from typing import Any

import ijson
from starlette.requests import Request

from serve_app.api.json_values import JsonBounds, ValueBuilder
from serve_app.api.long_texts import LONG_TEXT_BYTES, LongText
from serve_app.api.streams import body_chunks
from serve_app.api.threads import off_loop
from serve_app.config.limits import Limits
from serve_app.errors import InvalidRequest

SLICE_BYTES = 16 * 1024
"""Bytes parsed before other threads get a chance to run: at most 5 ms (2026-11)."""
INLINE_BYTES = 64 * 1024
"""Bodies up to this size are parsed on the event loop, where a thread would cost more."""
BATCH_BYTES = 256 * 1024
"""Bytes gathered before a worker thread parses them."""
MAX_TOKEN_BYTES = 64 * 1024
"""Maximum length of a number or of white space. ijson restarts a number with every slice."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STRING = re.compile(rb'(?:[^"\\]++|\\(?:[^u]|u.{4}))*+', re.DOTALL)
"""The inside of a string: up to its closing quote, or to an escape sequence that is cut off."""


async def read_json_object(request: Request, limits: Limits, bounds: JsonBounds) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Args:
        request: The request, whose body has not been read yet.
        limits: The service's limits; `max_body_bytes` bounds the body.
        bounds: What the object may contain.

    Returns:
        The object. Strings of more than `LONG_TEXT_BYTES` are `LongText`.

    Raises:
        PayloadTooLarge: The body has more bytes, or a list more items, than allowed.
        InvalidRequest: The body is not JSON, not an object, or goes beyond `bounds`.
    """
    reader = JsonReader(bounds)
    waiting: list[bytes] = []
    num_waiting_bytes = 0
    is_large = False
    async for chunk in body_chunks(request, limits.max_body_bytes):
        waiting.append(chunk)
        num_waiting_bytes += len(chunk)
        if num_waiting_bytes >= BATCH_BYTES:
            is_large = True
            await off_loop(reader.feed, b"".join(waiting))
            waiting = []
            num_waiting_bytes = 0
    rest = b"".join(waiting)
    if is_large or len(rest) > INLINE_BYTES:
        return await off_loop(reader.finish, rest)
    return reader.finish(rest)


class JsonReader:
    """Parses one JSON object that arrives in chunks."""

    def __init__(self, bounds: JsonBounds) -> None:
        self._events = ijson.sendable_list()
        # use_float: numbers are float or int, never Decimal
        self._parser = ijson.basic_parse_coro(self._events, use_float=True)
        self._builder = ValueBuilder(bounds)
        self._is_first = True
        self._carry = b""
        self._string: _String | None = None
        self._num_silent_bytes = 0

    def feed(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            PayloadTooLarge: A list has more items than allowed.
            InvalidRequest: The body is not JSON, or goes beyond the bounds.
        """
        for start in range(0, len(data), SLICE_BYTES):
            self._feed_slice(data[start : start + SLICE_BYTES])

    def finish(self, data: bytes) -> dict[str, Any]:
        """Parse the last bytes and return the object; raises what `feed` raises."""
        self.feed(data)
        if self._string is not None or self._carry:
            raise _not_json()
        try:
            self._parser.close()
        except (ijson.JSONError, ValueError) as error:
            raise _not_json() from error
        return self._builder.result()

    def _feed_slice(self, data: bytes) -> None:
        if self._is_first:
            data = data.removeprefix(_BYTE_ORDER_MARK)
            self._is_first = False
        parsable = self._without_long_strings(self._carry + data)
        if not parsable:  # ijson treats empty input as the end of the body
            return
        try:
            self._parser.send(parsable)
        except (ijson.JSONError, ValueError) as error:
            raise _not_json() from error
        self._check_progress(len(parsable))
        self._builder.add(self._events)
        del self._events[:]

    def _check_progress(self, num_bytes: int) -> None:
        self._num_silent_bytes = 0 if self._events else self._num_silent_bytes + num_bytes
        if self._num_silent_bytes > MAX_TOKEN_BYTES:
            raise InvalidRequest(
                f"The body contains a number or white space of more than {MAX_TOKEN_BYTES:,} "
                "characters. Remove it."
            )

    def _without_long_strings(self, data: bytes) -> bytes:
        """Return the part of a slice for ijson: only finished strings, and long ones emptied."""
        parts: list[bytes] = []
        position = 0
        while position < len(data):
            if self._string is None:
                quote = data.find(b'"', position)
                end = len(data) if quote < 0 else quote
                parts.append(data[position:end])
                position = end + 1
                self._string = None if quote < 0 else _String()
                continue
            match = _STRING.match(data, position)
            assert match is not None, "the pattern matches the empty string"
            self._string.append(match.group())
            position = match.end()
            if position < len(data) and data[position] != ord('"'):
                break  # an escape sequence continues in the next slice
            if position < len(data):
                parts.append(self._close_string(self._string))
                self._string = None
                position += 1
        self._carry = data[position:] if self._string is not None else b""
        return b"".join(parts)

    def _close_string(self, string: "_String") -> bytes:
        """Return the string for ijson; pass its value to the builder if that differs."""
        if string.long is None and not string.has_escapes:
            self._builder.note_string(None)
            return b'"' + b"".join(string.pieces) + b'"'
        self._builder.note_string(string.long or _unescaped(b"".join(string.pieces)))
        return b'""'


class _String:
    """A string of the body that has not been closed yet."""

    __slots__ = ("has_escapes", "long", "nbytes", "pieces")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.nbytes = 0
        self.has_escapes = False
        self.long: LongText | None = None

    def append(self, piece: bytes) -> None:
        """Add a piece that does not end inside an escape sequence."""
        if self.long is not None:
            self.long.append(piece)
            return
        self.pieces.append(piece)
        self.nbytes += len(piece)
        self.has_escapes = self.has_escapes or b"\\" in piece
        if self.nbytes > LONG_TEXT_BYTES:
            self.long = LongText()
            for held in self.pieces:
                self.long.append(held)
            self.pieces = []


def _unescaped(raw: bytes) -> str:
    """Return the value of a string with escape sequences.

    Half of a surrogate pair stays as it is, for `check_text` to refuse: ijson would make it `?`.
    """
    try:
        text: str = json.loads(b'"' + raw + b'"')
    except ValueError as error:
        raise _not_json() from error
    return text


def _not_json() -> InvalidRequest:
    return InvalidRequest("The body is not JSON in UTF-8. Check that it is complete.")

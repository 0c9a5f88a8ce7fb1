"""Texts in a JSON body that are too long to become a Python string in one step.

Not here: what such a text means (`sources.py`), and how it is found in a body (`json_bodies.py`).
"""

import json
from collections import deque
from collections.abc import Iterator

from serve_app.errors import InvalidRequest

LONG_TEXT_BYTES = 64 * 1024
"""Texts of more bytes than this stay in pieces. Only base64 images are this long."""
HEAD_BYTES = 256
"""Bytes that `LongText.head` returns; a data URI's prefix is shorter."""
_CONTROL_CHARACTERS = bytes(range(32))


class LongText:
    """A JSON string of more than `LONG_TEXT_BYTES`, kept as the pieces in which it arrived.

    Working on the whole of such a text would hold the GIL for 10 ms or more: one call into C
    runs to its end before the event loop gets its turn. Reading the pieces also frees them, so a
    body and what is decoded from it are never in memory at the same time.
    """

    __slots__ = ("_pieces", "nbytes")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self.nbytes = 0

    def append(self, raw: bytes) -> None:
        """Add a raw piece from between the quotes; it must not end inside an escape sequence.

        Raises:
            InvalidRequest: The piece has a control character or an escape sequence that JSON
                does not allow.
        """
        self.append_plain(_unescaped(raw))

    def append_plain(self, piece: bytes) -> None:
        """Add a piece that has no escape sequences."""
        self._pieces.append(piece)
        self.nbytes += len(piece)

    def head(self) -> bytes:
        """Return the first `HEAD_BYTES` bytes, which stay in the text."""
        head = b""
        while len(head) < HEAD_BYTES and self._pieces:
            head += self._pieces.popleft()
        self._pieces.appendleft(head)
        return head[:HEAD_BYTES]

    def drain(self) -> Iterator[bytes]:
        """Remove and return the pieces, in order. The text is empty afterwards."""
        while self._pieces:
            yield self._pieces.popleft()


def _unescaped(raw: bytes) -> bytes:
    """Return a piece without escape sequences.

    Long texts are base64, so only ASCII matters. A character that is not ASCII becomes a byte that
    base64 does not have either.
    """
    if b"\\" not in raw:
        if len(raw.translate(None, _CONTROL_CHARACTERS)) != len(raw):
            raise InvalidRequest("The body is not JSON: a text holds a control character.")
        return raw
    try:
        text: str = json.loads(f'"{raw.decode("latin-1")}"')
    except ValueError as error:
        raise InvalidRequest("The body is not JSON: an escape sequence is invalid.") from error
    return text.encode("latin-1", "replace")

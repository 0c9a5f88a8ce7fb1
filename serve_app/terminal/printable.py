"""Makes untrusted text safe for a terminal, a log line, a page or a JSON document.

A label, a file name or an error message of a server may contain escape sequences that move the
cursor, newlines that imitate this program's output, and bidirectional overrides that reverse the
displayed text. All output of this package goes through this module, or through `console.py` for
tables and progress bars. A test searches the package for other `print` calls.

Not here: refusing such characters in labels (`tagging/prompts.py`).
"""

import json
import math
import re
import sys
from typing import Any, TextIO

_HIDDEN = (
    "\x00-\x1f\x7f-\x9f"  # C0 and C1 control characters, including ESC, BEL and newlines
    "\xad\u061c\u180e"  # soft hyphen, Arabic letter mark, Mongolian vowel separator
    "\u200b\u200e\u200f"  # zero-width space, left-to-right and right-to-left mark
    "\u2028-\u202e"  # line and paragraph separator, bidirectional embeddings and overrides
    "\u2060-\u206f\ufeff"  # word joiner, bidirectional isolates, byte order mark
    "\ufff0-\ufffb"  # interlinear annotation
    "\ud800-\udfff"  # halves of surrogate pairs, which represent file names that are not UTF-8
    "\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # layout of rare scripts
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"  # tags: invisible ASCII
)
"""Invisible characters. U+200C and U+200D are excluded, because Persian, Hindi and emoji need
them."""
HIDDEN = re.compile(f"[{_HIDDEN}]")
_HIDDEN_BUT_NEWLINE = re.compile(f"(?!\n)[{_HIDDEN}]")
_ESCAPED_BY_NAME = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    r"""Return text as one line in which hidden characters are shown as escapes such as `\x1b`."""
    return HIDDEN.sub(_shown, text)


def printable_lines(text: str) -> str:
    """Return text like `printable`, but keep the line breaks of blocks that this package wrote."""
    return _HIDDEN_BUT_NEWLINE.sub(_shown, text)


def print_line(text: str = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line to standard output, or to another stream, with hidden characters escaped."""
    print(printable(text), file=file or sys.stdout, flush=flush)


def print_block(text: str, *, file: TextIO | None = None) -> None:
    """Print lines that this package composed, such as a rendered configuration."""
    print(printable_lines(text), end="", file=file or sys.stdout)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return strict JSON with hidden characters escaped and other text readable.

    NaN and infinite numbers become null, because JSON cannot represent them.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, default=str)
    # json.dumps has already escaped newlines inside strings; the remaining ones are indentation
    return _HIDDEN_BUT_NEWLINE.sub(_json_escape, text)


def _shown(match: re.Match[str]) -> str:
    character = match[0]
    if character in _ESCAPED_BY_NAME:
        return _ESCAPED_BY_NAME[character]
    return (
        character.encode("ascii", "backslashreplace").decode()
        if character > "\x7f"
        else f"\\x{ord(character):02x}"
    )


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match[0]).strip('"') if match[0] != "\x7f" else "\\u007f"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value

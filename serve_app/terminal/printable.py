"""Text that came from outside, made safe for a terminal, a log line, a page or a JSON document.

A label, a file name or an error message of a server may contain escape sequences that move the
cursor, newlines that imitate this program's output, and bidirectional overrides that reverse what
a person reads. Everything in this package that prints goes through this module, or through
`console.py` for tables and progress bars; a test searches the package for other `print` calls.

Refusing such characters in labels is `tagging/prompts.py`'s task.
"""

import json
import math
import re
import sys
from typing import Any, TextIO

_HIDDEN = (
    "\x00-\x1f\x7f-\x9f"  # C0 and C1 control characters, among them ESC, BEL and the newlines
    "\xad\u061c\u180e"  # soft hyphen, Arabic letter mark, Mongolian vowel separator
    "\u200b\u200e\u200f"  # zero-width space, left-to-right and right-to-left mark
    "\u2028-\u202e"  # line and paragraph separator, bidirectional embeddings and overrides
    "\u2060-\u206f\ufeff"  # word joiner, bidirectional isolates, byte order mark
    "\ufff0-\ufffb"  # interlinear annotation
    "\ud800-\udfff"  # halves of surrogate pairs, as file names that are not UTF-8 have them
    "\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # layout of rare scripts
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"  # tags: ASCII that nobody sees
)
"""Characters without a shape of their own. U+200C and U+200D are missing on purpose: Persian,
Hindi and emoji are written with them."""
HIDDEN = re.compile(f"[{_HIDDEN}]")
_HIDDEN_BUT_NEWLINE = re.compile(f"(?!\n)[{_HIDDEN}]")
_ESCAPED_BY_NAME = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    r"""Return text as one line in which hidden characters are shown as escapes such as `\x1b`."""
    return HIDDEN.sub(_shown, text)


def printable_lines(text: str) -> str:
    """Return text like `printable`, but keep its line breaks: for blocks that this package
    wrote.
    """
    return _HIDDEN_BUT_NEWLINE.sub(_shown, text)


def print_line(text: str = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line to standard output, or to another stream, with hidden characters escaped."""
    print(printable(text), file=file or sys.stdout, flush=flush)


def print_block(text: str, *, file: TextIO | None = None) -> None:
    """Print lines that this package composed, such as a rendered configuration, as they are."""
    print(printable_lines(text), end="", file=file or sys.stdout)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return strict JSON: hidden characters escaped, other text readable, no NaN and no Infinity.

    Numbers that are not finite become null, because JSON has no way to write them.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, default=str)
    # json.dumps has escaped the newlines inside strings already; those left are the indentation
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

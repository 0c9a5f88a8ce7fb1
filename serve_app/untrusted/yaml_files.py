"""Reads YAML files with limits on size, depth and aliases; this is the package's only YAML reader.

A document is parsed twice. The first pass reads parser events one at a time, without recursion. It
refuses documents that would take too much time, memory or stack: a few hundred bytes of aliases can
expand to a billion values, and libyaml crashes the process at about 100,000 nested blocks. The
second pass builds the values.

YAML reads some words as something other than text: `no` is false, `007` is 7, `12:30` is 750 and
`2024-01-01` is a date. Such a word is refused as a key, because every key that this package knows
is text. Callers decide which values must be text (`unquoted_value`).

Not here: the line of every value (`tagging/lined_yaml.py`).
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import ConfigError
from serve_app.terminal.printable import printable
from serve_app.untrusted.bounded_files import read_text

MAX_YAML_BYTES = 32 * 2**20
"""Maximum size of one file. A vocabulary of 100,000 tags with all their fields has about 15 MB."""
MAX_DEPTH = 64
"""Maximum number of nested blocks. A Kubernetes manifest has up to about 20."""
MAX_NODES = 1_000_000
"""Maximum number of values in one file. An alias counts as all the values that it expands to."""
MAX_NUMBER_CHARACTERS = 100
"""Longer numbers are refused, because converting a number of millions of digits takes minutes."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader if it is installed, because it is ten times as fast."""
_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"
_VALUE = "tag:yaml.org,2002:value"
_NULL = "tag:yaml.org,2002:null"
_FLOAT = "tag:yaml.org,2002:float"
_NUMBERS = (_FLOAT, "tag:yaml.org,2002:int")
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_KINDS = {
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:int": "a number",
    _FLOAT: "a number",
    _NULL: "nothing",
    _TIMESTAMP: "a date",
}
"""Names of the types that YAML gives to words that are not text."""
_CONSTRUCTOR = yaml.constructor.SafeConstructor()


class SettingsLoader(LOADER):  # type: ignore[misc]
    """Reads `1e3` and `1e-3` as numbers, as YAML 1.2 does; PyYAML requires `1.0e+3`."""


SettingsLoader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?[0-9]*\.?[0-9]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
SettingsLoader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?[0-9]+\.[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_documents(path: Path) -> list[Any]:
    """Return the documents of a YAML file.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or exceeds a limit; the message names the
            file and line.
    """
    return parse_documents(read_text(path, MAX_YAML_BYTES), str(path))


def parse_documents(text: str, where: str) -> list[Any]:
    """Return the documents of a YAML text; `where` is its name in messages.

    Raises:
        ConfigError: The text is not YAML or exceeds a limit; the message names the line.
    """
    return [value for _, value in parse_nodes(text, where)]


def parse_nodes(
    text: str, where: str, loader_class: Any = LOADER
) -> list[tuple[yaml.Node | None, Any]]:
    """Return each document of a YAML text as its root node, which has line numbers, and its value.

    Args:
        text: The documents.
        where: Name of the text in messages.
        loader_class: `LOADER`, or `SettingsLoader` for the package's own files.

    Raises:
        ConfigError: The text is not YAML, has a key twice in one block or a key that is not text,
            or exceeds a limit.
    """
    _check_events(text, where)
    loader = loader_class(text)
    documents: list[tuple[yaml.Node | None, Any]] = []
    try:
        while loader.check_node():
            node = loader.get_node()
            _check_node(node, where)
            documents.append((node, loader.construct_document(node)))
    except yaml.YAMLError as error:
        raise _not_yaml(error, where) from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}.") from error
    finally:
        loader.dispose()
    return documents


@dataclass(slots=True)
class _Block:
    """An open list or block, with its anchor and its size so far."""

    anchor: str | None
    nodes: int = 1
    height: int = 1


@dataclass(slots=True)
class _Counted:
    """The open blocks, and the number of values and the height of every anchored node."""

    where: str
    open: list[_Block] = field(default_factory=list)
    anchors: dict[str, tuple[int, int]] = field(default_factory=dict)
    total: int = 0

    def add(self, nodes: int, height: int, line: int) -> None:
        """Count new values; refuse the document if it has too many or is nested too deeply."""
        self.total += nodes
        if self.total > MAX_NODES:
            raise ConfigError(
                f"{self.where}:{line}: more than {MAX_NODES:,} values, counting expanded aliases; "
                "split the file."
            )
        if len(self.open) + height > MAX_DEPTH:
            raise ConfigError(
                f"{self.where}:{line}: nested deeper than {MAX_DEPTH} blocks; make it flatter."
            )
        self.join(nodes, height)

    def join(self, nodes: int, height: int) -> None:
        """Add values to the block that contains them."""
        if self.open:
            block = self.open[-1]
            block.nodes += nodes
            block.height = max(block.height, height + 1)


def _check_events(text: str, where: str) -> None:
    """Refuse a text that is too expensive to build; see the module's docstring."""
    counted = _Counted(where)
    try:
        for event in yaml.parse(text, Loader=LOADER):
            _count(event, counted)
    except yaml.YAMLError as error:
        raise _not_yaml(error, where) from error


def _count(event: yaml.Event, counted: _Counted) -> None:
    line = event.start_mark.line + 1 if event.start_mark else 1
    match event:
        case yaml.DocumentStartEvent():
            counted.anchors.clear()
        case yaml.AliasEvent():
            if event.anchor not in counted.anchors:
                raise ConfigError(
                    f"{counted.where}:{line}: the alias *{event.anchor} refers to itself, "
                    "or to nothing before it."
                )
            counted.add(*counted.anchors[event.anchor], line)
        case yaml.ScalarEvent():
            counted.add(1, 1, line)
            if event.anchor:
                counted.anchors[event.anchor] = (1, 1)
        case yaml.CollectionStartEvent():
            counted.add(1, 1, line)
            counted.open.append(_Block(event.anchor))
            if event.anchor:  # before the block ends, an alias to it would be inside it
                counted.anchors.pop(event.anchor, None)
        case yaml.CollectionEndEvent():
            block = counted.open.pop()
            counted.join(block.nodes - 1, block.height)  # the block itself was counted at its start
            if block.anchor:
                counted.anchors[block.anchor] = (block.nodes, block.height)


def _check_node(root: yaml.Node, where: str) -> None:
    """Refuse duplicate keys, keys that are not text, and numbers and dates that cannot be read."""
    seen: set[int] = set()  # an alias is the node itself again
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif node.tag in _NUMBERS:
            _check_number(node, where)
            _check_readable(node, where)
        elif node.tag == _TIMESTAMP:
            _check_readable(node, where)
        elif node.tag == _VALUE:
            raise ConfigError(
                f'{where}:{node.start_mark.line + 1}: = is not text in YAML; quote it: "=".'
            )


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        place = f"{where}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{place}: a key must be text and not a list or a block.")
        if key.value in seen:
            hint = (
                "; merge several blocks with a list, such as <<: [*a, *b]"
                if key.tag == _MERGE
                else ""
            )
            raise ConfigError(
                f"{place}: {key.value!r} is set twice in one block; keep one of them{hint}."
            )
        seen.add(key.value)
        if key.tag != _MERGE and (problem := unquoted_value(key)):
            raise ConfigError(f"{place}: the key {problem}.")


def unquoted_value(node: yaml.ScalarNode) -> str | None:
    """Return why a value is not text, as a sentence that begins with the value; None if it is."""
    if node.tag == _TEXT:
        return None
    written = printable(node.value[:MAX_NUMBER_CHARACTERS])
    if not written:
        return 'is empty; write a text, or "" for an empty one'
    quoted = json.dumps(written, ensure_ascii=False)
    if node.tag == _NULL:
        return f"{written} is not text in YAML but empty; remove it, or quote it: {quoted}"
    kind = _KINDS.get(node.tag, "a special value")
    return f"{written} is not text in YAML but {kind}; quote it: {quoted}"


def _check_readable(node: yaml.Node, where: str) -> None:
    """Refuse numbers and dates that YAML recognises but cannot build, such as 2024-13-45 or 0x_."""
    try:
        _CONSTRUCTOR.yaml_constructors[node.tag](_CONSTRUCTOR, node)
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        line = node.start_mark.line + 1
        quoted = json.dumps(printable(str(node.value)[:MAX_NUMBER_CHARACTERS]), ensure_ascii=False)
        kind = _KINDS[node.tag]
        raise ConfigError(
            f"{where}:{line}: {quoted} looks like {kind} but is not valid; if it is text, quote it."
        ) from error


def _check_number(node: yaml.Node, where: str) -> None:
    line = node.start_mark.line + 1
    if len(node.value) > MAX_NUMBER_CHARACTERS:
        raise ConfigError(
            f"{where}:{line}: a number has more than {MAX_NUMBER_CHARACTERS} characters; "
            "put text in quotes."
        )
    if any(not math.isfinite(value) for value in _as_float(node.value)):
        raise ConfigError(
            f"{where}:{line}: {node.value} is not a finite number; "
            "write a number, or put text in quotes."
        )


def _as_float(text: str) -> Iterator[float]:
    """Yield a number as a float; yield nothing for notations that are always finite."""
    plain = text.replace("_", "").lower()
    if plain.lstrip("+-") in (".inf", ".nan"):
        yield math.inf
        return
    with contextlib.suppress(ValueError):
        yield float(plain)


def _not_yaml(error: yaml.YAMLError, where: str) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        return ConfigError(f"{place}: not YAML: {error.problem or error.context}.")
    return ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}.")

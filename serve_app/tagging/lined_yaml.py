"""YAML whose values know the line they stand on, so that a problem in a file of thousands of lines can be found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import ConfigError

Place = tuple[str | int, ...]
"""Keys and list positions from the top of the file to a value."""
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class LinedYaml:
    """What a file holds, and the line of every value."""

    data: Any
    lines: dict[Place, int]

    def line_of(self, place: Place) -> int:
        """Return the line of a value, or of the nearest block around it that there is."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        ConfigError: It is not there, cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist.") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8; save the file as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}.") from error


def parse_lined_yaml(text: str, path: Path) -> LinedYaml:
    """Parse one YAML document.

    Raises:
        ConfigError: It is not YAML, or a block holds a key twice; names the line.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return LinedYaml(None, {})
        lines: dict[Place, int] = {}
        _walk(node, (), lines, path)
        return LinedYaml(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], path: Path) -> None:
    line = node.start_mark.line + 1
    lines[place] = line
    if len(place) > MAX_DEPTH:
        raise ConfigError(f"{path}:{line}: nested deeper than {MAX_DEPTH} blocks.")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: {name} stands twice in one block; keep one of them.")
            seen.add(name)
            _walk(value, (*place, name), lines, path)
            lines[(*place, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for at, value in enumerate(node.value):
            _walk(value, (*place, at), lines, path)

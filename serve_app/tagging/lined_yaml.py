"""YAML whose values know their line, so that a problem in a file of thousands of lines can be found.

Reading and the bounds on what is read are `yaml_files.py`'s.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import ConfigError
from serve_app.yaml_files import parse_nodes

Place = tuple[str | int, ...]
"""Keys and list positions from the top of the file to a value."""
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class LinedYaml:
    """What a file holds, and the line of every value."""

    data: Any
    lines: dict[Place, int]

    def line_of(self, place: Place) -> int:
        """Return the line of a value, or of the nearest block around it that is known."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def parse_lined_yaml(text: str, path: Path) -> LinedYaml:
    """Parse one YAML document.

    Raises:
        ConfigError: It is not one YAML document, or exceeds a bound of `yaml_files.py`; names the line.
    """
    documents = parse_nodes(text, str(path))
    if len(documents) > 1:
        raise ConfigError(f"{path} holds {len(documents)} documents; one is needed.")
    root, data = documents[0] if documents else (None, None)
    lines: dict[Place, int] = {}
    if root is not None:
        _walk(root, (), lines, path)
    return LinedYaml(data, lines)


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], path: Path) -> None:
    line = node.start_mark.line + 1
    lines[place] = line
    if len(place) > MAX_DEPTH:
        raise ConfigError(f"{path}:{line}: nested deeper than {MAX_DEPTH} blocks.")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value)
            _walk(value, (*place, name), lines, path)
            lines[(*place, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, (*place, i), lines, path)

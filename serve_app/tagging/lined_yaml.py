"""YAML whose values know their line and how they are written, so that problems can be found.

Not here: reading the YAML and the bounds on it (`yaml_files.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import ConfigError
from serve_app.untrusted.yaml_files import SettingsLoader, parse_nodes, unquoted_value

Place = tuple[str | int, ...]
"""Keys and list positions from the top of the file to a value."""
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class LinedYaml:
    """The content of a file.

    Attributes:
        data: The values.
        lines: The line of every value.
        unquoted: Error message for each scalar that YAML does not read as text, used where text is
            required.
    """

    data: Any
    lines: dict[Place, int] = field(default_factory=dict)
    unquoted: dict[Place, str] = field(default_factory=dict)

    def line_of(self, place: Place) -> int:
        """Return the line of a value, or of the nearest block around it that is known."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def part(self, prefix: Place, data: Any) -> "LinedYaml":
        """Return a part of the file, whose places begin at `prefix`."""
        size = len(prefix)
        return LinedYaml(
            data,
            {place[size:]: line for place, line in self.lines.items() if place[:size] == prefix},
            {place[size:]: text for place, text in self.unquoted.items() if place[:size] == prefix},
        )


def parse_lined_yaml(
    text: str, path: Path, max_depth: int = MAX_DEPTH, loader_class: Any = SettingsLoader
) -> LinedYaml:
    """Parse at most one YAML document; nothing gives None.

    Raises:
        ConfigError: It is not one YAML document, or exceeds a bound of `yaml_files.py`; names the
            line.
    """
    documents = parse_nodes(text, str(path), loader_class)
    if len(documents) > 1:
        raise ConfigError(f"{path} holds {len(documents)} documents; one is needed.")
    root, data = documents[0] if documents else (None, None)
    content = LinedYaml(data)
    if root is not None:
        _walk(root, (), content, path, max_depth)
    return content


def _walk(node: yaml.Node, place: Place, content: LinedYaml, path: Path, max_depth: int) -> None:
    line = node.start_mark.line + 1
    content.lines[place] = line
    if len(place) > max_depth:
        raise ConfigError(f"{path}:{line}: nested deeper than {max_depth} blocks.")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value)
            _walk(value, (*place, name), content, path, max_depth)
            content.lines[(*place, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, (*place, i), content, path, max_depth)
    elif isinstance(node, yaml.ScalarNode) and (problem := unquoted_value(node)):
        content.unquoted[place] = problem

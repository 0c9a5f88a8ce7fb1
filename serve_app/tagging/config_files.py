"""`ConfigFile`: where a configuration was read from, for messages about its values."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.tagging.lined_yaml import LinedYaml, Place


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The file that a configuration was read from; its content is empty for one in memory.

    Attributes:
        folder: Folder that the files it names are relative to.
        name: Name of the file in messages.
        content: The file with its lines.
    """

    folder: Path
    name: str = ""
    content: LinedYaml = field(default_factory=lambda: LinedYaml(None))

    def place(self, place: Place) -> str:
        """Return the beginning of a message about a value: the file and line, or nothing."""
        return f"{self.name}:{self.content.line_of(place)}: " if place in self.content.lines else ""

    def unquoted(self, place: Place, where: str) -> str | None:
        """Return a sentence about a value that YAML does not read as text, or None if it does."""
        problem = self.content.unquoted.get(place)
        return None if problem is None else f"{self.place(place)}{where}: {problem}."

    def dates(self) -> list[str]:
        """Return a sentence about every value that YAML reads as a date, which no setting is."""
        places = [place for place in self.content.unquoted if self._is_date(place)]
        return [self.unquoted(place, ".".join(map(str, place))) or "" for place in places]

    def _is_date(self, place: Place) -> bool:
        value = self.content.data
        for part in place:
            value = value[part]
        return isinstance(value, datetime.date)

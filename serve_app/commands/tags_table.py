"""What pictures show, as a table for people."""

import os
from collections.abc import Mapping
from pathlib import Path

from rich.text import Text

from serve_app.commands.files import shown
from serve_app.commands.json_lines import ShownOutcome, ShownTag
from serve_app.console import SafeConsole, SafeTable, styled
from serve_app.errors import TaggerError


def print_table(found: Mapping[Path, ShownOutcome]) -> None:
    """Print one row for each tag; names are relative to the folder that the pictures share."""
    SafeConsole().print(_table(found))


def _table(found: Mapping[Path, ShownOutcome]) -> SafeTable:
    shared_folder = os.path.commonpath([path.resolve().parent for path in found]) if len(found) > 1 else ""
    table = SafeTable("picture", "tag", "confidence")
    table.columns[2].justify = "right"
    for path, outcome in found.items():
        name = shown(Path(os.path.relpath(path.resolve(), shared_folder)) if shared_folder else path)
        if isinstance(outcome, TaggerError):
            table.add_row(name, styled(outcome.message, "red"), "")
            continue
        for row, tag in enumerate(outcome or (None,)):
            label, confidence = _cells(tag)
            table.add_row(name if row == 0 else "", label, confidence)
    return table


def _cells(tag: ShownTag | None) -> tuple[str | Text, str]:
    if tag is None:
        return styled("nothing above the threshold", "dim"), ""
    confidence = f"{tag.confidence:.3f}" if tag.confidence >= 0.001 else f"{tag.confidence:.1e}"
    return tag.label, confidence

"""What pictures show, as a table for people."""

import os
from collections.abc import Mapping
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

from rich.text import Text

from serve_app.commands.files import shown
from serve_app.commands.json_lines import ShownOutcome, ShownTag
from serve_app.errors import TaggerError
from serve_app.terminal.console import SafeTable, output_console, styled


def print_table(found: Mapping[Path, ShownOutcome], raw_scores: bool = True) -> None:
    """Print one row for each tag; names are relative to the folder that the images share.

    Raw scores have a column of their own if they are to be shown and a tag has one.
    """
    output_console().print(_table(found, raw_scores and any(map(_has_raw_scores, found.values()))))


def _has_raw_scores(outcome: ShownOutcome) -> bool:
    return not isinstance(outcome, TaggerError) and any(
        tag.raw_score is not None for tag in outcome
    )


def _table(found: Mapping[Path, ShownOutcome], raw_scores: bool) -> SafeTable:
    shared_folder = (
        os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in found])
        if len(found) > 1
        else ""
    )
    table = SafeTable("picture", "tag", "confidence", *(("raw score",) if raw_scores else ()))
    for column in table.columns[2:]:
        column.justify = "right"
    for path, outcome in found.items():
        name = shown(
            Path(os.path.relpath(os.path.abspath(path), shared_folder)) if shared_folder else path
        )
        if isinstance(outcome, TaggerError):
            table.add_row(name, styled(outcome.message, "red"))
            continue
        for row, tag in enumerate(outcome or (None,)):
            table.add_row(name if row == 0 else "", *_cells(tag, raw_scores))
    return table


def _cells(tag: ShownTag | None, raw_scores: bool) -> list[str | Text]:
    if tag is None:
        return [styled("nothing above the threshold", "dim")]
    cells: list[str | Text] = [tag.label, _rounded_down(tag.confidence)]
    if raw_scores:
        cells.append("" if tag.raw_score is None else f"{tag.raw_score:.3f}")
    return cells


def _rounded_down(confidence: float) -> str:
    """Return a confidence to three digits, rounded down: as a threshold it keeps the tag."""
    digits = Decimal(f"{confidence:.6g}")
    step = (
        Decimal("0.001") if abs(confidence) >= 0.001 else Decimal(1).scaleb(digits.adjusted() - 1)
    )
    shown = digits.quantize(step, ROUND_FLOOR)
    return f"{shown:f}" if abs(confidence) >= 0.001 else f"{shown:.1e}"

"""Prints the tags of images as a table."""

import os
from collections.abc import Mapping
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

from rich.text import Text

from serve_app.commands.files import printable_path
from serve_app.commands.json_lines import PrintableOutcome, PrintableTag
from serve_app.errors import TaggerError
from serve_app.terminal.console import SafeTable, output_console, styled


def print_table(outcomes: Mapping[Path, PrintableOutcome], raw_scores: bool = True) -> None:
    """Print one row for each tag, with file names relative to the images' common folder.

    The table has a column of raw scores if `raw_scores` is set and at least one tag has one.
    """
    has_column = raw_scores and any(map(_has_raw_scores, outcomes.values()))
    output_console().print(_table(outcomes, has_column))


def _has_raw_scores(outcome: PrintableOutcome) -> bool:
    return not isinstance(outcome, TaggerError) and any(
        tag.raw_score is not None for tag in outcome
    )


def _table(outcomes: Mapping[Path, PrintableOutcome], raw_scores: bool) -> SafeTable:
    table = SafeTable("image", "tag", "confidence", *(("raw score",) if raw_scores else ()))
    for column in table.columns[2:]:
        column.justify = "right"

    folder = _common_folder(outcomes)
    for path, outcome in outcomes.items():
        shown_path = path
        if folder is not None:
            shown_path = Path(os.path.relpath(os.path.abspath(path), folder))
        name = printable_path(shown_path)
        if isinstance(outcome, TaggerError):
            table.add_row(name, styled(outcome.message, "red"))
            continue
        for row, tag in enumerate(outcome or (None,)):
            table.add_row(name if row == 0 else "", *_cells(tag, raw_scores))
    return table


def _common_folder(paths: Mapping[Path, PrintableOutcome]) -> str | None:
    """Return the folder that contains all paths; None for a single path, which is shown whole."""
    if len(paths) <= 1:
        return None
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def _cells(tag: PrintableTag | None, raw_scores: bool) -> list[str | Text]:
    if tag is None:
        return [styled("no tag above the threshold", "dim")]
    cells: list[str | Text] = [tag.label, _rounded_down(tag.confidence)]
    if raw_scores:
        cells.append("" if tag.raw_score is None else f"{tag.raw_score:.3f}")
    return cells


def _rounded_down(confidence: float) -> str:
    """Return a confidence with three decimals, or two digits if it is small.

    It is rounded down, so that the printed number, used as a threshold, keeps the tag.
    """
    digits = Decimal(f"{confidence:.6g}")
    if abs(confidence) >= 0.001:
        return f"{digits.quantize(Decimal('0.001'), ROUND_FLOOR):f}"
    step = Decimal(1).scaleb(digits.adjusted() - 1)
    return f"{digits.quantize(step, ROUND_FLOOR):.1e}"

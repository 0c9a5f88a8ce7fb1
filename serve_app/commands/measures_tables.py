"""Tables of measures: several scores side by side, or each tag of one score."""

from collections.abc import Mapping

from serve_app.tagging.evaluation import Measures
from serve_app.terminal.console import SafeTable

SUMMARY_COLUMNS = (
    "mAP",
    "precision",
    "recall",
    "F1",
    "macro F1",
    "calibration error",
    "tags per image",
)


def summary_cells(measures: Measures) -> list[str]:
    """Return the cells of `SUMMARY_COLUMNS`."""
    numbers = (
        measures.mean_average_precision,
        measures.micro.precision,
        measures.micro.recall,
        measures.micro.f1,
        measures.macro_f1,
        measures.calibration_error,
    )
    return [*(f"{number:.4f}" for number in numbers), f"{measures.tags_per_image:.2f}"]


def summary_table(measures: Mapping[str, Measures]) -> SafeTable:
    """Return the measures of several scores side by side."""
    table = SafeTable("score", *SUMMARY_COLUMNS)
    _align_numbers(table)
    for name, measured in measures.items():
        table.add_row(name, *summary_cells(measured))
    return table


def tag_table(measures: Measures) -> SafeTable:
    """Return the measures of each tag, sorted by F1, the worst first."""
    table = SafeTable("tag", "true", "returned", "precision", "recall", "F1", "AP")
    _align_numbers(table)
    for tag in sorted(measures.tags, key=lambda tag: (tag.rates.f1, tag.label)):
        numbers = (tag.rates.precision, tag.rates.recall, tag.rates.f1, tag.average_precision)
        cells = (f"{number:.3f}" for number in numbers)
        table.add_row(tag.label, str(tag.true), str(tag.given), *cells)
    return table


def _align_numbers(table: SafeTable) -> None:
    for column in table.columns[1:]:
        column.justify = "right"

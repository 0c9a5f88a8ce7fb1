"""Writes the report of a calibration as Markdown, with figures."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve_app.commands.measures_tables import SUMMARY_COLUMNS, summary_cells
from serve_app.errors import ConfigError
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import sigmoid
from serve_app.tagging.calibration import Calibration
from serve_app.tagging.evaluation import (
    CALIBRATION_BINS,
    BoolArray,
    Measures,
    precision_recall_curve,
    reliability,
)
from serve_app.terminal.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT = "report.md"
RELIABILITY_FIGURE = "reliability.png"
CURVES_FIGURE = "precision-recall.png"
COUNTS_FIGURE = "tags-per-image.png"
_MARKDOWN_SPECIAL = re.compile(r"[\\`*_\[\]|>#~]")
SHOWN_TAGS = 20
DOTS_PER_INCH = 120
MIN_AXIS = 1e-4
"""Lower end of the logarithmic axes. Smaller values are drawn there, because most pairs of an image
and a tag have a confidence near 0."""


@dataclass(frozen=True, slots=True)
class LabelledReport:
    """The content of a report on a fit to labelled images.

    Attributes:
        measures: By name, in the order of the table. The first one is before the calibration, the
            last one after it.
        scores: (B, T) logits of the held-out images, by name: `raw` and `calibrated`.
        truth: (B, T) whether a tag is true of an image.
        num_images: Number of images, including those that were fitted.
        precision: Minimum precision that thresholds were chosen for; None for the best F1.
    """

    measures: Mapping[str, Measures]
    scores: Mapping[str, FloatArray]
    truth: BoolArray
    num_images: int
    precision: float | None


@dataclass(frozen=True, slots=True)
class UnlabelledReport:
    """The content of a report on a fit to unlabelled images.

    Attributes:
        before: (B, T) whether an image has a tag without the calibration.
        after: (B, T) whether an image has a tag with the calibration.
        calibration: The calibration.
        threshold: The configuration's `confidence_threshold`, which applies before.
        percentile: The percentile of each tag's logits that the calibration aligns.
    """

    before: BoolArray
    after: BoolArray
    calibration: Calibration
    threshold: float
    percentile: float

    def lines(self) -> list[str]:
        """Return the report as sentences."""
        offsets = sorted(self.calibration.tags.items(), key=lambda item: item[1].offset)
        down = ", ".join(
            f"{label} {fit.offset:+.2f}" for label, fit in offsets[:SHOWN_TAGS] if fit.offset < 0
        )
        up = ", ".join(
            f"{label} {fit.offset:+.2f}"
            for label, fit in offsets[: -SHOWN_TAGS - 1 : -1]
            if fit.offset > 0
        )
        return [
            f"{len(self.before):,} unlabelled images.",
            f"Before, at a confidence threshold of {self.threshold:g}: "
            f"{self.before.sum(axis=1).mean():.2f} tags per image.",
            f"After, at the suggested threshold of {self.calibration.threshold:.4g}: "
            f"{self.after.sum(axis=1).mean():.2f} tags per image.",
            f"The calibration aligns the {self.percentile:g}th percentile of each tag's logits on "
            "unrelated images with that of the median tag.",
            f"Labels that moved down most, in logits: {down or 'none'}.",
            f"Labels that moved up most, in logits: {up or 'none'}.",
        ]


def write_labelled_report(report: LabelledReport, folder: Path) -> Path:
    """Write the report on a fit to labelled images, and return the path of its page.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save(_reliability_figure(report), folder / RELIABILITY_FIGURE)
    _save(_curves_figure(report), folder / CURVES_FIGURE)
    goal = "the best F1"
    if report.precision is not None:
        goal = f"a precision of at least {report.precision:g}"
    lines = [
        "# Calibration",
        "",
        f"The calibration file is fitted to all {report.num_images:,} labelled images. "
        "The measures below come",
        f"from a second fit to one half of the images, and from the other {len(report.truth):,} "
        f"images. Thresholds are chosen for {goal}.",
        "`raw at its best threshold` is the raw sigmoid at the single threshold that is best for "
        "the fitted images: it shows what a",
        "threshold alone can reach.",
        "",
        *_measures_table(report.measures),
        "",
        f"![Reliability]({RELIABILITY_FIGURE})",
        "",
        "A point on the diagonal is a confidence that equals the observed frequency. Both axes are "
        "logarithmic. The size of a point is",
        "the logarithm of its number of pairs of an image and a tag.",
        "",
        f"![Precision and recall]({CURVES_FIGURE})",
        "",
        f"## The {SHOWN_TAGS} tags with the lowest F1 after calibration",
        "",
        *_tags_table(report.measures),
    ]
    return _write(lines, folder)


def write_unlabelled_report(report: UnlabelledReport, folder: Path) -> Path:
    """Write the report on a fit to unlabelled images, and return the path of its page.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = _figure(1)
    counts = {"before": report.before.sum(axis=1), "after": report.after.sum(axis=1)}
    bins = [count - 0.5 for count in range(max(int(c.max()) for c in counts.values()) + 2)]
    for name, count in counts.items():
        axes[0].hist(count, bins=bins, alpha=0.6, label=name)
    axes[0].set(xlabel="tags per image", ylabel="images")
    axes[0].legend()
    _save(figure, folder / COUNTS_FIGURE)
    sentences = [text for line in report.lines() for text in (_markdown(line), "")]
    return _write(["# Calibration", "", *sentences, f"![Tags per image]({COUNTS_FIGURE})"], folder)


def _markdown(text: str) -> str:
    """Escape text for Markdown, so that a label cannot contain a table cell, a link or HTML."""
    return _MARKDOWN_SPECIAL.sub(
        r"\\\g<0>", printable(text).replace("&", "&amp;").replace("<", "&lt;")
    )


def _measures_table(measures: Mapping[str, Measures]) -> list[str]:
    columns = ("score", *SUMMARY_COLUMNS)
    rows = [
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(SUMMARY_COLUMNS),
    ]
    for name, measured in measures.items():
        rows.append("| " + " | ".join([name, *summary_cells(measured)]) + " |")
    return rows


def _tags_table(measures: Mapping[str, Measures]) -> list[str]:
    first, *_, last = measures.values()
    before = {tag.label: tag for tag in first.tags}
    worst = sorted(
        (tag for tag in last.tags if tag.true), key=lambda tag: (tag.rates.f1, tag.label)
    )[:SHOWN_TAGS]
    rows = [
        "| tag | true | F1 before | F1 after | precision | recall | average precision |",
        "|---|" + "---:|" * 6,
    ]
    for tag in worst:
        numbers = (
            before[tag.label].rates.f1,
            tag.rates.f1,
            tag.rates.precision,
            tag.rates.recall,
            tag.average_precision,
        )
        rows.append(
            f"| {_markdown(tag.label)} | {tag.true} | "
            + " | ".join(f"{number:.3f}" for number in numbers)
            + " |"
        )
    return rows


def _reliability_figure(report: LabelledReport) -> "Figure":
    figure, axes = _figure(len(report.scores))
    for axis, (name, scores) in zip(axes, report.scores.items(), strict=True):
        bins = _reliability_bins(sigmoid(scores), report.truth)
        axis.plot([MIN_AXIS, 1], [MIN_AXIS, 1], color="grey", linewidth=1, linestyle="--")
        points = np.maximum(
            [(confidence, frequency) for _, confidence, frequency in bins], MIN_AXIS
        )
        axis.scatter(
            points[:, 0],
            points[:, 1],
            s=[8 * np.log1p(count) for count, *_ in bins],
            color="#1f6fb4",
        )
        axis.set(xscale="log", yscale="log", xlabel="confidence", title=name)
    axes[0].set_ylabel("frequency of true tags")
    return figure


def _reliability_bins(confidences: FloatArray, truth: BoolArray) -> list[tuple[int, float, float]]:
    """Return (count, confidence, frequency) of the bins of [0, 1] that are not empty.

    The bins have equal widths, except that the first one is split into narrower ones.
    """
    bins = [(b.count, b.confidence, b.frequency) for b in reliability(confidences, truth)[1:]]
    edges = np.geomspace(MIN_AXIS, 1 / CALIBRATION_BINS, 8)
    for low, high in itertools.pairwise(edges):
        inside = (confidences >= low) & (confidences < high)
        if inside.any():
            bins.append(
                (int(inside.sum()), float(confidences[inside].mean()), float(truth[inside].mean()))
            )
    return bins


def _curves_figure(report: LabelledReport) -> "Figure":
    figure, axes = _figure(1)
    for name, scores in report.scores.items():
        precision, recall, _ = precision_recall_curve(scores.ravel(), report.truth.ravel())
        axes[0].plot(recall, precision, label=name)
    for name, m in report.measures.items():
        axes[0].plot(
            [m.micro.recall], [m.micro.precision], "o", label=f"{name}: F1 {m.micro.f1:.3f}"
        )
    axes[0].set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes[0].legend(loc="lower left")
    return figure


def _figure(columns: int) -> "tuple[Figure, list[Axes]]":
    try:
        # imported here, because matplotlib is an optional dependency that only the report needs
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--report needs matplotlib; install siglip-serve[report].") from error
    figure = Figure(figsize=(5.5 * columns, 4.5), layout="constrained")
    return figure, list(np.ravel(figure.subplots(1, columns)))


def _save(figure: "Figure", path: Path) -> None:
    # without the version of matplotlib, the same figure results in the same bytes
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})


def _write(lines: list[str], folder: Path) -> Path:
    page = folder / REPORT
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page

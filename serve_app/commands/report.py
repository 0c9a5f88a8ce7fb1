"""The report of a calibration: Markdown, and pictures of what changed."""

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
from serve_app.tagging.evaluation import BoolArray, Measures, precision_recall_curve, reliability
from serve_app.terminal.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT = "report.md"
CALIBRATION_PICTURE = "reliability.png"
CURVES_PICTURE = "precision-recall.png"
COUNTS_PICTURE = "tags-per-image.png"
_MARKDOWN = re.compile(r"[\\`*_\[\]|>#~]")
SHOWN_TAGS = 20
DOTS_PER_INCH = 120
SMALLEST_AXIS = 1e-4
"""Confidences and frequencies below are drawn there: most pairs of image and tag lie near 0."""


@dataclass(frozen=True, slots=True)
class LabelledReport:
    """What is shown of a fit to labelled images.

    Attributes:
        measures: By name, in the order they are shown; the last is what is shipped, the first what
            was before.
        scores: (B, T) logits of the held-out images, by name: `raw` and `calibrated`.
        truth: (B, T) which tag is true.
        images: How many there were in all.
        precision: The wanted one; None for the best F1.
    """

    measures: Mapping[str, Measures]
    scores: Mapping[str, FloatArray]
    truth: BoolArray
    images: int
    precision: float | None


@dataclass(frozen=True, slots=True)
class UnlabelledReport:
    """What is shown of a fit to unlabelled images: which tags (B, T) were given before and
    after.
    """

    before: BoolArray
    after: BoolArray
    calibration: Calibration
    threshold: float
    percentile: float

    def lines(self) -> list[str]:
        """Return it in sentences."""
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
            f"{len(self.before):,} images, of which nothing is known.",
            f"Before, at a confidence of {self.threshold:g}: "
            f"{self.before.sum(axis=1).mean():.2f} tags an image.",
            f"After, at the suggested {self.calibration.threshold:.4g}: "
            f"{self.after.sum(axis=1).mean():.2f} tags an image.",
            f"Each tag's {self.percentile:g}th percentile over images that it is not related to "
            "was brought to the median tag's.",
            f"Moved down most, in logits: {down or 'none'}.",
            f"Moved up most, in logits: {up or 'none'}.",
        ]


def write_labelled_report(report: LabelledReport, folder: Path) -> Path:
    """Write the report of a fit to labelled images and return its page.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save(_reliability_figure(report), folder / CALIBRATION_PICTURE)
    _save(_curves_figure(report), folder / CURVES_PICTURE)
    goal = (
        "the best F1"
        if report.precision is None
        else f"a precision of at least {report.precision:g}"
    )
    lines = [
        "# Calibration",
        "",
        f"{report.images:,} labelled images. A fit to every other one was measured on the rest, "
        f"{len(report.truth):,}, which it had not",
        f"seen; the file itself is fitted to all of them. Thresholds are chosen for {goal}. `raw "
        "at its best` is the raw sigmoid at",
        "the one threshold that does best on the images of the fit: what a threshold alone could "
        "do.",
        "",
        *_measures_table(report.measures),
        "",
        f"![Reliability]({CALIBRATION_PICTURE})",
        "",
        "A point on the diagonal is a confidence that can be taken at its word. Both axes are "
        "logarithmic; a point's size is the",
        "logarithm of how many pairs of image and tag it stands for.",
        "",
        f"![Precision and recall]({CURVES_PICTURE})",
        "",
        f"## The {SHOWN_TAGS} tags with the lowest F1 after calibration",
        "",
        *_tags_table(report.measures),
    ]
    return _write(lines, folder)


def write_unlabelled_report(report: UnlabelledReport, folder: Path) -> Path:
    """Write the report of a fit to unlabelled images and return its page.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = _figure(1)
    counts = {"before": report.before.sum(axis=1), "after": report.after.sum(axis=1)}
    bins = [count - 0.5 for count in range(max(int(c.max()) for c in counts.values()) + 2)]
    for name, count in counts.items():
        axes[0].hist(count, bins=bins, alpha=0.6, label=name)
    axes[0].set(xlabel="tags an image", ylabel="images")
    axes[0].legend()
    _save(figure, folder / COUNTS_PICTURE)
    sentences = [text for line in report.lines() for text in (_markdown(line), "")]
    return _write(["# Calibration", "", *sentences, f"![Tags an image]({COUNTS_PICTURE})"], folder)


def _markdown(text: str) -> str:
    """Return text that a Markdown page shows as it is: no table cell, link or HTML begins or ends
    in it.
    """
    return _MARKDOWN.sub(r"\\\g<0>", printable(text).replace("&", "&amp;").replace("<", "&lt;"))


def _measures_table(measures: Mapping[str, Measures]) -> list[str]:
    columns = ("score", *SUMMARY_COLUMNS)
    rows = [
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(SUMMARY_COLUMNS),
    ]
    for name, one in measures.items():
        rows.append("| " + " | ".join([name, *summary_cells(one)]) + " |")
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
        bins = _even_bins(sigmoid(scores), report.truth)
        axis.plot([SMALLEST_AXIS, 1], [SMALLEST_AXIS, 1], color="grey", linewidth=1, linestyle="--")
        points = np.maximum(
            [(confidence, frequency) for _, confidence, frequency in bins], SMALLEST_AXIS
        )
        axis.scatter(
            points[:, 0],
            points[:, 1],
            s=[8 * np.log1p(count) for count, *_ in bins],
            color="#1f6fb4",
        )
        axis.set(xscale="log", yscale="log", xlabel="confidence", title=name)
    axes[0].set_ylabel("how often it is true")
    return figure


def _even_bins(confidences: FloatArray, truth: BoolArray) -> list[tuple[int, float, float]]:
    """Return (count, confidence, frequency) of parts of [0, 1] that are equally wide, and of parts
    of the first that are narrower.
    """
    shown = [(b.count, b.confidence, b.frequency) for b in reliability(confidences, truth)[1:]]
    edges = np.geomspace(SMALLEST_AXIS, 1 / 15, 8)
    for low, high in itertools.pairwise(edges):
        inside = (confidences >= low) & (confidences < high)
        if inside.any():
            shown.append(
                (int(inside.sum()), float(confidences[inside].mean()), float(truth[inside].mean()))
            )
    return shown


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
        from matplotlib.figure import Figure  # here, because it is an extra that only this needs
    except ImportError as error:
        raise ConfigError(
            "--report draws with matplotlib; install siglip-serve[report]."
        ) from error
    figure = Figure(figsize=(5.5 * columns, 4.5), layout="constrained")
    return figure, list(np.ravel(figure.subplots(1, columns)))


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(
        path, dpi=DOTS_PER_INCH, metadata={"Software": None}
    )  # the same figure gives the same bytes


def _write(lines: list[str], folder: Path) -> Path:
    page = folder / REPORT
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page

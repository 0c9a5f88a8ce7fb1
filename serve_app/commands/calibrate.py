"""`siglip-serve calibrate`: fits a vocabulary's scores to images, and shows what that changes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.commands.evaluate import (
    MeasuredFolder,
    half,
    measure_score,
    score_folder,
    summary_table,
)
from serve_app.commands.report import (
    LabelledReport,
    UnlabelledReport,
    write_labelled_report,
    write_unlabelled_report,
)
from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError, InvalidRequest
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.calibration import Calibration, write_calibration
from serve_app.tagging.evaluation import Measures, measure
from serve_app.tagging.fitting import FittedTo, Goal, best_threshold, fit_background, fit_labelled
from serve_app.tagging.labelled import LabelledImages
from serve_app.tagging.scores import in_score
from serve_app.tagging.selection import SelectionRule, min_scores
from serve_app.tagging.tag_table import TagTable
from serve_app.terminal.console import SafeConsole, output_console


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What is calibrated and how.

    Attributes:
        images: A folder.
        labels: A table of their labels.
        vocabulary: Of the configuration; its default one if None.
        out: The calibration file.
        report: A folder for the report; none if None.
        precision: Wanted of tags that are given; the best F1 if None. For labelled images.
        percentile: Of unrelated images' logits. For unlabelled images.
        tags_per_image: Wanted mean. For unlabelled images.
    """

    images: Path
    labels: Path | None
    vocabulary: str | None
    out: Path
    report: Path | None
    precision: float | None
    percentile: float
    tags_per_image: float


def calibrate(config: ServiceConfig, options: CalibrationOptions) -> int:
    """Fit a calibration, write it, and print before and after.

    Raises:
        ConfigError: The checkpoint or a setting cannot work, or there are too few images.
        InvalidRequest: The folder is not there, or the file cannot be written.
    """
    tagger = LocalTagger(config)
    folder = score_folder(tagger, options.images, options.labels, options.vocabulary)
    table = folder.scored.table
    of = FittedTo(
        tagger.scorer.fingerprint,
        folder.scored.bank.vocabulary.prompt_templates,
        table.labels,
        table.bias,
    )
    goal = Goal(options.precision)
    known = folder.labelled
    if known is None:
        calibration = fit_background(folder.logits, of, options.percentile, options.tags_per_image)
    else:
        calibration = fit_labelled(folder.logits, known.truth, known.known, of, goal)
    console = output_console()
    threshold = config.siglip.confidence_threshold
    try:
        write_calibration(calibration, options.out)
        console.print(
            f"written: {options.out}. Name it as calibration of the vocabulary; its score is then calibrated by default.\n"
        )
        if known is None:
            _show_unlabelled(folder, calibration, threshold, options, console)
        else:
            _show_labelled(folder, of, goal, threshold, options, console)
    except OSError as error:
        raise InvalidRequest(f"{error.filename} cannot be written: {error.strerror}.") from error
    return 0


def _show_labelled(
    folder: MeasuredFolder,
    of: FittedTo,
    goal: Goal,
    threshold: float,
    options: CalibrationOptions,
    console: SafeConsole,
) -> None:
    """Measure on the half of the images that a fit to the other half has not seen."""
    (fit_logits, fit_known) = half(folder, first=True)
    (logits, labelled) = half(folder, first=False)
    try:
        trial = fit_labelled(fit_logits, fit_known.truth, fit_known.known, of, goal)
    except ConfigError as error:
        console.print(
            f"what it gains was not measured, for which half of the images is fitted alone: {error}"
        )
        return
    vocabulary = folder.scored.bank.vocabulary
    raw = TagTable(vocabulary)
    fitted = TagTable(vocabulary, trial)
    found = {
        f"raw at {threshold:g}": measure_score(logits, labelled, raw, "sigmoid", threshold),
        "raw at its best": _at_best(fit_logits, fit_known, logits, labelled, raw, goal),
        "calibrated": measure_score(logits, labelled, fitted, "calibrated", threshold),
    }
    console.print(
        f"{len(folder.logits):,} images; measured on the half that this trial's fit has not seen\n"
    )
    console.print(summary_table(found))
    if options.report is not None:
        known = labelled.known
        scores = {
            "raw": in_score(logits, None, raw, "sigmoid")[:, known],
            "calibrated": in_score(logits, None, fitted, "calibrated")[:, known],
        }
        report = LabelledReport(
            found, scores, labelled.truth[:, known], len(folder.logits), options.precision
        )
        console.print(f"report: {write_labelled_report(report, options.report)}")


def _at_best(
    fit_logits: FloatArray,
    fit_known: LabelledImages,
    logits: FloatArray,
    labelled: LabelledImages,
    table: TagTable,
    goal: Goal,
) -> Measures:
    """Measure raw scores at the one threshold that a user could have found on the same images."""
    known = labelled.known
    best = best_threshold(
        fit_logits[:, known].astype(np.float64).ravel(), fit_known.truth[:, known].ravel(), goal
    )
    best = np.inf if best is None else best
    labels = [label for label, looked_at in zip(table.labels, known, strict=True) if looked_at]
    return measure(
        logits[:, known], np.full(len(labels), best, np.float32), labelled.truth[:, known], labels
    )


def _show_unlabelled(
    folder: MeasuredFolder,
    calibration: Calibration,
    threshold: float,
    options: CalibrationOptions,
    console: SafeConsole,
) -> None:
    """Show how many tags images get, and which labels were moved most."""
    fitted = TagTable(folder.scored.bank.vocabulary, calibration)
    raw_given = folder.logits >= min_scores(folder.scored.table, SelectionRule(threshold, 1))
    scores = in_score(folder.logits, None, fitted, "calibrated")
    given = scores >= min_scores(fitted, SelectionRule(threshold, 1, score="calibrated"))
    report = UnlabelledReport(raw_given, given, calibration, threshold, options.percentile)
    for line in report.lines():
        console.print(line)
    if options.report is not None:
        console.print(f"report: {write_unlabelled_report(report, options.report)}")

"""`siglip-serve calibrate`: fits a vocabulary's scores to images, and measures the effect."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.commands.arguments import config_of
from serve_app.commands.encoding import load_tagger
from serve_app.commands.measured_folder import (
    MeasuredFolder,
    add_folder_arguments,
    half,
    measure_score,
    score_folder,
)
from serve_app.commands.measures_tables import summary_table
from serve_app.commands.report import (
    LabelledReport,
    UnlabelledReport,
    write_labelled_report,
    write_unlabelled_report,
)
from serve_app.errors import ConfigError, InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.calibration import Calibration, write_calibration
from serve_app.tagging.evaluation import Measures, measure
from serve_app.tagging.fitting import FittedTo, Goal, best_threshold, fit_background, fit_labelled
from serve_app.tagging.labelled import LabelledImages
from serve_app.tagging.scores import in_score
from serve_app.tagging.selection import SelectionRule, min_scores
from serve_app.tagging.tag_table import TagTable
from serve_app.terminal.console import SafeConsole, output_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `calibrate`."""
    add_folder_arguments(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("calibration.yaml"), help="the file to write"
    )
    parser.add_argument("--report", type=Path, help="write a report with figures to this folder")
    parser.add_argument(
        "--precision",
        type=float,
        help="labelled images: minimum precision of the returned tags; default: maximize F1",
    )
    parser.add_argument(
        "--percentile",
        type=float,
        default=95.0,
        help="unlabelled images: percentile of the logits of unrelated images",
    )
    parser.add_argument(
        "--tags-per-image",
        type=float,
        default=5.0,
        help="unlabelled images: target mean number of tags per image",
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One calibration.

    Attributes:
        folder: The images.
        fitted_to: The checkpoint, templates and labels that the calibration is valid for.
        goal: The goal that thresholds are chosen for, if the images are labelled.
        threshold: The configuration's `confidence_threshold`.
        args: The command line.
        console: Standard output.
    """

    folder: MeasuredFolder
    fitted_to: FittedTo
    goal: Goal
    threshold: float
    args: argparse.Namespace
    console: SafeConsole


def run(args: argparse.Namespace) -> int:
    """Fit a calibration, write it, and print the measures before and after.

    Raises:
        ConfigError: The checkpoint or a setting is not usable, or there are too few images.
        InvalidRequest: The folder does not exist, or a file cannot be written.
    """
    config = config_of(args)
    tagger = load_tagger(config)
    folder = score_folder(tagger, args.images, args.labels, args.vocabulary)
    table = folder.scored.table
    templates = folder.scored.bank.vocabulary.prompt_templates
    job = _Job(
        folder,
        FittedTo(tagger.scorer.fingerprint, templates, table.labels, table.bias),
        Goal(args.precision),
        config.siglip.confidence_threshold,
        args,
        output_console(),
    )
    calibration = _fit(job)
    try:
        write_calibration(calibration, args.out)
        job.console.print(
            f"written: {args.out}. Set it as the vocabulary's calibration; "
            "its score is then calibrated by default.\n"
        )
        if folder.labelled is None:
            _show_unlabelled(job, calibration)
        else:
            _show_labelled(job)
    except OSError as error:
        raise InvalidRequest(f"{error.filename} cannot be written: {error.strerror}.") from error
    return 0


def _fit(job: _Job) -> Calibration:
    """Fit to all images of the folder."""
    logits = job.folder.logits
    labelled = job.folder.labelled
    if labelled is None:
        return fit_background(logits, job.fitted_to, job.args.percentile, job.args.tags_per_image)
    return fit_labelled(logits, labelled.truth, labelled.known, job.fitted_to, job.goal)


def _show_labelled(job: _Job) -> None:
    """Fit a calibration to one half of the images, and print its measures on the other half."""
    fit_logits, fit_labels = half(job.folder, first=True)
    logits, labelled = half(job.folder, first=False)
    try:
        trial = fit_labelled(
            fit_logits, fit_labels.truth, fit_labels.known, job.fitted_to, job.goal
        )
    except ConfigError as error:
        job.console.print(
            f"the gain was not measured, because half of the images are too few: {error}"
        )
        return

    vocabulary = job.folder.scored.bank.vocabulary
    raw = TagTable(vocabulary)
    fitted = TagTable(vocabulary, trial)
    best = _best_raw_threshold(fit_logits, fit_labels, job.goal)
    measures = {
        f"raw at {job.threshold:g}": measure_score(logits, labelled, raw, "sigmoid", job.threshold),
        "raw at its best threshold": _measure_raw(logits, labelled, raw, best),
        "calibrated": measure_score(logits, labelled, fitted, "calibrated", job.threshold),
    }
    num_images = len(job.folder.logits)
    job.console.print(
        f"{num_images:,} images; one half was fitted, and the other half was measured\n"
    )
    job.console.print(summary_table(measures))
    if job.args.report is None:
        return

    known = labelled.known
    scores = {
        "raw": in_score(logits, None, raw, "sigmoid")[:, known],
        "calibrated": in_score(logits, None, fitted, "calibrated")[:, known],
    }
    truth = labelled.truth[:, known]
    report = LabelledReport(measures, scores, truth, num_images, job.args.precision)
    job.console.print(f"report: {write_labelled_report(report, job.args.report)}")


def _best_raw_threshold(logits: FloatArray, labelled: LabelledImages, goal: Goal) -> float:
    """Return the best single threshold on the raw logits of the images.

    It shows what a user could reach with a threshold alone, without a calibration.
    """
    known = labelled.known
    threshold = best_threshold(
        logits[:, known].astype(np.float64).ravel(), labelled.truth[:, known].ravel(), goal
    )
    return np.inf if threshold is None else threshold


def _measure_raw(
    logits: FloatArray, labelled: LabelledImages, table: TagTable, threshold: float
) -> Measures:
    """Measure raw logits with one threshold for all tags."""
    known = labelled.known
    labels = [label for label, is_known in zip(table.labels, known, strict=True) if is_known]
    thresholds = np.full(len(labels), threshold, np.float32)
    return measure(logits[:, known], thresholds, labelled.truth[:, known], labels)


def _show_unlabelled(job: _Job, calibration: Calibration) -> None:
    """Print how many tags images get, and which labels the calibration moves most."""
    folder = job.folder
    raw_rule = SelectionRule(job.threshold, 1)
    before = folder.logits >= min_scores(folder.scored.table, raw_rule)

    fitted = TagTable(folder.scored.bank.vocabulary, calibration)
    calibrated_rule = SelectionRule(job.threshold, 1, score="calibrated")
    scores = in_score(folder.logits, None, fitted, "calibrated")
    after = scores >= min_scores(fitted, calibrated_rule)

    report = UnlabelledReport(before, after, calibration, job.threshold, job.args.percentile)
    for line in report.lines():
        job.console.print(line)
    if job.args.report is not None:
        job.console.print(f"report: {write_unlabelled_report(report, job.args.report)}")

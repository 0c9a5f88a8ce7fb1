"""Encodes and scores a folder of images, and measures the tags if the labels are known."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve_app.commands.arguments import add_config_argument, add_vocabulary_argument
from serve_app.commands.encoding import EmbeddedFiles, embed_files
from serve_app.commands.files import expand
from serve_app.errors import InvalidRequest
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import pair_logits
from serve_app.tagging.choices import Score
from serve_app.tagging.evaluation import Measures, measure, measure_given
from serve_app.tagging.labelled import LabelledImages, read_labelled
from serve_app.tagging.options import TagOptions
from serve_app.tagging.scores import best_names, in_score
from serve_app.tagging.selection import SelectionRule, choose_tags, min_scores, rule_scores
from serve_app.tagging.settings import TagSettings
from serve_app.tagging.tag_bank import ScoredBank
from serve_app.tagging.tag_table import TagTable
from serve_app.terminal.printable import print_line

if TYPE_CHECKING:
    from serve_app.pipeline.local_tagger import LocalTagger

SPLIT_SEED = 0


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the folder, its labels and the vocabulary."""
    parser.add_argument(
        "images",
        type=Path,
        help="a folder with labels.csv, with a folder for each label, or with images only",
    )
    parser.add_argument(
        "--labels", type=Path, help="a CSV file with the columns file and labels (separated by |)"
    )
    add_vocabulary_argument(parser)
    add_config_argument(parser)


@dataclass(frozen=True, slots=True)
class MeasuredFolder:
    """The scored images of a folder.

    Attributes:
        logits: (B, T) of the images and the tags.
        background: (B, G) logits of the background prompts.
        labelled: The labels of the images that can be read; None if the folder has none.
        scored: The vocabulary.
        embedded: The embeddings, and the errors of the other files.
    """

    logits: FloatArray
    background: FloatArray
    labelled: LabelledImages | None
    scored: ScoredBank
    embedded: EmbeddedFiles


def score_folder(
    tagger: "LocalTagger", images: Path, table: Path | None, vocabulary: str | None
) -> MeasuredFolder:
    """Encode and score the images of a folder; unreadable images are reported and skipped.

    Args:
        tagger: The pipeline.
        images: The folder.
        table: A CSV file of labels.
        vocabulary: A vocabulary of the configuration; None for its default one.

    Raises:
        InvalidRequest: The folder or the vocabulary does not exist.
        ConfigError: The labels cannot be read.
    """
    if not images.is_dir():
        raise InvalidRequest(f"{images} is not a folder.")
    name = vocabulary or tagger.settings.default_vocabulary
    if name not in tagger.settings.vocabularies:
        known = ", ".join(tagger.settings.vocabularies)
        raise InvalidRequest(f"there is no vocabulary {name!r}; the configuration has {known}.")

    scored = tagger.scorer.registered(name)
    labelled = read_labelled(images, table, scored.table)
    embedded = embed_files(tagger, labelled.files if labelled else expand([images]))
    for path, error in embedded.failures:
        print_line(f"skipped: {path}: {error}", file=sys.stderr)
    if labelled is not None and embedded.failures:
        rows = list(embedded.encoded)
        labelled = LabelledImages(tuple(labelled.files[i] for i in rows), labelled.truth[rows])

    logits = pair_logits(
        embedded.image_embeds,
        scored.bank.text_embeds,
        tagger.head.logit_scale,
        tagger.head.logit_bias,
    )
    background = logits[:, len(scored.bank.vocabulary.names) :]
    return MeasuredFolder(best_names(logits, scored.table), background, labelled, scored, embedded)


def measure_score(
    logits: FloatArray, labelled: LabelledImages, table: TagTable, score: Score, threshold: float
) -> Measures:
    """Measure one score at its thresholds, for the tags that occur in the labels.

    Only thresholds are applied, because `calibrate` compares thresholds before and after.
    """
    rule = SelectionRule(threshold, len(table), score=score)
    known = labelled.known
    labels = [label for label, is_known in zip(table.labels, known, strict=True) if is_known]
    scores = in_score(logits, None, table, score)
    thresholds = min_scores(table, rule)
    return measure(scores[:, known], thresholds[known], labelled.truth[:, known], labels)


def measure_settings(folder: MeasuredFolder, settings: TagSettings, score: Score) -> Measures:
    """Measure the tags that a configuration returns with one score.

    Only tags that occur in the labels are measured. Thresholds, `max_tags` and `selection` apply as
    in a request; tags that the filters exclude are not measured.
    """
    assert folder.labelled is not None, "only labelled folders are measured"
    table = folder.scored.table
    rule = settings.rule_for(TagOptions(score=score), table)
    chosen = choose_tags(folder.logits, table, rule, folder.background)
    returned = np.zeros(folder.logits.shape, np.bool_)
    returned[np.repeat(np.arange(len(returned)), chosen.counts), chosen.tags] = True

    scores = rule_scores(folder.logits, table, rule, folder.background)
    measured = folder.labelled.known
    if rule.allowed is not None:
        measured = measured & rule.allowed
    labels = [
        label for label, is_measured in zip(table.labels, measured, strict=True) if is_measured
    ]
    truth = folder.labelled.truth[:, measured]
    return measure_given(scores[:, measured], returned[:, measured], truth, labels)


def half(folder: MeasuredFolder, first: bool) -> tuple[FloatArray, LabelledImages]:
    """Return the logits and labels of one half of the images; the split is always the same."""
    assert folder.labelled is not None, "only labelled folders are split"
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(folder.logits))
    rows = (shuffled < len(folder.logits) / 2) == first
    truth = folder.labelled.truth[rows]
    files = tuple(file for file, is_in in zip(folder.labelled.files, rows, strict=True) if is_in)
    return folder.logits[rows], LabelledImages(files, truth, folder.labelled.known)

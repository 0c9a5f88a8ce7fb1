"""`siglip-serve evaluate`: how good the tags of a configuration are on images whose labels are
known.
"""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.commands.files import expand
from serve_app.commands.pictures import EmbeddedFiles, embed_files
from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidRequest
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.scoring import pair_logits
from serve_app.tagging.evaluation import Measures, measure, measure_given
from serve_app.tagging.labelled import LabelledImages, read_labelled
from serve_app.tagging.options import TagOptions
from serve_app.tagging.scores import Score, best_names, in_score
from serve_app.tagging.selection import SelectionRule, choose_tags, min_scores, rule_scores
from serve_app.tagging.settings import TagSettings
from serve_app.tagging.tag_bank import ScoredBank
from serve_app.tagging.tag_table import TagTable
from serve_app.terminal.console import SafeTable, output_console
from serve_app.terminal.printable import json_text, print_block, print_line


@dataclass(frozen=True, slots=True)
class MeasuredFolder:
    """Images of a folder, encoded and scored.

    Attributes:
        logits: (B, T) the model's.
        background: (B, G) the same of the background prompts.
        labelled: What is known of the images that could be read; None where nothing is.
        scored: The vocabulary.
        problems: Files that could not be read.
    """

    logits: FloatArray
    background: FloatArray
    labelled: LabelledImages | None
    scored: ScoredBank
    embedded: EmbeddedFiles


def score_folder(
    tagger: LocalTagger, images: Path, table: Path | None, vocabulary: str | None
) -> MeasuredFolder:
    """Encode the images of a folder and score them against a vocabulary; unreadable ones are told
    and left out.

    Raises:
        InvalidRequest: The folder or the vocabulary is not there.
        ConfigError: The labels cannot be read.
    """
    if not images.is_dir():
        raise InvalidRequest(f"{images} is not a folder.")
    name = vocabulary or tagger.settings.default_vocabulary
    if name not in tagger.settings.vocabularies:
        raise InvalidRequest(
            f"there is no vocabulary {name!r}; the configuration has {', '.join(tagger.settings.vocabularies)}."
        )
    scored = tagger.scorer.registered(name)
    labelled = read_labelled(images, table, scored.table)
    embedded = embed_files(tagger, labelled.files if labelled else expand([images]))
    for path, problem in embedded.problems:
        print_line(f"left out: {path}: {problem}", file=sys.stderr)
    if labelled is not None and embedded.problems:
        kept = list(embedded.kept)
        labelled = LabelledImages(tuple(labelled.files[at] for at in kept), labelled.truth[kept])
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
    """Measure one score at its shipped thresholds, over the tags that were looked at.

    Only thresholds are applied: `calibrate` compares them before and after.
    """
    rule = SelectionRule(threshold, len(table), score=score)
    known = labelled.known
    labels = [label for label, looked_at in zip(table.labels, known, strict=True) if looked_at]
    scores = in_score(logits, None, table, score)
    return measure(
        scores[:, known], min_scores(table, rule)[known], labelled.truth[:, known], labels
    )


def measure_settings(folder: MeasuredFolder, settings: TagSettings, score: Score) -> Measures:
    """Measure the tags that a configuration gives with one score, over the tags that were looked
    at.

    Thresholds, `max_tags` and all of `selection` hold as they do for a request. Tags that its
    filters never give are left out.
    """
    assert folder.labelled is not None, "only labelled folders are measured"
    table = folder.scored.table
    rule = settings.rule_for(TagOptions(score=score), table)
    chosen = choose_tags(folder.logits, table, rule, folder.background)
    given = np.zeros(folder.logits.shape, np.bool_)
    given[np.repeat(np.arange(len(given)), chosen.counts), chosen.tags] = True

    scores = rule_scores(folder.logits, table, rule, folder.background)
    measured = (
        folder.labelled.known if rule.allowed is None else folder.labelled.known & rule.allowed
    )
    labels = [
        label for label, is_measured in zip(table.labels, measured, strict=True) if is_measured
    ]
    return measure_given(
        scores[:, measured], given[:, measured], folder.labelled.truth[:, measured], labels
    )


def evaluate_folder(
    images: Path,
    config: ServiceConfig,
    table: Path | None,
    vocabulary: str | None,
    per_tag: bool,
    as_json: bool,
) -> int:
    """Measure a configuration on a labelled folder and print it.

    Raises:
        ConfigError: The checkpoint or a setting cannot work, or the labels cannot be read.
        InvalidRequest: The folder is not there or not labelled.
    """
    tagger = LocalTagger(config)
    folder = score_folder(tagger, images, table, vocabulary)
    if folder.labelled is None:
        raise InvalidRequest(
            f"nothing is known of the images in {images}: give --labels, a labels.csv, or a folder for each label."
        )
    table_of_tags = folder.scored.table
    own_score = tagger.settings.rule_for(TagOptions(), table_of_tags).score
    calibrated: tuple[Score, ...] = ("calibrated",) if table_of_tags.lines is not None else ()
    scores = [*(score for score in ("sigmoid", *calibrated) if score != own_score), own_score]
    found: dict[str, Measures] = {
        score: measure_settings(folder, tagger.settings, score) for score in scores
    }
    if as_json:
        print_block(
            json_text({score: _as_json(measures) for score, measures in found.items()}, indent=2)
            + "\n"
        )
        return 0
    console = output_console()
    known = int(folder.labelled.known.sum())
    console.print(
        f"{len(folder.logits):,} images, {known} of {len(table_of_tags)} tags occur; others are not measured"
    )
    console.print(_settings_line(tagger.settings, found[own_score], known))
    console.print(summary_table(found))
    if per_tag:
        console.print(tag_table(found[scores[-1]]))
    return 0


def _settings_line(settings: TagSettings, measures: Measures, known: int) -> str:
    own = settings.selection
    filtered = known - len(measures.tags)
    excluded = f"; {filtered} more are filtered out by selection" if filtered else ""
    return (
        f"max_tags {settings.max_tags}, min_tags {own.min_tags}, parents {own.parents}{excluded}\n"
    )


def summary_table(found: Mapping[str, Measures]) -> SafeTable:
    """Return the measures of several scores side by side."""
    columns = (
        "score",
        "mAP",
        "precision",
        "recall",
        "F1",
        "macro F1",
        "calibration error",
        "tags an image",
    )
    table = SafeTable(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, m in found.items():
        numbers = (
            m.mean_average_precision,
            m.micro.precision,
            m.micro.recall,
            m.micro.f1,
            m.macro_f1,
        )
        table.add_row(
            name,
            *(f"{number:.4f}" for number in numbers),
            f"{m.calibration_error:.4f}",
            f"{m.tags_per_image:.2f}",
        )
    return table


def tag_table(measures: Measures) -> SafeTable:
    """Return each tag's own measures, the worst F1 first."""
    table = SafeTable("tag", "true", "given", "precision", "recall", "F1", "AP")
    for column in table.columns[1:]:
        column.justify = "right"
    for tag in sorted(measures.tags, key=lambda tag: (tag.rates.f1, tag.label)):
        numbers = (tag.rates.precision, tag.rates.recall, tag.rates.f1, tag.average_precision)
        table.add_row(
            tag.label, str(tag.true), str(tag.given), *(f"{number:.3f}" for number in numbers)
        )
    return table


def _as_json(measures: Measures) -> dict[str, object]:
    content = dataclasses.asdict(measures)
    content["micro"]["f1"] = measures.micro.f1
    for entry, tag in zip(content["tags"], measures.tags, strict=True):
        entry["rates"]["f1"] = tag.rates.f1
    return content


def half(folder: MeasuredFolder, first: bool) -> tuple[FloatArray, LabelledImages]:
    """Return one half of a labelled folder's images or the other, always the same ones, whatever
    order they are named in.
    """
    assert folder.labelled is not None, "only labelled folders are divided"
    shuffled = np.random.default_rng(0).permutation(len(folder.logits))
    rows = (shuffled < len(folder.logits) / 2) == first
    truth = folder.labelled.truth[rows]
    files = tuple(file for file, kept in zip(folder.labelled.files, rows, strict=True) if kept)
    return folder.logits[rows], LabelledImages(files, truth, folder.labelled.known)

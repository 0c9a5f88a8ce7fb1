"""`siglip-serve evaluate`: measures a configuration's tags on images with known labels."""

import argparse
import dataclasses

from serve_app.commands.arguments import add_flag, config_of
from serve_app.commands.encoding import load_tagger
from serve_app.commands.measured_folder import (
    add_folder_arguments,
    measure_settings,
    score_folder,
)
from serve_app.commands.measures_tables import summary_table, tag_table
from serve_app.errors import InvalidRequest
from serve_app.tagging.choices import Score
from serve_app.tagging.evaluation import Measures
from serve_app.tagging.options import TagOptions
from serve_app.tagging.settings import TagSettings
from serve_app.tagging.tag_table import TagTable
from serve_app.terminal.console import output_console
from serve_app.terminal.printable import json_text, print_block


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    add_folder_arguments(parser)
    add_flag(parser, "--per-tag", "also print the measures of each tag, the worst first")
    add_flag(parser, "--json", "print everything as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure a configuration on a labelled folder and print the result.

    Raises:
        ConfigError: The checkpoint or a setting is not usable, or the labels cannot be read.
        InvalidRequest: The folder does not exist or is not labelled.
    """
    tagger = load_tagger(config_of(args))
    folder = score_folder(tagger, args.images, args.labels, args.vocabulary)
    if folder.labelled is None:
        raise InvalidRequest(
            f"the images in {args.images} have no labels; "
            "pass --labels, add a labels.csv, or make a folder for each label."
        )
    table = folder.scored.table
    own_score = tagger.settings.rule_for(TagOptions(), table).score
    measures: dict[str, Measures] = {
        score: measure_settings(folder, tagger.settings, score)
        for score in _scores_to_measure(table, own_score)
    }
    if args.json:
        as_json = {score: _as_json(measured) for score, measured in measures.items()}
        print_block(json_text(as_json, indent=2) + "\n")
        return 0

    console = output_console()
    known = int(folder.labelled.known.sum())
    console.print(
        f"{len(folder.logits):,} images; {known} of {len(table)} tags occur in the labels and "
        "are measured"
    )
    console.print(_settings_line(tagger.settings, measures[own_score], known))
    console.print(summary_table(measures))
    if args.per_tag:
        console.print(tag_table(measures[own_score]))
    return 0


def _scores_to_measure(table: TagTable, own_score: Score) -> list[Score]:
    """Return the scores to compare; the configuration's own score is the last."""
    comparable: list[Score] = ["sigmoid"]
    if table.lines is not None:
        comparable.append("calibrated")
    return [*(score for score in comparable if score != own_score), own_score]


def _settings_line(settings: TagSettings, measures: Measures, known: int) -> str:
    selection = settings.selection
    filtered = known - len(measures.tags)
    excluded = f"; selection filters out {filtered} more" if filtered else ""
    return (
        f"max_tags {settings.max_tags}, min_tags {selection.min_tags}, "
        f"parents {selection.parents}{excluded}\n"
    )


def _as_json(measures: Measures) -> dict[str, object]:
    content = dataclasses.asdict(measures)
    content["micro"]["f1"] = measures.micro.f1
    for entry, tag in zip(content["tags"], measures.tags, strict=True):
        entry["rates"]["f1"] = tag.rates.f1
    return content

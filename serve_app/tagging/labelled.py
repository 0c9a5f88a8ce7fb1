"""Labelled images: a table of files and labels, or a folder for each label.

Not here: what is measured or fitted with them (`evaluation.py`, `fitting.py`).
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.errors import ConfigError
from serve_app.tagging.evaluation import BoolArray
from serve_app.tagging.tag_table import TagTable
from serve_app.tagging.vocabulary_tables import LIST_SEPARATOR
from serve_app.untrusted.bounded_files import read_text
from serve_app.untrusted.image_names import images_in, is_litter
from serve_app.untrusted.problems import MAX_PROBLEMS, label_hint, raise_problems

TABLE = "labels.csv"
"""Default name of the table in a folder of images."""
FILE = "file"
LABELS = "labels"
"""The table's columns."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Files and their labels.

    Attributes:
        files: B files in a fixed order.
        truth: (B, T) which tag is true of which file.
        looked_at: (T,) which tags were looked at; None for those that occur.
    """

    files: tuple[Path, ...]
    truth: BoolArray
    looked_at: BoolArray | None = None

    @property
    def known(self) -> BoolArray:
        """Which tags (T,) were looked at."""
        return np.asarray(self.truth.any(axis=0)) if self.looked_at is None else self.looked_at


def read_labelled(images: Path, table: Path | None, tags: TagTable) -> LabelledImages | None:
    """Read the labels of images; None for a folder without a table and without folders of labels.

    Args:
        images: A folder.
        table: A CSV with the columns `file` and `labels` (`|` between them); None for `labels.csv`
            in the folder.
        tags: The vocabulary that the labels are of; case, `_` and aliases do not matter.

    Raises:
        ConfigError: One line for each problem: a file that is not there, a label that is not in the
            vocabulary.
    """
    if table is None and (images / TABLE).is_file():
        table = images / TABLE
    if table is not None:
        return _from_table(images, table, tags)
    folders = _label_folders(images, tags)
    if not folders or not any(tags.numbers_of(folder.name) for folder in folders):
        return None
    return _from_folders(folders, tags)


def _label_folders(images: Path, tags: TagTable) -> list[Path]:
    """Return the folders that may be labels; hidden folders and litter only with a label's name.

    Raises:
        ConfigError: The folder cannot be read.
    """
    try:
        folders = sorted(entry for entry in images.iterdir() if os.path.isdir(entry))
    except OSError as error:
        raise ConfigError(f"{images} cannot be read: {error.strerror}.") from error
    return [
        folder for folder in folders if not is_litter(folder.name) or tags.numbers_of(folder.name)
    ]


def _from_table(images: Path, table: Path, tags: TagTable) -> LabelledImages:
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""), strict=True)
    known: dict[Path, list[str]] = {}
    problems: list[str] = []
    try:
        counts = Counter(reader.fieldnames or ())
        if not {FILE, LABELS} <= set(counts):
            raise ConfigError(
                f"{table}:1: the first line must name the columns {FILE} and {LABELS}."
            )
        if twice := [name for name in (FILE, LABELS) if counts[name] > 1]:
            raise ConfigError(
                f"{table}:1: there are several columns {twice[0]}; rename all but one."
            )
        for row in reader:
            where = f"{table}:{reader.line_num}"
            name = row[FILE] or ""
            name = name if _is_file(images / name) else name.strip()
            path = images / name
            labels = [
                label.strip()
                for label in (row[LABELS] or "").split(LIST_SEPARATOR)
                if label.strip()
            ]
            if None in row:
                problems.append(
                    f"{where}: there are more fields than columns; several labels go with "
                    f"{LIST_SEPARATOR} between them."
                )
            elif not name or not _is_file(path):
                problems.append(f"{where}: the file {name[:100]!r} is not in {images}.")
            elif path in known:
                problems.append(f"{where}: the file {name!r} stands here twice.")
            if len(problems) <= MAX_PROBLEMS:  # finding the nearest label takes milliseconds
                problems += [
                    f"{where}: {problem}" for label in labels if (problem := _unknown(label, tags))
                ]
            known[path] = labels
    except csv.Error as error:
        problems.append(f"{table}:{reader.line_num}: not CSV: {error}.")
    raise_problems(problems)
    return _labelled(known, tags, table)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _from_folders(folders: Sequence[Path], tags: TagTable) -> LabelledImages:
    raise_problems(
        [f"{folder}: {problem}" for folder in folders if (problem := _unknown(folder.name, tags))]
    )
    return _labelled(
        {file: [folder.name] for folder in folders for file in images_in(folder)},
        tags,
        folders[0].parent,
    )


def _labelled(known: dict[Path, list[str]], tags: TagTable, where: Path) -> LabelledImages:
    if not known:
        raise ConfigError(f"{where}: there are no images in it.")
    files = sorted(known)
    truth = np.zeros((len(files), len(tags)), np.bool_)
    for row, file in enumerate(files):
        truth[row, [tags.numbers_of(label)[0] for label in known[file]]] = True
    return LabelledImages(tuple(files), truth)


def _unknown(label: str, tags: TagTable) -> str | None:
    if tags.numbers_of(label):
        return None
    return f"{label!r} is not in the vocabulary{label_hint(tags.nearest_name(label))}"

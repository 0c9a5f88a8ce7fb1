"""Measures by hand, and labelled images in both forms."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import ConfigError
from serve_app.tagging.evaluation import (
    expected_calibration_error,
    mean_average_precision,
    measure,
    precision_recall_curve,
    reliability,
)
from serve_app.tagging.labelled import read_labelled
from serve_app.tagging.tag_table import TagTable
from serve_app.tagging.vocabulary import Tag, TagVocabulary

TABLE = TagTable(
    TagVocabulary(
        tags=(Tag(label="Red_Car", aliases=("rouge",)), Tag(label="dog"), Tag(label="cat"))
    )
)


def test_average_precision_by_hand() -> None:
    """True at ranks 1 and 3 of four: (1 + 2/3) / 2; a label that is never true is left out."""
    scores = np.array([[4.0, 0], [3.0, 1], [2.0, 2], [1.0, 3]])
    truth = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    assert mean_average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)


def test_equal_scores_have_no_order() -> None:
    """Four equal scores, one true: a quarter, whichever it is."""
    for at in range(4):
        assert mean_average_precision(
            np.zeros((4, 1)), np.eye(4, dtype=bool)[:, at : at + 1]
        ) == pytest.approx(0.25)


def test_measures_by_hand() -> None:
    """Two images, two tags: one right, one wrong, one missed."""
    scores = np.array([[2.0, 2.0], [-2.0, -2.0]], np.float32)
    least = np.zeros(2, np.float32)
    found = measure(scores, least, np.array([[True, False], [True, False]]), ["a", "b"])
    assert (found.micro.precision, found.micro.recall, found.micro.f1) == (0.5, 0.5, 0.5)
    assert (found.macro_f1, found.tags_per_image) == (pytest.approx(2 / 3), 1.0)
    assert [(tag.label, tag.true, tag.given) for tag in found.tags] == [("a", 2, 1), ("b", 0, 1)]


def test_calibration_error_by_hand() -> None:
    """Ten pairs said 0.9 of which half are true, ten said 0.1 of which none: (0.4 + 0.1) / 2."""
    confidences = np.array([[0.9] * 10 + [0.1] * 10], np.float32)
    truth = np.array([[True] * 5 + [False] * 15])
    assert expected_calibration_error(confidences, truth) == pytest.approx(0.25, abs=1e-6)
    assert [(b.count, round(b.frequency, 2)) for b in reliability(confidences, truth)] == [
        (10, 0.0),
        (10, 0.5),
    ]


def test_curves_cut_equal_scores_together() -> None:
    """Two equal scores are one cut: no order among them is made up."""
    precision, recall, cuts = precision_recall_curve(
        np.array([1.0, 3.0, 3.0]), np.array([True, True, False])
    )
    assert (precision.tolist(), recall.tolist(), cuts.tolist()) == (
        [0.5, pytest.approx(2 / 3)],
        [0.5, 1.0],
        [3.0, 1.0],
    )


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def test_a_table_and_folders_say_the_same(tmp_path: Path) -> None:
    """Files in a fixed order; case, underscores and aliases do not matter; tags that never occur
    were not looked at.
    """
    flat = pictures(tmp_path / "flat", "b.jpg", "a.jpg", "c.png")
    (flat / "labels.csv").write_text("file,labels\nb.jpg,red car\na.jpg,Rouge|dog\nc.png,\n")
    found = read_labelled(flat, None, TABLE)
    assert found is not None
    assert [file.name for file in found.files] == ["a.jpg", "b.jpg", "c.png"]
    assert found.truth.tolist() == [
        [True, True, False],
        [True, False, False],
        [False, False, False],
    ]
    assert found.known.tolist() == [True, True, False]
    sorted_into = read_labelled(
        pictures(tmp_path / "folders", "dog/1.jpg", "RED-CAR/2.jpg"), None, TABLE
    )
    assert sorted_into is not None
    assert sorted_into.truth.tolist() == [[True, False, False], [False, True, False]]


def test_images_without_labels_are_none(tmp_path: Path) -> None:
    """Only pictures, or folders that are no labels."""
    assert read_labelled(pictures(tmp_path / "x", "a.jpg", "holidays/b.jpg"), None, TABLE) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,labels\na.jpg,dog\n", "labels.csv:1: the first line must name the columns"),
        ("file,labels\nz.jpg,dog\n", "labels.csv:2: the file 'z.jpg' is not in"),
        ("file,labels\na.jpg,dog\na.jpg,cat\n", "labels.csv:3: the file 'a.jpg' stands here twice"),
        (
            "file,labels\na.jpg,dgo\n",
            "labels.csv:2: 'dgo' is not in the vocabulary; did you mean 'dog'?",
        ),
        ("file,labels\na.jpg,dog,cat\n", "labels.csv:2: there are more fields than columns"),
        ('file,labels\n"a.jpg,dog\n', "not CSV"),
        (f"file,labels\n{'x' * 300},dog\n", "labels.csv:2: the file 'xxx"),
        ("file,labels\n", "no images"),
    ],
)
def test_bad_tables_are_refused_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    """The line and the reason."""
    pictures(tmp_path, "a.jpg")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_labelled(tmp_path, None, TABLE)
    assert said in str(caught.value)

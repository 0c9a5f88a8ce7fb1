"""What `calibrate` and `evaluate` read: folders for each label, and tables of labels, as people
have them.
"""

from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.tagging.labelled import LabelledImages, read_labelled
from serve_app.tagging.tag_table import TagTable
from serve_app.tagging.vocabulary import Tag, TagVocabulary
from tests.odd_names import LITTER, ODD_NAMES, make_obstacles, write

LABELS = ("dog", "cat", "007", "1e5", "true", "NaN")
TABLE = TagTable(TagVocabulary(tags=tuple(Tag(label=label) for label in LABELS)))


def labels_of(found: LabelledImages | None) -> dict[str, list[str]]:
    assert found is not None
    names = (file.name for file in found.files)
    return {
        name: [label for label, is_true in zip(LABELS, row, strict=True) if is_true]
        for name, row in zip(names, found.truth, strict=True)
    }


def test_litter_between_label_folders_is_no_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what is in the folders is listed as everywhere."""
    for name in LITTER:
        write(tmp_path, name)
    for name in ODD_NAMES:
        write(tmp_path, b"dog/" + name)
    make_obstacles(tmp_path / "dog", tmp_path)
    write(tmp_path, "cat/._x.png")
    write(tmp_path, "cat/x.HEIC")
    found = labels_of(read_labelled(tmp_path, None, TABLE))
    assert len(found) == len(ODD_NAMES) + 1
    assert found["x.HEIC"] == ["cat"]
    assert "cat: skipped hidden or system files and folders: 1" in caplog.text


def test_labels_and_names_in_a_table_are_text(tmp_path: Path) -> None:
    """Whatever they look like, and wherever a name leads; an unnamed column does not matter."""
    names = ["007.jpg", " space .jpg", "1e5.jpg", "a.jpg", "b#1.jpg"]
    for name in names:
        write(tmp_path / "in", name)
    write(tmp_path, "c.jpg")
    rows = [
        "0,007.jpg,007",
        "1, space .jpg,1e5|true",
        "2,1e5.jpg,NaN",
        "3,./a.jpg,",
        "4, b#1.jpg ,dog",
        "5,../c.jpg,cat",
    ]
    write(tmp_path / "in", "labels.csv", ("\n".join([",file,labels", *rows]) + "\n").encode())
    assert labels_of(read_labelled(tmp_path / "in", None, TABLE)) == {
        **{"007.jpg": ["007"], " space .jpg": ["1e5", "true"], "1e5.jpg": ["NaN"]},
        **{"a.jpg": [], "b#1.jpg": ["dog"], "c.jpg": ["cat"]},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "file,labels,labels\na.jpg,dog,cat\n",
            "labels.csv:1: there are several columns labels; rename all but one",
        ),
        (
            "file,labels\n./a.jpg,dog\na.jpg,cat\n",
            "labels.csv:3: the file 'a.jpg' stands here twice",
        ),
        ("file,labels\npipe.png,dog\n", "labels.csv:2: the file 'pipe.png' is not in"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    """A column that is there twice would lose labels silently."""
    write(tmp_path, "a.jpg")
    make_obstacles(tmp_path, tmp_path)
    write(tmp_path, "labels.csv", text.encode())
    with pytest.raises(ConfigError) as caught:
        read_labelled(tmp_path, None, TABLE)
    assert said in str(caught.value)

"""Files and folders on the command line: whatever they are called and whatever else is there, every
image is tagged.
"""

import json
import os
from pathlib import Path

import pytest

from serve_app.cli import main
from serve_app.commands.files import expand, printable_path
from serve_app.errors import InvalidRequest
from tests.odd_names import LITTER, ODD_NAMES, make_obstacles, make_unreadable, write

SAMPLE = (Path(__file__).parents[3] / "serve_app/demo/samples/red-circle.jpg").read_bytes()


def tagged(capsys: pytest.CaptureFixture[str], *paths: Path, status: int = 0) -> dict[str, str]:
    """Tag files, and return the first label or the error's code of each, by path as it is shown."""
    assert main(["tag", "--json", *map(str, paths)]) == status
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {
        line["file"]: line["error"]["code"] if "error" in line else line["tags"][0]["label"]
        for line in lines
    }


def test_a_folder_with_odd_names_is_tagged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One file that cannot be read has its error in its place; what is skipped is reported once."""
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside", "elsewhere.png", SAMPLE)
    folder = tmp_path / "in"
    for name in ODD_NAMES:
        write(folder, name, SAMPLE)
    for name in LITTER:
        write(folder, name, SAMPLE)
    make_obstacles(folder, tmp_path / "outside")
    make_unreadable(folder / "unreadable.png")
    found = tagged(capsys, folder, status=1)
    assert found.pop(f"{folder}/unreadable.png") == "source_unavailable"
    assert set(found) == {printable_path(folder / os.fsdecode(name)) for name in ODD_NAMES}
    assert set(found.values()) == {"circle"}
    assert caplog.text.count("skipped") == 1
    assert f"hidden or system files and folders: {len(LITTER)}" in caplog.text


def test_what_is_named_is_tagged_and_what_is_not_there_is_an_error_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Litter that is named, any suffix, a pipe, a link in a circle, a name that is too long; the
    table can be printed too.
    """
    for name in ("._a.png", ".hidden/b.png", "no-suffix"):
        write(tmp_path, name, SAMPLE)
    make_obstacles(tmp_path, tmp_path)
    good = [tmp_path / "._a.png", tmp_path / ".hidden", tmp_path / "no-suffix"]
    bad = [
        tmp_path / name for name in ("pipe.png", "itself.png", "nowhere.png", "gone.png", "x" * 300)
    ]
    found = tagged(capsys, *good, *bad, status=1)
    assert list(found.values()) == ["circle"] * 3 + ["source_unavailable"] * 5
    assert main(["tag", *map(str, [*good, *bad])]) == 1
    assert "circle" in capsys.readouterr().out


def test_nothing_to_tag_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whether nothing is there, or nothing of it is an image."""
    with pytest.raises(InvalidRequest, match="gone does not exist"):
        expand([tmp_path / "gone"])
    with pytest.raises(InvalidRequest, match=r"gone, .*x+ do not exist"):
        expand([tmp_path / "gone", tmp_path / ("x" * 300)])
    write(tmp_path, "notes.txt")
    with pytest.raises(
        InvalidRequest, match=r"no images in .*; supported suffixes are \.jpg, .*\.avif"
    ):
        expand([tmp_path])
    assert "files of other types: 1 (.txt)" in caplog.text


@pytest.mark.parametrize(
    "suffix", [".avif", ".HEIC", ".heif", ".hif", ".jfif", ".jpe", ".JPG", ".Tiff"]
)
def test_every_command_reads_the_same_suffixes(tmp_path: Path, suffix: str) -> None:
    """In either case."""
    write(tmp_path, f"_DSC0001{suffix}")
    assert expand([tmp_path]) == [tmp_path / f"_DSC0001{suffix}"]

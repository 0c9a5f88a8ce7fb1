"""Which files are started, awaited and given next, with futures that the test ends by hand."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from serve_app.client.folders import AHEAD, TaggedFile, Window, files_of
from serve_app.client.images import read_image
from serve_app.errors import ConfigError, InvalidImage, SourceUnavailable
from tests.odd_names import LITTER, ODD_NAMES, make_obstacles, make_unreadable, write

Started = dict[str, "Future[TaggedFile]"]


def names(count: int) -> Iterator[Path]:
    return (Path(f"{number}") for number in range(count))


def window(
    count: int, concurrency: int, in_order: bool
) -> tuple[Window["Future[TaggedFile]"], Started]:
    started: Started = {}

    def start(file: Path) -> "Future[TaggedFile]":
        started[file.name] = Future()
        return started[file.name]

    return Window(names(count), start, concurrency, in_order), started


def end(started: Started, name: str) -> None:
    started[name].set_result(TaggedFile(Path(name), InvalidImage("x")))


def taken(files: Window["Future[TaggedFile]"]) -> list[str]:
    return [file.path.name for file in files.take()]


@pytest.mark.parametrize("in_order", [False, True])
def test_no_more_run_than_may(in_order: bool) -> None:
    """A file is started when another has ended, and not before."""
    files, started = window(10, 3, in_order)
    assert files.refill()
    assert list(started) == ["0", "1", "2"]
    assert taken(files) == []
    end(started, "0")
    files.refill()
    assert list(started) == ["0", "1", "2", "3"]


def test_files_are_given_as_they_end() -> None:
    """Unless the order of input is asked for."""
    files, started = window(3, 3, in_order=False)
    files.refill()
    end(started, "2")
    assert taken(files) == ["2"]
    end(started, "0")
    end(started, "1")
    assert taken(files) == ["0", "1"]
    assert not files.refill()


def test_in_the_order_of_input_a_slow_file_holds_back_a_bounded_number() -> None:
    """The others go on, until as many answers are held as are held at most."""
    files, started = window(1_000, 2, in_order=True)
    for number in range(1, 1_000):
        files.refill()
        if str(number) in started:
            end(started, str(number))
    assert len(started) == AHEAD * 2
    assert taken(files) == []
    end(started, "0")
    assert taken(files) == [str(number) for number in range(AHEAD * 2)]


def test_at_least_one_must_run() -> None:
    """Less would never end."""
    with pytest.raises(ConfigError, match="at least 1"):
        window(1, 0, in_order=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", "in/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "given", [lambda folder: folder, lambda folder: str(folder), lambda folder: [folder]]
)
def test_a_folder_stands_for_its_pictures(
    folder: Path, given: Callable[[Path], "Path | str | list[Path]"]
) -> None:
    """And for those in its folders, by suffix, in a fixed order; a file stands for itself, whatever
    its suffix.
    """
    assert list(files_of(given(folder))) == [
        folder / "a.png",
        folder / "b.JPG",
        folder / "in/c.webp",
    ]
    assert list(files_of([folder / "notes.txt", "nowhere.jpg"])) == [
        folder / "notes.txt",
        Path("nowhere.jpg"),
    ]


def test_a_folder_with_odd_names_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its images are given, and what is skipped is reported; a path that cannot be examined stands
    for itself.
    """
    for name in (*ODD_NAMES, *LITTER):
        write(tmp_path / "in", name)
    make_obstacles(tmp_path / "in", tmp_path)
    given = [tmp_path / "in", "x" * 5000, "null\0byte", tmp_path / "in/._plain.png"]
    found = list(files_of(given))
    assert found[-3:] == [Path("x" * 5000), Path("null\0byte"), tmp_path / "in/._plain.png"]
    assert {os.fsencode(path.name) for path in found[:-3]} == set(ODD_NAMES)
    assert caplog.text.count("skipped") == 1


@pytest.mark.parametrize(
    "image", ["x" * 5000, "null\0byte", "pipe.png", "itself.png", "unreadable.png", "."]
)
def test_a_path_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path, image: str) -> None:
    """Of the kind that `tag_files` gives out in the image's place."""
    make_obstacles(tmp_path, tmp_path)
    make_unreadable(tmp_path / "unreadable.png")
    with pytest.raises(SourceUnavailable):
        read_image(tmp_path / image)

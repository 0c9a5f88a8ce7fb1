"""Which files are started, awaited and given next, with futures that the test ends by hand."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.client.folders import AHEAD, TaggedFile, Window, files_of
from serve_app.client.group_size import MAX_IMAGES, SLOW_S, GroupSize
from serve_app.client.images import read_image
from serve_app.errors import ConfigError, InvalidImage, SourceUnavailable
from tests.odd_names import LITTER, ODD_NAMES, make_obstacles, make_unreadable, write

Group = Future[list[TaggedFile]]
Started = dict[str, Group]


def names(count: int) -> Iterator[Path]:
    return (Path(f"{number}") for number in range(count))


def window(
    count: int, concurrency: int, in_order: bool, size: GroupSize | None = None
) -> tuple[Window[Group], Started]:
    """Return a window over some files, and its groups by the names in them."""
    started: Started = {}

    def start(files: list[Path]) -> Group:
        group = Group()
        started.update((file.name, group) for file in files)
        return group

    size = size or GroupSize(1)
    return Window(names(count), start, size, concurrency, in_order), started


def end(started: Started, name: str) -> None:
    group = started[name]
    files = [other for other, future in started.items() if future is group]
    group.set_result([TaggedFile(Path(file), InvalidImage("x")) for file in files])


def taken(files: Window[Group]) -> list[str]:
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


@pytest.mark.parametrize("in_order", [False, True])
def test_groups_grow_within_the_concurrency(in_order: bool) -> None:
    """A fast service gets several files a request, and never more files than may run."""
    size = GroupSize(8)
    files, started = window(40, 8, in_order, size)
    most = 0
    got: list[str] = []
    while files.refill():
        running = [name for name, group in started.items() if not group.done()]
        most = max(most, len(running))
        first = started[running[0]]
        size.note(sum(group is first for group in started.values()), seconds=0.1)
        end(started, running[0])
        got += taken(files)
    assert most == 8
    assert got == [file.name for file in names(40)]
    assert len(set(map(id, started.values()))) < 20


@given(st.integers(1, 200), st.lists(st.tuples(st.integers(1, MAX_IMAGES), st.floats(0, 300))))
def test_a_request_carries_at_most_half_of_what_may_run(
    concurrency: int, requests: list[tuple[int, float]]
) -> None:
    """And one image if only one may; a slow request is followed by smaller ones."""
    size = GroupSize(concurrency)
    for images, seconds in requests:
        size.note(images, seconds)
        assert 1 <= size.images <= max(1, min(MAX_IMAGES, concurrency // 2))
        if seconds > SLOW_S:
            assert size.images <= max(1, images // 2)


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
    "as_paths", [lambda folder: folder, lambda folder: str(folder), lambda folder: [folder]]
)
def test_a_folder_stands_for_its_pictures(
    folder: Path, as_paths: Callable[[Path], "Path | str | list[Path]"]
) -> None:
    """And for those in its folders, by suffix, in a fixed order; a file stands for itself, whatever
    its suffix.
    """
    assert list(files_of(as_paths(folder))) == [
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
    paths = [tmp_path / "in", "x" * 5000, "null\0byte", tmp_path / "in/._plain.png"]
    found = list(files_of(paths))
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

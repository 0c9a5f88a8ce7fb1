"""Which files of a folder are images: by name, whatever else is in the folder."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve_app.errors import ConfigError
from serve_app.images.formats import FORMATS
from serve_app.untrusted.image_names import (
    SUFFIXES,
    Skipped,
    files_below,
    images_in,
    is_image,
    is_litter,
)
from tests.odd_names import LITTER, ODD_NAMES, make_obstacles, write

NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")
)
"""Whatever a file of Linux may be called."""


def test_every_suffix_of_a_readable_format_is_known() -> None:
    """Pillow and pillow-heif say which those are."""
    Image.init()
    pillow_heif.register_heif_opener()
    registered = {
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in FORMATS or kind == "MPO"
    }
    assert registered <= set(SUFFIXES)
    assert all(is_image(f"a{suffix.upper()}") for suffix in SUFFIXES)


def test_odd_names_end_no_listing_and_are_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything else in the folder is skipped, counted and reported once."""
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside", "elsewhere.png")
    folder = tmp_path / "in"
    for name in ODD_NAMES:
        write(folder, name)
        write(folder, b"sub/" + name)
    for name in LITTER:
        write(folder, name)
    write(folder, "notes.txt")
    make_obstacles(folder, tmp_path / "outside")
    found = images_in(folder)
    expected = {os.fsdecode(prefix + name) for name in ODD_NAMES for prefix in (b"", b"sub/")}
    assert {str(path.relative_to(folder)) for path in found} == expected
    assert found == sorted(found)
    [record] = caplog.records
    said = record.getMessage()
    for part in (
        f"hidden or system files and folders: {len(LITTER)}",
        "files of other types: 1 (.txt)",
        "links to folders: 2",
        "pipes, sockets, devices and broken links: 4",
        "unreadable files and folders: 1",
    ):
        assert part in said
    assert "File name too long" in said
    assert said.isprintable()


def test_a_hidden_folder_that_is_named_is_listed(tmp_path: Path) -> None:
    """Only what is below it may be hidden."""
    write(tmp_path, ".thumbnails/a.png")
    write(tmp_path, ".thumbnails/.b.png")
    assert images_in(tmp_path / ".thumbnails") == [tmp_path / ".thumbnails/a.png"]
    (tmp_path / "link").symlink_to(".thumbnails")
    assert images_in(tmp_path / "link") == [tmp_path / "link/a.png"]


def test_a_folder_that_cannot_be_read_holds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And is reported like a subfolder."""
    assert images_in(tmp_path / "gone") == []
    assert "No such file or directory" in caplog.text


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EMFILE])
def test_a_failing_disk_or_share_ends_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Skipping the folder would hide images that are there; a test has no share that fails, so
    `scandir` does.
    """
    write(tmp_path, "a.png")
    write(tmp_path, "sub/b.png")
    fail_at(tmp_path / "sub", code, monkeypatch)
    with pytest.raises(
        ConfigError,
        match=rf"sub: {re.escape(os.strerror(code))}. "
        r"Check the disk or network share, then retry.",
    ):
        images_in(tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP])
def test_a_folder_without_access_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """And reported; the tests may run as root, who may read every folder."""
    write(tmp_path, "a.png")
    write(tmp_path, "sub/b.png")
    fail_at(tmp_path / "sub", code, monkeypatch)
    skipped = Skipped()
    assert [path for path, _ in files_below(str(tmp_path), skipped)] == [str(tmp_path / "a.png")]
    assert skipped.unreadable.shown == [f"{tmp_path}/sub: {os.strerror(code)}"]


def test_a_folder_that_is_deleted_meanwhile_is_not_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds nothing any more."""
    write(tmp_path, "sub/b.png")
    fail_at(tmp_path / "sub", errno.ENOENT, monkeypatch)
    skipped = Skipped()
    assert list(files_below(str(tmp_path), skipped)) == []
    assert skipped.unreadable.count == 0


def test_many_entries_are_counted_and_a_few_shown() -> None:
    """So that a bucket of millions of unusable keys takes no memory."""
    skipped = Skipped()
    for at in range(1000):
        skipped.keys.add(f"a//{at}")
    assert skipped.summary() == "objects with an unusable key: 1,000 (a//0, a//1, a//2)"
    assert len(skipped.keys.shown) == 3


def fail_at(folder: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one folder fail when it is listed."""
    real = os.scandir

    def scandir(path: str) -> Any:
        if path == str(folder):
            raise OSError(code, os.strerror(code), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@given(st.lists(NAMES, unique=True, max_size=8))
def test_whatever_files_are_called_each_is_listed_or_counted(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes]
) -> None:
    """None is lost silently."""
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        write(folder, name)
    skipped = Skipped()
    found = [path for path, _ in files_below(str(folder), skipped)]
    assert len(found) + skipped.hidden == len(names)
    assert {os.path.basename(os.fsencode(path)) for path in found} == {
        name for name in names if not is_litter(os.fsdecode(name))
    }


@pytest.mark.parametrize(
    "path", ["./a.png", "../a.png", "_a.png", "a/b.c/d.png", "a.thumbnails/b.png"]
)
def test_ordinary_paths_are_no_litter(path: str) -> None:
    """A dot alone hides nothing, and an underscore neither."""
    assert not is_litter(path)

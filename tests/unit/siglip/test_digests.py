"""Digests of files: all bytes count, and what is remembered is never that of other bytes."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.siglip import digests
from serve_app.siglip.digests import file_digest
from serve_app.siglip.user_folders import cache_root


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large and as settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "MIN_CACHED_BYTES", 8)
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"0123456789" * 1000)
    return path


def records() -> list[Path]:
    return sorted((cache_root() / digests.FOLDER).glob("*.json"))


def test_it_is_the_sha256_of_the_whole_file(path: Path) -> None:
    """Read or remembered."""
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_digest(path) == expected
    assert len(records()) == 1
    assert file_digest(path) == expected


def test_it_is_remembered(path: Path) -> None:
    """A record with another digest shows that the file is not read twice."""
    file_digest(path)
    (record,) = records()
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"sha256": "f" * 64}))
    assert file_digest(path) == "f" * 64


def test_other_bytes_of_the_same_size_and_time_are_seen(path: Path) -> None:
    """A program can set the time of modification back, and not the time of the change."""
    before = file_digest(path)
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert file_digest(path) != before


def test_another_file_of_the_same_name_is_seen(path: Path, tmp_path: Path) -> None:
    """As a download replaces a file: another inode."""
    before = file_digest(path)
    other = tmp_path / "other"
    other.write_bytes(b"9876543210" * 1000)
    other.replace(path)
    assert file_digest(path) != before


def test_a_file_that_has_just_changed_is_not_remembered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the clock's tick would have the same time."""
    monkeypatch.setattr(digests, "SETTLED_S", 1000.0)
    file_digest(path)
    assert records() == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": 1}', "{" * 5000])
def test_a_damaged_record_is_not_used(path: Path, content: str) -> None:
    """The file is read again."""
    expected = file_digest(path)
    (record,) = records()
    record.write_text(content)
    assert file_digest(path) == expected


def test_no_place_to_remember_is_no_error(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache folder that is a file."""
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.safetensors"):
        file_digest(tmp_path / "gone.safetensors")

"""Folders and a real S3 endpoint behind the same calls."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.batch.storage import Storage, joined, shown_url, url_of
from serve_app.errors import ConfigError, PayloadTooLarge, SourceUnavailable
from tests.object_store import Bucket, bucket


@pytest.fixture(scope="module")
def s3() -> Iterator[Bucket]:
    with bucket() as found:
        yield found


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: Bucket) -> tuple[Storage, str]:
    """An empty place of each kind."""
    if request.param == "folder":
        return Storage(), url_of(str(tmp_path / "a place"))
    return s3.storage, f"{s3.url}/{tmp_path.name}"


def test_what_is_written_is_found_and_read(place: tuple[Storage, str]) -> None:
    """In whole and in part, under names with spaces and signs; the ETag follows the content."""
    storage, url = place
    name = joined(url, "deep er", "ü %20 ?#.bin")
    assert storage.find(name) is None
    storage.write(name, b"first")
    data, etag = storage.read(name)
    assert data == b"first"
    assert storage.read_range(name, 1, 3) == b"irs"
    with storage.open(name) as file:
        file.seek(-2, 2)
        assert file.read() == b"st"
    [found] = storage.list(url)
    assert (found.url, found.size, found.etag) == (name, 5, etag)
    storage.write(name, b"second")
    assert storage.read(name)[1] != etag
    storage.delete(name)
    storage.delete(name)
    assert list(storage.list(url)) == []


def test_a_prefix_is_a_folder_and_not_the_start_of_a_name(place: tuple[Storage, str]) -> None:
    """`a` does not hold what lies in `ab`, and names come sorted."""
    storage, url = place
    for name in ("a/2", "a/1", "ab/3"):
        storage.write(joined(url, name), b"x")
    assert [found.url.removeprefix(url) for found in storage.list(joined(url, "a"))] == [
        "/a/1",
        "/a/2",
    ]


def test_reading_refuses_what_is_too_large_or_not_there(place: tuple[Storage, str]) -> None:
    """Each with an error of its own, so that it becomes a row's."""
    storage, url = place
    storage.write(joined(url, "big"), b"x" * 11)
    with pytest.raises(PayloadTooLarge, match="11 bytes; at most 10"):
        storage.read(joined(url, "big"), max_bytes=10)
    with pytest.raises(SourceUnavailable, match="it is not there"):
        storage.read(joined(url, "missing"))
    with pytest.raises(SourceUnavailable):
        storage.read_range(joined(url, "missing"), 0, 1)


def test_errors_name_the_place_and_no_secret(s3: Bucket) -> None:
    """A bucket that is not there."""
    with pytest.raises(ConfigError, match="s3://nowhere-at-all/x cannot be written") as told:
        s3.storage.write("s3://nowhere-at-all/x", b"")
    assert "test-secret" not in str(told.value)


def test_arguments_become_urls(tmp_path: Path) -> None:
    """Paths stay as written, URLs lose a final slash, and unreadable schemes are refused."""
    assert url_of(str(tmp_path / "é a")) == f"file://{tmp_path}/é a"
    assert url_of("s3://bucket/a/") == "s3://bucket/a"
    assert url_of("gs://bucket") == "gs://bucket"
    assert shown_url("file:///a b") == "/a b"
    assert shown_url("https://user:pass@host/x?token=1") == "https://host/x"
    with pytest.raises(ConfigError, match="hdfs:// cannot be read"):
        url_of("hdfs://x/y")

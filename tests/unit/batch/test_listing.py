"""Folders and buckets with any names: images are inputs, the rest is skipped and reported."""

import io
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.batch import inputs as batch_inputs
from serve_app.batch import local_files, odd_keys
from serve_app.batch.inputs import find_inputs
from serve_app.batch.options import BatchOptions
from serve_app.batch.reading import read_inputs
from serve_app.batch.storage import Storage, joined, url_of
from serve_app.batch.urls import local_path
from serve_app.errors import ConfigError
from serve_app.untrusted.image_names import Skipped
from tests.conftest import encoded, random_picture
from tests.object_store import KEY, REGION, SECRET, Bucket, bucket
from tests.odd_names import LITTER, ODD_NAMES, make_obstacles, make_too_deep, make_unreadable, write
from tests.unit.batch.test_inputs import everything, options_for

PICTURE = encoded(random_picture(8, 8, 1))
GOOD_KEYS = (
    *(
        "a.jpg",
        "b+c.jpg",
        "d%20e.jpg",
        "d%2Fe.jpg",
        "f#g.jpg",
        "w?x.jpg",
        "ü b.jpg",
        "10:30.jpg",
        "back\\slash.jpg",
        "[x].jpg",
    ),
    *("_DSC0001.JPG", "deep/er/a.heic", "100%.png", "*.png", "~.png"),
)
BAD_KEYS = (
    "in//x.jpg",
    "in/./x.jpg",
    "in/../x.jpg",
    "in/z//y.jpg",
    "in/c\x01.jpg",
    "in/r\r.jpg",
    "in/\x7f.jpg",
    "in//",
)
HIDDEN_KEYS = (
    "in/._a.jpg",
    "in/.thumbnails/a.jpg",
    "in/__MACOSX/._a.jpg",
    "in/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
)


@pytest.fixture(scope="module")
def s3() -> Iterator[Bucket]:
    with bucket() as found:
        yield found


def put(s3: Bucket, *keys: str) -> None:
    """Write objects under keys that obstore would refuse."""
    session = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": REGION}
    client = boto3.client("s3", endpoint_url=s3.endpoint, **session)
    for key in keys:
        client.put_object(Bucket=s3.name, Key=key, Body=PICTURE)


def of_bucket(s3: Bucket, prefix: str, **changed: object) -> BatchOptions:
    return BatchOptions(f"{s3.url}/{prefix}", url_of("/nowhere"), storage=s3.storage, **changed)  # type: ignore[arg-type]


def test_a_folder_with_odd_names_is_read_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names may be not UTF-8; link cycles, outside links, pipes, sockets and litter are skipped."""
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside", "elsewhere.png", PICTURE)
    folder = tmp_path / "in"
    for name in ODD_NAMES:
        write(folder, name, PICTURE)
    for name in LITTER:
        write(folder, name, PICTURE)
    make_obstacles(folder, tmp_path / "outside")
    rows, data = everything(options_for(folder))
    assert {os.fsencode(local_path(url)) for url in rows["file"].to_pylist()} == {
        os.fsencode(folder) + b"/" + name for name in ODD_NAMES
    }
    assert data == [PICTURE] * len(ODD_NAMES)
    assert all(rows["etag"].to_pylist())
    assert f"hidden or system files and folders: {len(LITTER)}" in caplog.text
    assert caplog.text.count("skipped") == 1


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & set(b"/\0.")),
        unique=True,
        min_size=1,
        max_size=6,
    )
)
def test_whatever_an_image_is_called_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes]
) -> None:
    """Each with what it holds."""
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        write(folder, name + b".jpg", name)
    rows, data = everything(options_for(folder))
    assert sorted(data) == sorted(names)
    assert len(set(rows["uri"].to_pylist())) == len(names)


def test_litter_that_is_named_is_tagged(tmp_path: Path) -> None:
    """Also a file without an image's suffix."""
    for name in ("._a.png", "camera.raw-but-png"):
        write(tmp_path, name, PICTURE)
        assert everything(options_for(tmp_path / name))[1] == [PICTURE]


@pytest.mark.parametrize("name", ["shard.tar.gz", "list.tsv", "empty"])
def test_a_file_that_is_nothing_that_can_be_tagged_is_refused(tmp_path: Path, name: str) -> None:
    """In a sentence that says what it would need."""
    write(tmp_path, name, b"" if name == "empty" else b"\x1f\x8b\x08")
    with pytest.raises(
        ConfigError,
        match=f"{name} is no image; "
        "an uncompressed tar file, a table or a manifest needs its suffix",
    ):
        everything(options_for(tmp_path / name))


def test_a_folder_of_nothing_but_litter_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was skipped is reported before the error."""
    write(tmp_path, "._a.png")
    write(tmp_path, "notes.txt")
    with pytest.raises(ConfigError, match="holds nothing that can be tagged"):
        everything(options_for(tmp_path))
    assert "hidden or system files and folders: 1; files of other types: 1 (.txt)" in caplog.text


def test_twins_of_tables_and_shards_are_no_inputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A Mac writes them beside any file, and into tar files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("./._a.png", "./a.png", "__MACOSX/a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PICTURE)
            tar.addfile(info, io.BytesIO(PICTURE))
    write(tmp_path, "s/1.tar", buffer.getvalue())
    write(tmp_path, "s/._1.tar", b"Mac OS X")
    rows, data = everything(options_for(tmp_path / "s"))
    assert rows["uri"].to_pylist() == [f"{tmp_path}/s/1.tar#./a.png"]
    assert data == [PICTURE]
    assert "2 (hidden or system file)" in caplog.text
    write(tmp_path, "m/a.csv", b"uri\na.png\n")
    write(tmp_path, "m/._a.csv", b"Mac OS X")
    assert everything(options_for(tmp_path / "m"))[0]["uri"].to_pylist() == ["a.png"]


@pytest.mark.parametrize("suffix", ["tar", "csv", "jsonl", "parquet"])
def test_one_unreadable_table_or_shard_is_one_error_row(tmp_path: Path, suffix: str) -> None:
    """The others are read."""
    write(tmp_path, "a.png", PICTURE)
    write(tmp_path, "m/good.csv", b"uri\n../a.png\n")
    make_unreadable(tmp_path / f"m/bad.{suffix}")
    kind = "webdataset" if suffix == "tar" else "manifest"
    if suffix == "tar":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(tmp_path / "a.png", "a.png")
        write(tmp_path, "m/good.tar", buffer.getvalue())
    rows, data = everything(options_for(tmp_path / "m", input_format=kind))
    assert data == [PICTURE, b""]
    assert rows["uri"].to_pylist()[1] == f"{tmp_path}/m/bad.{suffix}#damaged"


def test_a_bucket_with_odd_keys_is_read(s3: Bucket) -> None:
    """Percent and plus signs, hashes and backslashes are parts of keys.

    The marker of a folder is not an image.
    """
    put(s3, *(f"good/{key}" for key in GOOD_KEYS), "good/sub/")
    inputs = find_inputs(of_bucket(s3, "good"))
    [table] = inputs.tables
    assert set(table["uri"].to_pylist()) == {f"{s3.url}/good/{key}" for key in GOOD_KEYS}
    reads = list(read_inputs(table, inputs.kind, None, s3.storage, 10**6))
    assert [read.data for read in reads] == [PICTURE] * len(GOOD_KEYS)


@pytest.mark.parametrize("bad", BAD_KEYS)
def test_one_key_that_cannot_be_requested_is_skipped_and_reported(
    s3: Bucket, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All others are listed, with their ETags, in the same order as without it."""
    prefix = f"bad-{BAD_KEYS.index(bad)}"
    good = sorted(
        f"{prefix}/{key}" for key in (*GOOD_KEYS, *(f"many/{at:04d}.jpg" for at in range(20)))
    )
    put(s3, *good, *(f"{prefix}{key[2:]}" for key in HIDDEN_KEYS))
    [before] = find_inputs(of_bucket(s3, prefix)).tables
    put(s3, prefix + bad[2:])
    [after] = find_inputs(of_bucket(s3, prefix)).tables
    assert after.equals(before)
    assert set(after["uri"].to_pylist()) == {f"{s3.url}/{key}" for key in good}
    assert "hidden or system files and folders: 4" in caplog.text
    if not bad.endswith("/"):
        assert "objects with an unusable key: 1" in caplog.text


def test_only_objects_near_a_bad_key_cost_a_request(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The listing continues after each of them, in order and with every object once."""
    monkeypatch.setattr(odd_keys, "WINDOW", 5)
    good = [f"near/{at:03d}.jpg" for at in range(60)]
    put(s3, *good)
    [before] = find_inputs(of_bucket(s3, "near")).tables
    put(s3, "near/001//x.jpg", "near//y.jpg")
    with caplog.at_level(logging.INFO, "werkzeug"):
        [after] = find_inputs(of_bucket(s3, "near", input_format="images")).tables
    assert after.equals(before)
    assert all(after["etag"].to_pylist())
    assert "objects with an unusable key: 2 (near//y.jpg, near/001//x.jpg)" in caplog.text
    requested = [
        record.getMessage()
        for record in caplog.records
        if record.name == "werkzeug" and '"HEAD ' in record.getMessage()
    ]
    assert 3 <= sum(".jpg" in text for text in requested) <= 10


@pytest.mark.parametrize("window", [1, 2, 3, 1000])
def test_bad_keys_at_any_place_are_counted_once(
    s3: Bucket, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First, last, several in a row, and with the marks of folders among them."""
    monkeypatch.setattr(odd_keys, "WINDOW", window)
    prefix = f"places-{window}"
    good = ["a.jpg", "b.jpg", "d/e.jpg", "z%20.jpg", "ü b.jpg"]
    bad = ["//0.jpg", "c//1.jpg", "c//2.jpg", "c/../3.jpg", "ü c//4.jpg", "ü c//5.jpg"]
    put(s3, *(f"{prefix}/{key}" for key in (*good, *bad, "//", "y//")))
    skipped = Skipped()
    found = [
        one.url.removeprefix(f"{s3.url}/{prefix}/")
        for one in s3.storage.list(f"{s3.url}/{prefix}", skipped)
    ]
    assert found == good
    assert skipped.keys.count == len(bad)


def test_a_bucket_with_only_a_bad_key_holds_nothing(s3: Bucket) -> None:
    """Said as for any other."""
    put(s3, "alone//x.jpg")
    with pytest.raises(ConfigError, match="holds nothing that can be tagged"):
        everything(of_bucket(s3, "alone"))


def test_a_listing_holds_paths_sizes_and_etags(tmp_path: Path) -> None:
    """And not the whole status of every file, which is several times as large."""
    for name in ("b.jpg", "a/c.jpg"):
        write(tmp_path, name, PICTURE)
    found = list(local_files.list_files(str(tmp_path), None))
    etag = local_files.etag_of(os.stat(tmp_path / "a/c.jpg"))
    assert found[0] == (str(tmp_path / "a/c.jpg"), len(PICTURE), etag)
    assert [path for path, *_ in found] == [str(tmp_path / "a/c.jpg"), str(tmp_path / "b.jpg")]


def test_the_format_is_told_by_the_first_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they are; more are looked at only if none of them can be tagged."""
    monkeypatch.setattr(batch_inputs, "PEEK", 5)
    for at in range(10):
        write(tmp_path, f"in/b{at}.txt")
        write(tmp_path, f"in/c{at}.png", PICTURE)
    assert find_inputs(options_for(tmp_path / "in")).kind == "object"
    write(tmp_path, "in/a.tar", b"")
    assert find_inputs(options_for(tmp_path / "in")).kind == "member"


def test_an_output_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Otherwise its chunks would count as missing."""
    write(tmp_path, "part-000000-0.parquet")
    make_too_deep(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be listed: .*File name too long"):
        list(Storage().list(url_of(str(tmp_path))))
    assert len(list(Storage().list(url_of(str(tmp_path)), Skipped()))) == 1


def test_names_that_are_not_utf8_can_be_written_and_found(tmp_path: Path) -> None:
    """So that outputs and sidecars can lie in such a folder."""
    url = url_of(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    storage = Storage()
    storage.write(joined(url, "sub", "100% ü.bin"), b"data")
    assert os.path.exists(os.path.join(os.fsencode(tmp_path), b"caf\xe9/sub/100% \xc3\xbc.bin"))
    [found] = storage.list(url)
    assert storage.find(found.url) == found
    assert storage.read(found.url) == (b"data", found.etag)
    storage.delete(found.url)
    assert list(storage.list(url)) == []


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    """A folder is where the file should be."""
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="a cannot be written: it is a folder"):
        Storage().write(url_of(str(tmp_path / "a")), b"data")
    assert os.listdir(tmp_path) == ["a"]

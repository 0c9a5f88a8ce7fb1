"""What INPUT may be, and how it is cut; every kind has the same columns, in a stable order."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve_app.batch.cutting import Cut
from serve_app.batch.inputs import find_inputs
from serve_app.batch.options import BatchOptions
from serve_app.batch.reading import read_inputs
from serve_app.batch.snapshot import digest_of, load_snapshot, read_chunk, take_snapshot
from serve_app.batch.storage import Storage, url_of
from serve_app.batch.table_rows import join_tables
from serve_app.errors import ConfigError
from tests.conftest import encoded, random_picture

PICTURES = {f"{at}.png": encoded(random_picture(8, 8, at)) for at in range(5)}


def options_for(source: Path, **changed: object) -> BatchOptions:
    return BatchOptions(source=url_of(str(source)), output=url_of("/nowhere"), **changed)  # type: ignore[arg-type]


def everything(options: BatchOptions) -> tuple[pa.Table, list[bytes]]:
    """Return all inputs and what they hold."""
    inputs = find_inputs(options)
    rows = join_tables(list(inputs.tables))
    reads = list(read_inputs(rows, inputs.kind, inputs.image_column, Storage(), 10**6))
    return rows, [read.data for read in reads]


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    """Sorted, deep, pictures only, with their ETags."""
    write_pictures(tmp_path / "b")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "a.JPG").write_bytes(PICTURES["0.png"])
    rows, data = everything(options_for(tmp_path))
    assert rows["uri"].to_pylist() == [
        str(tmp_path / "a.JPG"),
        *(str(tmp_path / "b" / name) for name in PICTURES),
    ]
    assert data[1:] == list(PICTURES.values())
    assert all(rows["etag"].to_pylist())


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_with_other_columns(tmp_path: Path, kind: str) -> None:
    """Paths beside the manifest, absolute ones and missing ones; the other columns pass through."""
    write_pictures(tmp_path / "p")
    given = [
        {"url": "p/0.png", "n": 7},
        {"url": str(tmp_path / "p/1.png"), "n": 8},
        {"url": "p/gone.png", "n": 9},
    ]
    path = tmp_path / f"list.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["url", "n"])
            writer.writeheader()
            writer.writerows(given)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
    else:
        pq.write_table(pa.Table.from_pylist(given), path)
    rows, data = everything(options_for(path))
    assert rows["n"].to_pylist() == (["7", "8", "9"] if kind == "csv" else [7, 8, 9])
    assert rows["uri"].to_pylist() == [row["url"] for row in given]
    assert data == [PICTURES["0.png"], PICTURES["1.png"], b""]


@pytest.mark.parametrize("as_struct", [False, True])
def test_a_table_of_pictures(tmp_path: Path, as_struct: bool) -> None:
    """As bytes or as Hugging Face's struct, in several row groups, with an empty row."""
    images: list[object] = [*PICTURES.values(), None]
    values = [{"bytes": data, "path": "x"} if as_struct else data for data in images]
    pq.write_table(
        pa.table({"image": values, "label": list("abcdef")}),
        tmp_path / "t.parquet",
        row_group_size=2,
    )
    rows, data = everything(options_for(tmp_path))
    assert rows["label"].to_pylist() == list("abcdef")
    assert rows["uri"].to_pylist()[3] == f"{tmp_path}/t.parquet#3"
    assert data == [*PICTURES.values(), b""]


def test_a_table_without_other_columns(tmp_path: Path) -> None:
    """The column of pictures may be the only one."""
    pq.write_table(pa.table({"image": list(PICTURES.values())}), tmp_path / "t.parquet")
    assert everything(options_for(tmp_path / "t.parquet"))[1] == list(PICTURES.values())


def test_tar_shards(tmp_path: Path) -> None:
    """Members that are pictures, found by their headers and read by their bytes."""
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for name, data in PICTURES.items():
            for suffix, content in ((name, data), (name.replace("png", "json"), b"{}")):
                info = tarfile.TarInfo(suffix)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    rows, data = everything(options_for(tmp_path))
    assert rows["uri"].to_pylist() == [f"{tmp_path}/shard-0.tar#{name}" for name in PICTURES]
    assert data == list(PICTURES.values())


def test_what_cannot_be_tagged_is_refused(tmp_path: Path) -> None:
    """Each in one sentence that says what would do."""
    with pytest.raises(ConfigError, match="is not there or holds nothing that can be tagged"):
        find_inputs(options_for(tmp_path / "nowhere"))
    (tmp_path / "a.csv").write_text("name\nx\n")
    with pytest.raises(
        ConfigError, match=r"has no column uri; it has name\. Name it with --uri-column"
    ):
        list(find_inputs(options_for(tmp_path / "a.csv")).tables)
    (tmp_path / "b.csv").write_text("uri,tags\nx,y\n")
    with pytest.raises(ConfigError, match="columns that the output has too: tags"):
        list(find_inputs(options_for(tmp_path / "b.csv")).tables)
    (tmp_path / "c.tar").write_bytes(b"\x1f\x8b no tar")
    with pytest.raises(ConfigError, match="is not an uncompressed tar file"):
        list(find_inputs(options_for(tmp_path / "c.tar")).tables)
    (tmp_path / "d.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"d\.parquet cannot be read"):
        list(find_inputs(options_for(tmp_path / "d.parquet")).tables)


def test_chunks_are_cut_the_same_and_found_again(tmp_path: Path) -> None:
    """The last chunk is shorter, names follow from the inputs, and a snapshot needs its index."""
    write_pictures(tmp_path / "p")
    folder = url_of(str(tmp_path / "out"))
    taken = [
        take_snapshot(Storage(), folder, find_inputs(options_for(tmp_path / "p")), Cut(2))
        for _ in range(2)
    ]
    assert taken[0] == taken[1] == load_snapshot(Storage(), folder)
    assert [chunk.count for chunk in taken[0].chunks] == [2, 2, 1]
    assert taken[0].inputs == 5
    rows = read_chunk(Storage(), folder, taken[0].chunks[1])
    assert [Path(uri).name for uri in rows["uri"].to_pylist()] == ["2.png", "3.png"]
    assert taken[0].chunks[1].name == f"part-000001-{digest_of(rows)}"
    (tmp_path / "out/_inputs/index.json").unlink()
    assert load_snapshot(Storage(), folder) is None


def test_a_changed_picture_changes_its_chunk_only(tmp_path: Path) -> None:
    """By its ETag."""
    write_pictures(tmp_path / "p")
    folder = url_of(str(tmp_path / "out"))
    before = take_snapshot(Storage(), folder, find_inputs(options_for(tmp_path / "p")), Cut(2))
    (tmp_path / "p/2.png").write_bytes(PICTURES["0.png"] + b"more")
    after = take_snapshot(Storage(), folder, find_inputs(options_for(tmp_path / "p")), Cut(2))
    assert [a.name == b.name for a, b in zip(before.chunks, after.chunks, strict=True)] == [
        True,
        False,
        True,
    ]


def test_partitions_share_no_chunk(tmp_path: Path) -> None:
    """A value a folder, as Hive writes it; an empty value has one too."""
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(
            json.dumps({"uri": f"{at}.png", "day": day}) + "\n"
            for at, day in enumerate(["mon/tue", "wed", None, "wed"])
        )
    )
    cut = list(Cut(10, partition_by="day").chunks(find_inputs(options_for(path)).tables))
    assert {part: rows["uri"].to_pylist() for rows, part in cut} == {
        "day=mon%2Ftue": ["0.png"],
        "day=wed": ["1.png", "3.png"],
        "day=__HIVE_DEFAULT_PARTITION__": ["2.png"],
    }
    with pytest.raises(ConfigError, match="--partition-by week: the inputs have no such column"):
        list(Cut(10, partition_by="week").chunks(find_inputs(options_for(path)).tables))


def test_a_limit_takes_the_first(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p")
    cut = list(Cut(2, limit=3).chunks(find_inputs(options_for(tmp_path / "p")).tables))
    assert [len(rows) for rows, _ in cut] == [2, 1]

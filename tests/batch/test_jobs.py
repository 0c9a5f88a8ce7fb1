"""Whole jobs on a real Ray cluster, with pictures in folders, tables and a real S3 endpoint."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from serve_app.batch.map_batches import TagImages
from serve_app.batch.options import BatchOptions
from serve_app.batch.storage import Storage, url_of
from serve_app.batch.tagging_job import run_job
from serve_app.config.service import parse_config
from serve_app.demo import settings as demo_settings
from serve_app.demo.settings import demo_config
from serve_app.errors import ConfigError, ServiceError
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.tagging.options import TagOptions
from tests.conftest import encoded, in_float32, random_picture
from tests.object_store import Bucket

SAMPLES = Path(demo_settings.__file__).parent / "samples"
pytestmark = pytest.mark.usefixtures("cluster")


def options_for(source: Path | str, output: Path | str, **changed: object) -> BatchOptions:
    return BatchOptions(source=url_of(str(source)), output=url_of(str(output)), **changed)  # type: ignore[arg-type]


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("*/**/part-*"))


def rows_of(output: Path) -> list[dict[str, object]]:
    return [
        row for part in parts(output) for row in pq.read_table(part, partitioning=None).to_pylist()
    ]


@pytest.fixture(scope="module")
def samples() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))]


@pytest.mark.parametrize("quality", ["standard", "high"])
def test_rows_are_what_the_local_tagger_says(tmp_path: Path, quality: str) -> None:
    """Tags, confidences, sizes and embeddings, of pictures with one view and with tiles."""
    config = in_float32(demo_config())
    result = run_job(
        config, options_for(SAMPLES, tmp_path, embeddings=True, quality=quality, chunk_size=4)
    )
    assert (result.inputs, result.encoded, result.errors) == (6, 6, {})
    rows = rows_of(tmp_path)
    tagger = LocalTagger(config)
    data = [Path(str(row["uri"])).read_bytes() for row in rows]
    images = tagger.tag_images(data, TagOptions(quality=quality))  # type: ignore[arg-type]
    for row, image in zip(rows, images, strict=True):
        assert [tag["label"] for tag in row["tags"]] == [tag.label for tag in image.tags]  # type: ignore[attr-defined]
        np.testing.assert_allclose(
            [t["confidence"] for t in row["tags"]],  # type: ignore[attr-defined]
            [t.confidence for t in image.tags],
            atol=1e-4,
        )
        np.testing.assert_allclose(np.array(row["embedding"], np.float32), image.embed, atol=1e-3)
        assert (row["width"], row["height"]) == (640, 480)
        assert row["error"] is None
        assert row["checkpoint"] == "demo"
    assert {row["vocabulary_fingerprint"] for row in rows} == {
        images[0].scored.vocabulary_fingerprint  # type: ignore[union-attr]
    }


def test_two_thousand_objects_of_a_bucket(s3: Bucket, samples: list[bytes], tmp_path: Path) -> None:
    """In prefixes, one in a hundred corrupt, no picture or missing: a row each, read back by DuckDB
    and pandas.
    """
    good = [*samples, *(encoded(random_picture(40 + at, 50, at), "JPEG") for at in range(20))]
    broken = {
        7: samples[0][:2000],
        207: b"GIF89a no more",
        407: b"<html>not found</html>",
        607: b"",
        807: None,
    }
    kinds = {
        at + 1000 * again: data for at, data in broken.items() for again in (0, 1)
    } | dict.fromkeys(range(1900, 1910))
    names = [f"in/{at % 7}/{at:05d}.jpg" for at in range(2000)]

    def put(at: int) -> None:
        data = kinds.get(at, good[at % len(good)])
        if data is not None:
            s3.storage.write(f"{s3.url}/{names[at]}", data)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, range(2000)))
    manifest = "uri,shoot\n" + "".join(
        f"{s3.url}/{name},{at % 3}\n" for at, name in enumerate(names)
    )
    s3.storage.write(f"{s3.url}/list.csv", manifest.encode())
    options = options_for(
        f"{s3.url}/list.csv", f"{s3.url}/out", storage=s3.storage, chunk_size=500, embeddings=True
    )
    result = run_job(demo_config(), options)

    assert (result.inputs, result.encoded) == (2000, 2000)
    assert result.errors == {"source_unavailable": 12, "unsupported_image": 4, "invalid_image": 4}
    for found in s3.storage.list(
        result.folder
    ):  # DuckDB's own S3 reader is an extension that it would have to fetch
        (tmp_path / found.url.rsplit("/", 1)[-1]).write_bytes(s3.storage.read(found.url)[0])
    database = duckdb.connect()
    database.execute(f"create view dataset as select * from '{tmp_path}/part-*.parquet'")
    counts = "select count(*), count(distinct uri), count(error), count(embedding) from dataset"
    assert database.sql(counts).fetchall() == [(2000, 2000, 20, 1980)]
    codes = (
        "select error.code, count(*) from dataset where error is not null and tags is null "
        "group by all order by 1"
    )
    assert database.sql(codes).fetchall() == [
        ("invalid_image", 4),
        ("source_unavailable", 12),
        ("unsupported_image", 4),
    ]
    [(label,)] = database.sql(
        f"select tags[1].label from dataset where uri like '%/00002.jpg' and shoot = {2 % 3}"
    ).fetchall()
    assert label == "circle"  # the third sample
    frame = pd.read_parquet(
        result.folder.removeprefix("s3://"), filesystem=s3.arrow(), columns=["uri", "etag", "error"]
    )
    assert sorted(frame["uri"]) == sorted(f"{s3.url}/{name}" for name in names)
    assert frame["etag"].notna().sum() == 2000 - 12
    manifest = json.loads(s3.storage.read(f"{result.folder}/_manifest.json")[0])
    assert manifest["inputs"] == 2000
    assert manifest["tagged"] == 1980
    assert "test-secret" not in json.dumps(manifest)
    assert s3.storage.find(f"{result.folder}/_SUCCESS") is not None
    again = run_job(demo_config(), options)
    assert (again.encoded, again.errors) == (0, result.errors)


def test_only_missing_chunks_are_done_again(tmp_path: Path, samples: list[bytes]) -> None:
    """Whatever the folder holds since; other outputs stay to the byte."""
    for at in range(20):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{at:02d}.jpg").write_bytes(samples[at % 6])
    options = options_for(tmp_path / "in", tmp_path / "out", chunk_size=5)
    assert run_job(demo_config(), options).encoded == 20
    before = {part: part.read_bytes() for part in parts(tmp_path / "out")}
    gone = list(before)[2]
    gone.unlink()
    (tmp_path / "in/99.jpg").write_bytes(samples[0])
    again = run_job(demo_config(), options)
    assert (again.inputs, again.encoded) == (20, 5)
    assert [part for part in before if part.read_bytes() != before[part]] in ([], [gone])


def test_a_damaged_output_is_found_and_done_again(tmp_path: Path) -> None:
    """The proof at the end reads what is there."""
    options = options_for(SAMPLES, tmp_path, chunk_size=3)
    run_job(demo_config(), options)
    first, second = parts(tmp_path)
    first.write_bytes(second.read_bytes())
    with pytest.raises(
        ServiceError, match="1 output files were missing, damaged or held other rows"
    ):
        run_job(demo_config(), options)
    assert run_job(demo_config(), options).encoded == 3


def test_another_configuration_writes_beside(tmp_path: Path) -> None:
    """A threshold, a label or an option more is another folder; the same again is not."""
    config = demo_config()
    base = options_for(SAMPLES, tmp_path)
    folders = [run_job(config, base).folder, run_job(config, base).folder]
    plugin = config.siglip.model_copy(update={"confidence_threshold": 0.9})
    strict = config.model_copy(
        update={"plugins": config.plugins.model_copy(update={"siglip": plugin})}
    )
    folders.append(run_job(strict, base).folder)
    folders.append(run_job(config, options_for(SAMPLES, tmp_path, embeddings=True)).folder)
    folders.append(
        run_job(
            parse_config({"labels": ["star"], "plugins": {"siglip": {"model": "demo"}}}), base
        ).folder
    )
    assert len(set(folders)) == 4
    assert folders[0] == folders[1]


def test_jsonl_and_partitions(tmp_path: Path) -> None:
    """A folder for each value, and lines that any reader reads."""
    given = [
        {"uri": str(path), "kind": f"k{at % 2}"}
        for at, path in enumerate(sorted(SAMPLES.glob("*.jpg")))
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    run_job(
        demo_config(),
        options_for(
            tmp_path / "list.jsonl", tmp_path / "out", output_format="jsonl", partition_by="kind"
        ),
    )
    assert [part.parent.name for part in parts(tmp_path / "out")] == ["kind=k0", "kind=k1"]
    rows = [
        json.loads(line)
        for part in parts(tmp_path / "out")
        for line in part.read_text().splitlines()
    ]
    assert len(rows) == 6
    assert all(row["tags"][0]["confidence"] > 0.5 for row in rows)


def test_a_table_of_pictures_with_its_columns(tmp_path: Path, samples: list[bytes]) -> None:
    """Bytes in a column, the others pass through."""
    pq.write_table(
        pa.table({"image": samples, "id": range(6)}), tmp_path / "in.parquet", row_group_size=4
    )
    run_job(demo_config(), options_for(tmp_path / "in.parquet", tmp_path / "out"))
    assert [row["id"] for row in rows_of(tmp_path / "out")] == list(range(6))
    assert "image" not in rows_of(tmp_path / "out")[0]


def test_a_job_that_is_plainly_wrong_stops(tmp_path: Path) -> None:
    """With what failed, and what was written stays."""
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"gone/{at}.jpg\n" for at in range(300)))
    with pytest.raises(
        ServiceError,
        match=r"100 of 100 inputs failed \(100 source_unavailable\), "
        r"more than --max-error-fraction 0.5",
    ):
        run_job(demo_config(), options_for(tmp_path / "list.csv", tmp_path / "out", chunk_size=100))
    assert len(parts(tmp_path / "out")) >= 1
    with pytest.raises(ConfigError, match="--chunk-size is 0"):
        run_job(demo_config(), options_for(tmp_path / "list.csv", tmp_path / "out", chunk_size=0))


def test_errors_of_the_model_end_the_job_with_their_own_words(tmp_path: Path) -> None:
    """A checkpoint that is not there."""
    config = parse_config({"labels": ["a"], "plugins": {"siglip": {"model": str(tmp_path)}}})
    with pytest.raises(ConfigError, match=r"config\.json"):
        run_job(config, options_for(SAMPLES, tmp_path / "out"))


def test_storage_is_picklable_and_small() -> None:
    """It travels with every task."""
    import pickle

    assert len(pickle.dumps(Storage((("endpoint", "http://x"),)))) < 200


def test_a_size_of_files_is_met_as_far_as_chunks_may_go() -> None:
    """By an estimate of a row's bytes, between 500 and 5,000 inputs."""
    asked = options_for("/in", "/out", file_bytes=2_000_000)
    assert asked.with_chunk_size(1000.0).chunk_size == 2000
    assert asked.with_chunk_size(10.0).chunk_size == 5000
    assert asked.with_chunk_size(100_000.0).chunk_size == 500


def test_a_ray_data_pipeline_may_use_the_same_tags(samples: list[bytes]) -> None:
    """`TagImages` for `map_batches`: a tag list beside each picture, an error beside one that is
    none.
    """
    table = pa.table({"bytes": [*samples, b"no picture"], "n": range(7)})
    tagged = ray.data.from_arrow(table).map_batches(
        TagImages,
        batch_format="pyarrow",
        batch_size=4,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    rows = sorted(tagged.take_all(), key=lambda row: row["n"])
    assert rows[6]["error"]["code"] == "unsupported_image"
    assert rows[2]["tags"][0]["label"] == "circle"
    assert [row["error"] for row in rows[:6]] == [None] * 6

"""Rows of finished jobs that are read again: to verify, update and show them."""

import dataclasses
import json
import os
from pathlib import Path

import duckdb
import pytest

from serve_app.batch.options import BatchOptions, OutputFormat
from serve_app.batch.report import write_report
from serve_app.batch.storage import url_of
from serve_app.batch.verify import verify, written_names
from tests.odd_names import ODD_NAMES, write
from tests.unit.batch.finished import FinishedJob, finished_job, updated_chunks

URIS = ["2024-01-31", "2024-01-31T10:00:00Z", "00123", "true", "1e5"]
"""Names that the JSON reader of pyarrow would take for something else."""


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_rows_are_proved_whatever_names_and_columns_look_like(
    tmp_path: Path, output_format: OutputFormat
) -> None:
    """Names like dates, columns of several types, and lines longer than a block of the reader."""
    rows = [
        {"uri": uri, "v": value}
        for uri, value in zip(URIS, [1, "x", None, [1], "y" * 2**21], strict=True)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for chunk_size in (1, 100):
        output = url_of(str(tmp_path / f"out-{chunk_size}"))
        job = finished_job(
            BatchOptions(
                url_of(f"{tmp_path}/m.jsonl"),
                output,
                output_format=output_format,
                chunk_size=chunk_size,
            )
        )
        proof = verify(job.snapshot, job.writing)
        assert (proof.rows, proof.wrong) == (len(URIS), ())


def test_partitions_of_a_folder_that_is_not_utf8_are_found_again(tmp_path: Path) -> None:
    """With the signs that partitions have."""
    write(tmp_path, "m.csv", b"uri,day\na.png,mon/tue\nb.png,1+1\n")
    output = url_of(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    job = finished_job(BatchOptions(url_of(f"{tmp_path}/m.csv"), output, partition_by="day"))
    assert written_names(job.writing) == {chunk.name for chunk in job.snapshot.chunks}


def test_an_update_keeps_text(tmp_path: Path) -> None:
    """Of rows that stay and of rows that are new, beside a folder's odd names."""
    (tmp_path / "m.csv").write_text("uri,sku\na.png,00123\nb.png,1e5\n")
    job = finished_job(
        BatchOptions(url_of(f"{tmp_path}/m.csv"), url_of(str(tmp_path / "out")), chunk_size=1)
    )
    (tmp_path / "m.csv").write_text("uri,sku\nb.png,1e5\nc.png,\n./a.png,NaN\n")
    options = dataclasses.replace(job.options, update=True)
    updated = FinishedJob(options, updated_chunks(job), job.writing)
    for chunk in updated.snapshot.chunks:
        updated.write(chunk)
    names = [f"{tmp_path}/out/{chunk.name}.parquet" for chunk in updated.snapshot.chunks]
    found = duckdb.sql(f"select uri, sku from read_parquet({names})").fetchall()
    assert sorted(found) == [("./a.png", "NaN"), ("b.png", "1e5"), ("c.png", "")]


def test_an_update_finds_odd_names_unchanged(tmp_path: Path) -> None:
    """Nothing is done again, except for a file that has changed."""
    for name in ODD_NAMES:
        write(tmp_path / "in", name)
    job = finished_job(
        BatchOptions(
            url_of(str(tmp_path / "in")), url_of(str(tmp_path / "out")), chunk_size=1, update=True
        )
    )
    assert updated_chunks(job).chunks == job.snapshot.chunks
    write(tmp_path / "in", ODD_NAMES[3], b"another")
    after = updated_chunks(job)
    assert len(set(after.chunks) - set(job.snapshot.chunks)) == 1


def test_a_report_of_rows_with_different_columns_is_written(tmp_path: Path) -> None:
    """A sample joins rows of many chunks."""
    lines = [{"uri": "a.png", "v": 1}, {"uri": "b.png", "v": {"x": 1}}]
    for at, line in enumerate(lines):
        (tmp_path / f"{at}.jsonl").write_text(json.dumps(line) + "\n")
    job = finished_job(
        BatchOptions(url_of(str(tmp_path)), url_of(str(tmp_path / "out")), chunk_size=1)
    )
    write_report(url_of(str(tmp_path / "sheet.html")), job.options, job.result)
    assert "b.png" in (tmp_path / "sheet.html").read_text()

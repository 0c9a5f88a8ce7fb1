"""Doing a part of a job again: what changed, came, went or failed; and tagging stored embeddings
again.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from serve_app.batch.options import BatchOptions
from serve_app.batch.retag import run_retag_job
from serve_app.batch.storage import url_of
from serve_app.batch.tagging_job import run_job
from serve_app.config.service import parse_config
from serve_app.demo import settings as demo_settings
from serve_app.demo.settings import demo_config
from serve_app.errors import ConfigError

pytestmark = pytest.mark.usefixtures("cluster")
SAMPLES = [
    path.read_bytes()
    for path in sorted((Path(demo_settings.__file__).parent / "samples").glob("*.jpg"))
]


def options_for(source: Path | str, output: Path, **changed: Any) -> BatchOptions:
    return BatchOptions(
        source=url_of(str(source)), output=url_of(str(output)), **({"chunk_size": 4} | changed)
    )


def rows_of(folder: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a job by the names of their pictures; none twice."""
    rows = [
        row
        for part in Path(folder.removeprefix("file://")).glob("**/part-*.parquet")
        for row in pq.read_table(part).to_pylist()
    ]
    assert len({row["uri"] for row in rows}) == len(rows)
    return {Path(row["uri"]).name: row for row in rows}


def first_labels(rows: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    return {name: row["tags"][0]["label"] if row["tags"] else None for name, row in rows.items()}


def test_only_what_changed_is_done_again(tmp_path: Path) -> None:
    """One picture replaced, one added, one deleted, one failed and mended: four inputs of twelve;
    the others keep their very rows.
    """
    source = tmp_path / "in"
    source.mkdir()
    for at in range(12):
        (source / f"{at:02d}.jpg").write_bytes(SAMPLES[at % 6] if at != 7 else b"not yet")
    options = options_for(source, tmp_path / "out")
    before = run_job(demo_config(), options)
    assert before.errors == {"unsupported_image": 1}
    old = rows_of(before.folder)
    (source / "02.jpg").write_bytes(SAMPLES[0])
    (source / "05.jpg").unlink()
    (source / "07.jpg").write_bytes(SAMPLES[4])
    (source / "99.jpg").write_bytes(SAMPLES[3])

    assert run_job(demo_config(), options).encoded == 0  # not asked
    after = run_job(demo_config(), options_for(source, tmp_path / "out", update=True))
    assert (after.folder, after.inputs, after.encoded, after.errors) == (before.folder, 12, 3, {})
    new = rows_of(after.folder)
    assert set(new) == {path.name for path in source.iterdir()}
    assert first_labels(new)["02.jpg"] == first_labels(old)["00.jpg"]
    assert first_labels(new)["99.jpg"] == first_labels(old)["03.jpg"]
    assert new["02.jpg"]["etag"] != old["02.jpg"]["etag"]
    for name in set(new) - {"02.jpg", "07.jpg", "99.jpg"}:
        assert new[name] == old[name]
    again = run_job(demo_config(), options_for(source, tmp_path / "out", update=True))
    assert (again.inputs, again.encoded) == (12, 0)
    assert run_job(demo_config(), options).encoded == 0


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_what_failed_is_tried_again(tmp_path: Path, output_format: str) -> None:
    """Without listing anything: a picture that was not there is."""
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"{at}.jpg\n" for at in range(6)))
    for at in (0, 1, 2, 4, 5):
        (tmp_path / f"{at}.jpg").write_bytes(SAMPLES[at])
    options = options_for(tmp_path / "list.csv", tmp_path / "out", output_format=output_format)
    assert run_job(demo_config(), options).errors == {"source_unavailable": 1}
    (tmp_path / "3.jpg").write_bytes(SAMPLES[3])
    again = options_for(
        tmp_path / "list.csv", tmp_path / "out", output_format=output_format, retry_errors=True
    )
    result = run_job(demo_config(), again)
    assert (result.inputs, result.encoded, result.errors) == (6, 1, {})


def test_embeddings_are_tagged_again_as_the_pictures_would_be(tmp_path: Path) -> None:
    """With other labels and another threshold; errors and passing columns stay, and no picture is
    needed.
    """
    lines = [f"{at}.jpg,{at}" for at in range(7)]
    (tmp_path / "list.csv").write_text("uri,n\n" + "\n".join(lines) + "\n")
    for at, data in enumerate(SAMPLES):
        (tmp_path / f"{at}.jpg").write_bytes(data)
    run_job(demo_config(), options_for(tmp_path / "list.csv", tmp_path / "out", embeddings=True))
    plugin = {"model": "demo", "confidence_threshold": 0.01}
    other = parse_config(
        {"labels": ["red", "a blue square", "star", "heart"], "plugins": {"siglip": plugin}}
    )
    fresh = rows_of(run_job(other, options_for(tmp_path / "list.csv", tmp_path / "fresh")).folder)
    for path in tmp_path.glob("*.jpg"):
        path.unlink()

    again = run_retag_job(other, options_for(tmp_path / "out", tmp_path / "again"))
    assert (again.inputs, again.encoded, again.errors) == (7, 7, {"source_unavailable": 1})
    rows = rows_of(again.folder)
    for name, row in rows.items():
        expected = fresh[name]
        assert {
            key: row[key] for key in ("n", "etag", "width", "error", "vocabulary_fingerprint")
        } == {
            key: expected[key] for key in ("n", "etag", "width", "error", "vocabulary_fingerprint")
        }
        found, wanted = (
            {tag["label"]: tag["confidence"] for tag in one["tags"] or ()}
            for one in (row, expected)
        )
        for label in found.keys() | wanted.keys():
            np.testing.assert_allclose(found.get(label, 0.01), wanted.get(label, 0.01), atol=1e-3)
    assert "embedding" not in rows["0.jpg"]
    assert run_retag_job(other, options_for(tmp_path / "out", tmp_path / "again")).encoded == 0


def test_embeddings_that_cannot_be_tagged_again_are_refused(tmp_path: Path, tiny: Any) -> None:
    """None stored, another checkpoint's, or several jobs in one place."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.jpg").write_bytes(SAMPLES[0])
    run_job(demo_config(), options_for(tmp_path / "in", tmp_path / "out"))
    with pytest.raises(ConfigError, match="holds no embeddings; make it with --embeddings"):
        run_retag_job(demo_config(), options_for(tmp_path / "out", tmp_path / "again"))
    made = run_job(demo_config(), options_for(tmp_path / "in", tmp_path / "out", embeddings=True))
    with pytest.raises(ConfigError, match="holds 2 jobs: demo-"):
        run_retag_job(demo_config(), options_for(tmp_path / "out", tmp_path / "again"))
    with pytest.raises(ConfigError, match=r"holds no _manifest\.json"):
        run_retag_job(demo_config(), options_for(tmp_path / "in", tmp_path / "again"))
    other = parse_config(
        {"labels": ["cat"], "plugins": {"siglip": {"model": str(tiny("siglip2"))}}}
    )
    with pytest.raises(ConfigError, match="embeddings of different checkpoints cannot be compared"):
        run_retag_job(other, options_for(made.folder.removeprefix("file://"), tmp_path / "again"))
    with pytest.raises(ConfigError, match="--update needs the images"):
        run_retag_job(
            demo_config(),
            options_for(made.folder.removeprefix("file://"), tmp_path / "again", update=True),
        )

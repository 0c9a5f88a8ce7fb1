"""A picture that kills the process it is decoded or encoded in costs its own row, and no other."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from serve_app.batch import encoding_engine, tagging_job
from serve_app.batch.options import BatchOptions
from serve_app.batch.storage import url_of
from serve_app.batch.tagging_job import run_job
from serve_app.demo import settings as demo_settings
from serve_app.demo.settings import demo_config
from tests.batch.poison import DyingEncoder, prepare_or_die
from tests.conftest import encoded

pytestmark = pytest.mark.usefixtures("cluster")
SAMPLES = sorted((Path(demo_settings.__file__).parent / "samples").glob("*.jpg"))


@pytest.mark.parametrize("where", ["decoder", "encoder"])
def test_a_picture_that_ends_its_process_costs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Found by halving, in a block of four of which the other three are tagged."""
    if where == "decoder":
        monkeypatch.setattr(encoding_engine, "prepare_block", prepare_or_die)
    else:
        monkeypatch.setattr(tagging_job, "EncoderActor", DyingEncoder)
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / f"in/{i:02d}.jpg").write_bytes(SAMPLES[i].read_bytes())
    (tmp_path / "in/01-poison.jpg").write_bytes(encoded(Image.new("RGB", (300, 300)), "JPEG"))
    result = run_job(
        demo_config(),
        BatchOptions(url_of(str(tmp_path / "in")), url_of(str(tmp_path / "out")), chunk_size=4),
    )
    assert (result.inputs, result.errors) == (4, {"invalid_image": 1})
    [part] = (tmp_path / "out").glob("*/part-*.parquet")
    rows = {Path(row["uri"]).name: row for row in pq.read_table(part).to_pylist()}
    assert (
        rows["01-poison.jpg"]["error"]["message"]
        == "The image ended the process that decoded or encoded it."
    )
    assert all(row["tags"] for name, row in rows.items() if "poison" not in name)

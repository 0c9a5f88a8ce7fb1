"""An object store that refuses a part of the requests and cuts connections costs time, and no
row.
"""

from pathlib import Path

import pytest

from serve_app.batch.options import BatchOptions
from serve_app.batch.tagging_job import run_job
from serve_app.demo import settings as demo_settings
from serve_app.demo.settings import demo_config
from tests.faulty_store import faulty_bucket

pytestmark = pytest.mark.usefixtures("cluster")
SAMPLES = [
    path.read_bytes()
    for path in sorted((Path(demo_settings.__file__).parent / "samples").glob("*.jpg"))
]


def test_refusals_and_cut_connections_become_no_errors() -> None:
    """One request in twenty refused, one in fifty cut, while a job reads, writes and proves."""
    with faulty_bucket() as (bucket, store):
        for at in range(200):
            bucket.storage.write(f"{bucket.url}/in/{at:03d}.jpg", SAMPLES[at % 6])
        store.refused = 0.05
        store.cut = 0.02
        result = run_job(
            demo_config(),
            BatchOptions(f"{bucket.url}/in", f"{bucket.url}/out", bucket.storage, chunk_size=20),
        )
        assert (result.inputs, result.encoded, result.errors) == (200, 200, {})
        assert store.counts["refused"] >= 5
        assert store.counts["cut"] >= 2

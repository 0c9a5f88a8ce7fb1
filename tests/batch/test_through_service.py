"""Jobs whose pictures a running service tags: the real graph, with queues that are soon full, and
the HTTP face alone.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from serve_app.api.app import create_app
from serve_app.batch.options import BatchOptions
from serve_app.batch.retag import run_retag_job
from serve_app.batch.service_engine import TaggingService
from serve_app.batch.through_service import run_service_job
from serve_app.config.access import Telemetry
from serve_app.config.service import ServiceConfig
from serve_app.demo import settings as demo_settings
from serve_app.demo.settings import demo_config, demo_labels
from serve_app.errors import ConfigError, ServiceError
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.tagging.options import TagOptions
from tests.batch.test_jobs import options_for, parts, rows_of
from tests.cluster.conftest import demo_config as demo_file
from tests.conftest import in_float32
from tests.http_face import served
from tests.service import Service

SAMPLES = Path(demo_settings.__file__).parent / "samples"


@pytest.fixture(scope="module")
def config() -> ServiceConfig:
    return in_float32(demo_config()).model_copy(update={"telemetry": Telemetry(request_log="off")})


@pytest.fixture(scope="module")
def face(config: ServiceConfig) -> Iterator[str]:
    """The HTTP face over a tagger in this process."""
    with served(create_app(LocalTagger(config), config)) as url:
        yield url


@pytest.fixture(scope="module")
def crowded() -> Iterator[Service]:
    """The real graph, with so short a queue that most requests of a job are refused at first."""
    scale = {"max_ongoing_requests": 4, "max_queued_requests": 4, "max_replicas": 1}
    service = Service(demo_file() | {"serving": {"preprocessor": scale}})
    try:
        yield service.wait_until_ready()
    finally:
        service.stop()


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    samples = sorted(SAMPLES.glob("*.jpg"))
    for at in range(count):
        (folder / f"{at:04d}.jpg").write_bytes(samples[at % len(samples)].read_bytes())
    return folder


def test_rows_are_what_the_local_tagger_says(
    face: str, config: ServiceConfig, tmp_path: Path
) -> None:
    """Tags, sizes and embeddings; a picture that cannot be read, an empty one and one that is none
    are rows with errors.
    """
    source = many(tmp_path / "in", 6)
    (source / "empty.jpg").write_bytes(b"")
    (source / "none.jpg").write_bytes(b"not a picture")
    (source / "cut.jpg").write_bytes((source / "0000.jpg").read_bytes()[:2000])
    result = run_service_job(
        TaggingService(face), options_for(source, tmp_path / "out", embeddings=True, chunk_size=4)
    )
    assert (result.inputs, result.encoded, sum(result.errors.values())) == (9, 9, 3)
    rows = {Path(str(row["uri"])).name: row for row in rows_of(tmp_path / "out")}
    assert {name for name, row in rows.items() if row["error"]} == {
        "empty.jpg",
        "none.jpg",
        "cut.jpg",
    }
    tagged = {name: row for name, row in rows.items() if row["error"] is None}
    images = LocalTagger(config).tag_images(
        [(source / name).read_bytes() for name in tagged], TagOptions()
    )
    for row, image in zip(tagged.values(), images, strict=True):
        assert [tag["label"] for tag in row["tags"]] == [tag.label for tag in image.tags]  # type: ignore[attr-defined]
        assert row["width"]
        assert row["height"]
        assert np.allclose(row["embedding"], image.embed, atol=1e-3)  # type: ignore[arg-type]


def test_a_second_run_sends_nothing_that_is_there(face: str, tmp_path: Path) -> None:
    """A part that was deleted is done again, and no other."""
    options = options_for(many(tmp_path / "in", 12), tmp_path / "out", chunk_size=4)
    assert run_service_job(TaggingService(face), options).encoded == 12
    parts(tmp_path / "out")[1].unlink()
    assert run_service_job(TaggingService(face), options).encoded == 4
    assert len(rows_of(tmp_path / "out")) == 12


def test_a_crowded_service_refuses_and_every_picture_is_tagged(
    crowded: Service, tmp_path: Path
) -> None:
    """Requests that are refused for now are sent again: no row has an error."""
    options = options_for(many(tmp_path / "in", 400), tmp_path / "out", chunk_size=50)
    picture = (tmp_path / "in" / "0000.jpg").read_bytes()
    statuses = set[int]()
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            statuses.add(
                httpx.post(f"{crowded.url}/v1/tag", content=picture, timeout=60).status_code
            )

    # more than the service takes and queues, however slowly the job sends its own
    asking = [threading.Thread(target=ask) for _ in range(16)]
    for thread in asking:
        thread.start()
    result = run_service_job(TaggingService(crowded.url, concurrency=64), options)
    ended.set()
    for thread in asking:
        thread.join()
    assert (result.inputs, result.errors) == (400, {})
    assert statuses & {429, 503}, "the queue was full meanwhile"


def test_a_vocabulary_that_changes_stops_the_job(crowded: Service, tmp_path: Path) -> None:
    """What was written stays; the same command then writes beside it."""
    options = options_for(many(tmp_path / "in", 1500), tmp_path / "out", chunk_size=20)

    def change() -> None:
        while not parts(tmp_path / "out"):
            time.sleep(0.05)
        crowded.deploy({**crowded.config, "labels": demo_labels()[:10]})

    changing = threading.Thread(target=change)
    changing.start()
    with pytest.raises(ServiceError, match="changed since the job began"):
        run_service_job(
            TaggingService(crowded.url, concurrency=1), options
        )  # slow, so that it is under way when the change comes
    changing.join()
    assert run_service_job(TaggingService(crowded.url), options).encoded == 1500
    assert len({part.parent for part in parts(tmp_path / "out")}) == 2


def test_what_cannot_work_is_said(face: str, tmp_path: Path, config: ServiceConfig) -> None:
    """An unknown vocabulary, a service that is not there, and embeddings that cannot be told whose
    they are.
    """
    source = many(tmp_path / "in", 2)

    def asked(**changed: object) -> BatchOptions:
        return options_for(source, tmp_path / "out", **changed)

    with pytest.raises(ConfigError, match="no vocabulary birds"):
        run_service_job(TaggingService(face), asked(vocabulary="birds"))
    with pytest.raises(ConfigError, match="--concurrency is 0"):
        run_service_job(TaggingService(face, concurrency=0), asked())
    result = run_service_job(TaggingService(face), asked(embeddings=True))
    manifest = json.loads(
        (Path(result.folder.removeprefix("file://")) / "_manifest.json").read_text()
    )
    assert manifest["service"]["model"] == rows_of(tmp_path / "out")[0]["checkpoint"]
    with pytest.raises(ConfigError, match="through a service"):
        run_retag_job(config, options_for(result.folder, tmp_path / "again"))

"""`--update` deletes the rows of inputs that are gone, and of no others."""

from pathlib import Path

import pytest

from serve_app.batch.options import BatchOptions
from serve_app.batch.snapshot import load_snapshot
from serve_app.batch.storage import url_of
from serve_app.errors import ConfigError
from tests.odd_names import make_too_deep, write
from tests.unit.batch.finished import FinishedJob, finished_job, updated_chunks


@pytest.fixture
def job(tmp_path: Path) -> FinishedJob:
    """A finished job over two images."""
    for name in ("a.png", "b.png"):
        write(tmp_path / "in", name)
    return finished_job(BatchOptions(url_of(str(tmp_path / "in")), url_of(str(tmp_path / "out"))))


def test_no_row_is_deleted_while_a_part_of_the_input_is_unreadable(
    job: FinishedJob, tmp_path: Path
) -> None:
    """The image may be in that part; nothing has been written when this is said."""
    make_too_deep(tmp_path / "in")
    (tmp_path / "in/b.png").unlink()
    before = sorted(tmp_path.joinpath("out").rglob("*"))
    with pytest.raises(
        ConfigError,
        match=r"cannot be read; its rows would be deleted, such as the row of .*b.png"
        r".*File name too long",
    ):
        updated_chunks(job)
    assert sorted(tmp_path.joinpath("out").rglob("*")) == before
    assert load_snapshot(job.options.storage, job.writing.folder) == job.snapshot


def test_an_unreadable_part_without_rows_does_not_matter(job: FinishedJob, tmp_path: Path) -> None:
    """Such as a folder that no run could read."""
    make_too_deep(tmp_path / "in")
    write(tmp_path / "in", "c.png")
    assert updated_chunks(job).inputs == 3


def test_rows_of_deleted_images_are_deleted(job: FinishedJob, tmp_path: Path) -> None:
    """If all of the input can be read."""
    (tmp_path / "in/b.png").unlink()
    assert updated_chunks(job).inputs == 1

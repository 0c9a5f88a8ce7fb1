"""What a person looks at after a job: the contact sheet, sidecars, and the summary of the
command.
"""

import re
from pathlib import Path

import pytest

from serve_app.batch.job import JobResult
from serve_app.batch.options import BatchOptions
from serve_app.batch.report import write_report
from serve_app.batch.sidecars import Sidecars, write_sidecars
from serve_app.batch.storage import url_of
from serve_app.batch.tagging_job import run_job
from serve_app.cli import main
from serve_app.demo import settings as demo_settings
from serve_app.demo.settings import demo_config
from tests.batch.test_jobs import options_for, rows_of

SAMPLES = Path(demo_settings.__file__).parent / "samples"
pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def done(
    cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BatchOptions, JobResult, Path]:
    """A finished job of the samples, a picture whose name is markup, and one that cannot be
    read.
    """
    folder = tmp_path_factory.mktemp("shown")
    source = folder / "in"
    (source / "deep").mkdir(parents=True)
    for sample in SAMPLES.glob("*.jpg"):
        (source / "deep" / sample.name).write_bytes(sample.read_bytes())
    (source / "<b>bold&.jpg").write_bytes(next(SAMPLES.glob("*.jpg")).read_bytes())
    (source / "broken.jpg").write_bytes(b"no picture")
    options = options_for(source, folder / "out", chunk_size=3)
    return options, run_job(demo_config(), options), folder


def test_the_contact_sheet_shows_pictures_tags_and_errors(
    done: tuple[BatchOptions, JobResult, Path], tmp_path: Path
) -> None:
    """Each picture as a JPEG in the page, nothing from outside it, and names escaped; a picture
    that is gone is said to be.
    """
    options, result, folder = done
    write_report(url_of(str(tmp_path / "sheet.html")), options, result)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 7
    assert "&lt;b&gt;bold&amp;.jpg" in page
    assert "<b>bold" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    for row in rows_of(folder / "out"):
        for tag in row["tags"] or ():  # type: ignore[attr-defined]
            assert tag["label"] in page
    assert "broken.jpg" in page
    assert "unsupported_image" in page
    gone = folder / "in" / "<b>bold&.jpg"
    data = gone.read_bytes()
    gone.unlink()
    write_report(url_of(str(tmp_path / "again.html")), options, result)
    gone.write_bytes(data)
    assert (tmp_path / "again.html").read_text().count("cannot be read any more") == 1


def test_sidecars_are_written_once_and_never_over_another_programs(
    done: tuple[BatchOptions, JobResult, Path], tmp_path: Path
) -> None:
    """One for each tagged picture by its path; a second run has nothing to do; a foreign one stays
    as it is.
    """
    options, result, folder = done
    name = sorted(path.name for path in (folder / "in" / "deep").iterdir())[0]
    foreign = tmp_path / "deep" / f"{name}.xmp"
    foreign.parent.mkdir()
    foreign.write_text("<x:xmpmeta>darktable</x:xmpmeta>")
    assert write_sidecars(url_of(str(tmp_path)), options, result) == Sidecars(6, 1)
    assert foreign.read_text() == "<x:xmpmeta>darktable</x:xmpmeta>"
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.xmp")}
    assert written == {
        f"{path.relative_to(folder / 'in')}.xmp"
        for path in (folder / "in").rglob("*.jpg")
        if path.name != "broken.jpg"
    }
    assert write_sidecars(url_of(str(tmp_path)), options, result) == Sidecars(0, 0)
    for row in rows_of(folder / "out"):
        if row["error"] is None:
            text = (
                tmp_path / f"{Path(str(row['uri'])).relative_to(folder / 'in')}.xmp"
            ).read_text()
            assert (
                re.findall(r"<rdf:li>(.*)</rdf:li>", text) == [tag["label"] for tag in row["tags"]]
                or "darktable" in text
            )  # type: ignore[attr-defined]


def test_the_command_tells_what_it_did(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A summary with the report and the sidecars in it."""
    given = [
        "batch",
        str(SAMPLES),
        str(tmp_path / "out"),
        "--report",
        str(tmp_path / "sheet.html"),
        "--xmp",
        str(tmp_path / "xmp"),
    ]
    assert main(given) == 0
    told = capfd.readouterr().out
    assert re.search(r"XMP sidecars +6 written", told)
    assert re.search(rf"report +{re.escape(str(tmp_path / 'sheet.html'))}", told)
    assert len(list((tmp_path / "xmp").glob("*.xmp"))) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--through-service", "http://127.0.0.1:1", "--config", "configs/demo.yaml"],
            "--config does not go with --through-service",
        ),
        (
            ["--through-service", "http://127.0.0.1:1", "--from-embeddings"],
            "--from-embeddings does not go with --through-service",
        ),
        (["--concurrency", "4"], "--concurrency needs --through-service"),
        (["--storage-option", "endpoint"], "--storage-option endpoint: write it as KEY=VALUE"),
        (["--chunk-size", "0"], "--chunk-size is 0; it must lie between 1 and 5,000"),
        (["--max-error-fraction", "2"], "--max-error-fraction is 2.0; it must lie between 0 and 1"),
        (
            ["--update", "--limit", "3"],
            "--update lists all inputs again and does not go with --limit",
        ),
        (["--vocabulary", "birds"], "birds"),
    ],
)
def test_arguments_that_cannot_work_are_told(
    arguments: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One sentence and no traceback."""
    assert main(["batch", str(SAMPLES), str(tmp_path / "out"), *arguments]) == 1
    told = capfd.readouterr().err
    assert message in told
    assert "Traceback" not in told

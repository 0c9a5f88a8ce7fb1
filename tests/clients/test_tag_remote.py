"""`siglip-serve tag --server` as its user runs it, beside the same command without a service."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve_app.cli import main
from serve_app.demo.settings import demo_labels
from tests.service import free_port

ROOT = Path(__file__).parents[2]
RED_CIRCLE = ROOT / "serve_app/demo/samples/red-circle.jpg"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The samples."""
    shutil.copytree(RED_CIRCLE.parent, tmp_path / "pictures")
    return tmp_path / "pictures"


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    """Run the command and return what it printed on both outputs."""
    assert main(["tag", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    return captured.out, captured.err


def lines_of(text: str) -> dict[str, dict[str, object]]:
    """Return JSON lines by the file's name."""
    return {Path(entry["file"]).name: entry for entry in map(json.loads, text.splitlines())}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--json",),
        ("--labels", "red,circle,blue star", "--threshold", "0", "--json"),
        ("--quality", "high"),
    ],
)
def test_the_output_is_that_of_tagging_here(
    capsys: pytest.CaptureFixture[str], server: str, folder: Path, more: tuple[str, ...]
) -> None:
    """Table and lines, in the same order and with the same numbers, a damaged picture among
    them.
    """
    (folder / "broken.jpg").write_bytes(b"no picture")
    config = folder.parent / "demo.yaml"
    plugin = {
        "model": "demo",
        "dtype": "float32",
        "confidence_threshold": 0.5,
        "max_tags": 20,
    }  # bfloat16 rounds by the batch
    config.write_text(yaml.safe_dump({"labels": demo_labels(), "plugins": {"siglip": plugin}}))
    here, _ = run(capsys, folder, *more, "--config", config, status=1)
    there, _ = run(capsys, folder, *more, "--server", server, "--concurrency", "3", status=1)
    if "--json" not in more:
        assert there == here
        return
    local = lines_of(here)
    remote = lines_of(there)
    assert list(remote) == list(local)
    assert remote.pop("broken.jpg") == local.pop("broken.jpg")
    for name, entry in local.items():
        theirs = {tag["label"]: tag["confidence"] for tag in remote[name]["tags"]}  # type: ignore[attr-defined]
        ours = {tag["label"]: tag["confidence"] for tag in entry["tags"]}  # type: ignore[attr-defined]
        assert theirs == pytest.approx(ours, rel=1e-3)  # other batches round otherwise


def test_embeddings_of_the_service_are_tagged_here(
    capsys: pytest.CaptureFixture[str], server: str, folder: Path, tmp_path: Path
) -> None:
    """`--save-embeddings` writes what `siglip-serve score` reads."""
    tagged, _ = run(
        capsys,
        folder,
        "--server",
        server,
        "--json",
        "--save-embeddings",
        tmp_path / "e.safetensors",
    )
    assert main(["score", str(tmp_path / "e.safetensors")]) == 0
    again = lines_of(capsys.readouterr().out)
    assert list(again) == list(lines_of(tagged))
    assert {tag["label"] for tag in again["red-circle.jpg"]["tags"]} == {
        "red",
        "circle",
        "red circle",
    }  # type: ignore[attr-defined]


def test_a_second_run_with_the_same_out_does_what_is_left(
    capsys: pytest.CaptureFixture[str], server: str, folder: Path, tmp_path: Path
) -> None:
    """What was tagged is not sent again; what failed, what is new and a line that was cut off
    are.
    """
    out = tmp_path / "tags.jsonl"
    good = (folder / "red-circle.jpg").read_bytes()
    (folder / "red-circle.jpg").write_bytes(b"no picture")
    printed, said = run(capsys, folder, "--server", server, "--out", out, status=1)
    assert (printed, said) == ("", f"5 tagged, 1 failed, 0 already tagged: {out}\n")
    assert "error" in lines_of(out.read_text())["red-circle.jpg"]

    (folder / "red-circle.jpg").write_bytes(good)
    (folder / "white-cross.jpg").rename(folder / "another.jpg")
    kept = out.read_text()
    out.write_text(kept[: kept.rindex("tags")])  # the last line is cut off
    for name in ("blue-square-and-yellow-star.jpg", "green-triangle-and-purple-cross.jpg"):
        (folder / name).write_bytes(b"damaged since")
    _, said = run(capsys, folder, "--server", server, "--out", out)
    assert said == f"3 tagged, 0 failed, 3 already tagged: {out}\n"
    found = lines_of(out.read_text())
    assert set(found) == {path.name for path in folder.iterdir()} | {"white-cross.jpg"}
    assert not any("error" in entry for entry in found.values())
    assert len(out.read_text().splitlines()) == len(found)

    _, said = run(capsys, folder, "--server", server, "--out", out)
    assert said == f"0 tagged, 0 failed, 6 already tagged: {out}\n"


@pytest.mark.parametrize(
    "content", ["my notes\n", '{"other": 1}\n', '{"file": "a", broken}\n', "x"]
)
def test_a_file_that_is_not_ours_is_left_alone(
    capsys: pytest.CaptureFixture[str], server: str, tmp_path: Path, content: str
) -> None:
    """`--out` writes over nothing but its own lines."""
    out = tmp_path / "notes.txt"
    out.write_text(content)
    _, said = run(capsys, RED_CIRCLE, "--server", server, "--out", out, status=1)
    assert str(out) in said
    assert out.read_text() == content


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--server", "SERVER", "--config", "x.yaml"), "--config does not go with --server"),
        (("--out", "x"), "--out needs --server"),
        (("--concurrency", "2"), "--concurrency needs --server"),
        (("--api-key-file", "x"), "--api-key-file needs --server"),
        (
            ("--server", "SERVER", "--api-key-file", "nowhere"),
            "the API key cannot be read from nowhere",
        ),
        (("--server", "SERVER", "--concurrency", "0"), "at least 1"),
        (("--server", "SERVER", "--threshold", "2"), "confidence_threshold"),
        (("--server", "SERVER/elsewhere"), "nothing at this path"),
        (("--server", "SERVER", "--out", "x", "--save-embeddings", "y"), "leave one of them out"),
        (("--server", "SERVER", "--out", "."), "cannot be read or written"),
        (("--server", "nowhere"), "such as http://127.0.0.1:8000"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    capsys: pytest.CaptureFixture[str], server: str, arguments: tuple[str, ...], said: str
) -> None:
    """On standard error, with exit status 1, also where every picture would fail alike."""
    given = [argument.replace("SERVER", server) for argument in arguments]
    printed, errors = run(capsys, RED_CIRCLE, RED_CIRCLE, *given, status=1)
    assert printed == ""
    assert said in errors
    assert errors.count("\n") == 1


def test_the_key_of_a_file_is_sent(
    capsys: pytest.CaptureFixture[str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the end of its line; it goes before the environment's."""
    from serve_app.client import exchange

    keys: list[str | None] = []
    original = exchange.Exchange._request

    def request(self: exchange.Exchange, *arguments: object) -> object:
        made = original(self, *arguments)  # type: ignore[arg-type]
        keys.append(made.headers.get("authorization"))
        return made

    monkeypatch.setattr(exchange.Exchange, "_request", request)
    monkeypatch.setenv("SIGLIP_API_KEY", "of-environment")
    (tmp_path / "key").write_text("of-file\n")
    run(capsys, RED_CIRCLE, "--server", server, "--api-key-file", tmp_path / "key")
    run(capsys, RED_CIRCLE, "--server", server)
    assert keys == ["Bearer of-file", "Bearer of-environment"]


def test_a_server_that_is_not_there_is_one_sentence_and_no_torch_is_loaded(folder: Path) -> None:
    """As a process: no traceback, exit status 1, nothing on standard output."""
    address = f"http://127.0.0.1:{free_port()}"
    program = (
        "import sys; from serve_app.cli import main; "
        f"status = main(['tag', {str(folder)!r}, '--server', {address!r}, '--json'])"
    )
    check = (
        "; assert not {'torch', 'transformers', 'ray', 'fastapi'} & set(sys.modules)"
        "; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + check], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == f"siglip-serve: Cannot connect to {address}; is the service running there?\n"
    )

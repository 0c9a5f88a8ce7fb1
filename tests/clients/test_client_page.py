"""What docs/client.md says of the client is so: its snippets run, and its tables are the code's."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.client import Client
from serve_app.client.exchange import Exchange
from serve_app.client.retries import Retries
from serve_app.commands.tag import add_arguments

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/client.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SAMPLES = ROOT / "serve_app/demo/samples"
PRINTED = (
    r"\[\('red', 0\.9\d+\)\] demo",
    r"\w+ [5-9]",
    r"(photos/\S+\.jpg (\['.+'\]|unsupported_image)\n?){7}",
)


@pytest.mark.parametrize(("snippet", "printed"), list(zip(SNIPPETS, PRINTED, strict=True)))
def test_snippets_run_as_they_stand(
    snippet: str, printed: str, server: str, tmp_path: Path
) -> None:
    """Each as a program of its own, in a folder with a photo and a folder of photos."""
    shutil.copy(SAMPLES / "red-circle.jpg", tmp_path / "photo.jpg")
    shutil.copytree(SAMPLES, tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    program = snippet.replace("http://127.0.0.1:8000", server)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(printed, done.stdout.strip()), done.stdout


def test_every_method_is_documented() -> None:
    """Each public method but those that close stands on the page."""
    for name in vars(Client):
        assert name.startswith("_") or name == "close" or f"`{name}(" in PAGE, name


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("max_tries", Retries().max_tries),
        ("deadline_s", Retries().deadline_s),
        ("max_wait_s", Retries().max_wait_s),
        ("timeout_s", Exchange("http://x").timeout_s),
    ],
)
def test_defaults_are_the_codes(name: str, default: float) -> None:
    """The page's numbers."""
    assert f"| `{name}` | {default:g} |" in PAGE


def test_every_argument_of_the_command_is_documented() -> None:
    """Each option of `siglip-serve tag` stands on the page."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for action in parser._actions:
        for name in action.option_strings:
            assert name in ("-h", "--help") or f"`{name}" in PAGE, name

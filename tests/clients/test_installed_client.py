"""The package without extras, in an empty environment: the client works with httpx and pydantic."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "serve_app/demo/samples/red-circle.jpg"
ABSENT = ("numpy", "yaml", "torch", "transformers", "PIL", "ray", "fastapi", "starlette", "rich")
PROGRAM = """
import asyncio, importlib.util, json, sys
from serve_app.client import AsyncClient, Client
from serve_app.errors import InvalidRequest

url, sample, *absent = sys.argv[1:]
with Client(url) as client:
    tagged = client.tag(sample, labels=["red", "blue"], quality="high", score="sigmoid")
    many = client.tag_many([sample, b"not an image"], max_tags=1)
    model = client.model().model
    (row,) = client.embed(["red circle"])
    try:
        client.tag(sample, max_tags=-1)
    except InvalidRequest as error:
        refused = error.code

async def run():
    async with AsyncClient(url) as client:
        files = [file async for file in client.tag_files(sample)]
        return [tag.label for tag in files[0].outcome.tags]

print(json.dumps({
    "best": tagged.tags[0].label,
    "many": [getattr(outcome, "code", "tagged") for outcome in many],
    "model": model,
    "width": len(row),
    "refused": refused,
    "async": asyncio.run(run()),
    "installed": [name for name in absent if importlib.util.find_spec(name)],
}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the package, httpx, pydantic and what those two need."""
    folder = tmp_path_factory.mktemp("environment")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "serve_app", source / "serve_app")

    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin/python", "-m", "pip", "install", "--quiet"]
    constraints = ROOT / "constraints.txt"
    subprocess.run([*install, "--constraint", constraints, "httpx", "pydantic"], check=True)
    subprocess.run([*install, "--no-deps", source], check=True)
    return venv / "bin"


def test_the_client_works_with_httpx_and_pydantic_alone(environment: Path, server: str) -> None:
    """It tags, embeds, asks and is refused, with and without asyncio; nothing else is installed."""
    done = subprocess.run(
        [environment / "python", "-c", PROGRAM, server, SAMPLE, *ABSENT],
        capture_output=True,
        text=True,
        cwd=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("width") > 0
    assert found == {
        "best": "red",
        "many": ["tagged", "unsupported_image"],
        "model": "demo",
        "refused": "invalid_request",
        "async": ["circle", "red", "red circle"],
        "installed": [],
    }


def test_the_program_says_which_extra_a_command_needs(environment: Path) -> None:
    """`--help` works without any extra; a command is one sentence and exit status 1."""
    program = environment / "siglip-serve"
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    assert "Start the service on this machine" in shown.stdout
    for command, extra in (("tag", "local"), ("serve", "serve"), ("batch", "serve,batch")):
        done = subprocess.run([program, command, "x"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"siglip-serve: {command} needs ")
        assert done.stderr.endswith(f"is not installed; install siglip-serve[{extra}].\n")

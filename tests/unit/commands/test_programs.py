"""The program: which commands it has, what its help imports, and which commands are supervised."""

import importlib
import json
import subprocess
import sys

import pytest

from serve_app import cli
from serve_app.commands import batch, batch_run, serve

HEAVY = {"torch", "ray", "transformers", "numpy", "pydantic", "yaml", "httpx", "PIL", "starlette"}


@pytest.mark.parametrize(
    ("arguments", "is_supervised"),
    [
        (["serve", "c.yaml"], True),
        (["batch", "in", "out"], True),
        (["batch", "in", "out", "--address", "auto"], False),
        (["batch", "in", "out", "--through-service", "http://127.0.0.1:8000"], False),
    ],
)
def test_only_what_starts_ray_is_supervised(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], is_supervised: bool
) -> None:
    """As programs; a function call of `main` never forks its process."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for command in (serve, batch):
        monkeypatch.setattr(command, "supervised", lambda run: 42)
    monkeypatch.setattr(serve, "_serve", lambda args: 7)
    monkeypatch.setattr(batch_run, "run_batch", lambda args: 7)
    assert cli.main(arguments, is_program=True) == (42 if is_supervised else 7)
    assert cli.main(arguments) == 7


@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - {"serve", "batch"}))
def test_no_other_command_knows_the_supervisor(name: str) -> None:
    """They start no Ray, so they run in the process of the program."""
    assert not hasattr(importlib.import_module(f"serve_app.commands.{name}"), "supervised")


def test_a_job_of_a_cluster_is_not_supervised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sets the address for its jobs and ends them by itself."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(batch_run, "run_batch", lambda args: 7)
    assert cli.main(["batch", "in", "out"], is_program=True) == 7


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its summary, which the table has, and the arguments, which its module adds."""
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert " ".join(cli.COMMANDS[name].summary.split()) in " ".join(out.split())
    assert "--verbose" in out
    assert len(out.split("options:")[0].splitlines()) > 3


def imported(program: str) -> set[str]:
    """Return the heavy packages that a new process has imported at the end of a program."""
    check = f"\nimport json\nprint(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", program + check], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    """`siglip-serve --help` needs the standard library only."""
    program = (
        "import sys\n"
        "from serve_app.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass"
    )
    assert imported(program) == set()


def test_arguments_are_parsed_without_torch_and_ray() -> None:
    """A mistake in the arguments of `tag`, `batch`, `serve` or `calibrate` is reported at once."""
    for name in ("tag", "batch", "serve", "calibrate"):
        program = (
            "import sys\n"
            "from serve_app.cli import main\n"
            "try:\n"
            f"    main([{name!r}, '--no-such-argument'])\n"
            "except SystemExit as ended:\n"
            "    assert ended.code == 2"
        )
        assert imported(program) & {"torch", "ray", "transformers"} == set()


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not reported as a package to install."""
    monkeypatch.setitem(sys.modules, "serve_app.commands.batch_run", None)
    with pytest.raises(ModuleNotFoundError, match="batch_run"):
        cli.main(["batch", "in", "out"])

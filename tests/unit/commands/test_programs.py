"""Which commands run below a supervisor: those that start Ray on this machine."""

import pytest

from serve_app import cli


@pytest.mark.parametrize(
    ("arguments", "is_supervised"),
    [
        (["serve", "c.yaml"], True),
        (["batch", "in", "out"], True),
        (["batch", "in", "out", "--address", "auto"], False),
        (["batch", "in", "out", "--through-service", "http://127.0.0.1:8000"], False),
        (["tag", "a.jpg"], False),
        (["k8s", "render", "--config", "c.yaml"], False),
    ],
)
def test_only_what_starts_ray_is_supervised(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], is_supervised: bool
) -> None:
    """As programs; a function call of `main` never forks its process."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cli, "supervised", lambda run: 42)
    monkeypatch.setattr(cli, "_run", lambda given: 7)
    assert cli.main(arguments, is_program=True) == (42 if is_supervised else 7)
    assert cli.main(arguments) == 7


def test_a_job_of_a_cluster_is_not_supervised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sets the address for its jobs and ends them by itself."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cli, "_run", lambda given: 7)
    assert cli.main(["batch", "in", "out"], is_program=True) == 7

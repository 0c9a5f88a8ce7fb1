"""The folder of a run: whose it is, who can read it, and which cluster's token is handed out.

No Ray is started.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.errors import ConfigError
from serve_app.processes import private_ray
from serve_app.processes.private_ray import (
    CLUSTER_FILE,
    TOKEN_FILE,
    PrivateFolder,
    private_environment,
    private_folder,
    token_for,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def described_by(pid: int) -> dict[str, Any]:
    """Return what a run of this process writes about itself, with another process id."""
    started_s = psutil.Process().create_time()
    return {"dashboard": "http://127.0.0.1:1", "pid": pid, "started_s": started_s}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of its own, with a path that is long for once."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(private_ray, "MAX_FOLDER_CHARACTERS", 500)
    return tmp_path


def test_only_its_user_can_enter_the_folder_and_read_the_token(base: Path) -> None:
    """Mode 0700 and 0600, whatever the umask; a token has 256 bits and no two are the same."""
    before = os.umask(0)
    try:
        with private_folder() as first, private_folder() as second:
            assert (mode(first.path), mode(first.token_file)) == (0o700, 0o600)
            tokens = {folder.token_file.read_text() for folder in (first, second)}
            assert [len(bytes.fromhex(token)) for token in tokens] == [32, 32]
            assert set(first.ports).isdisjoint(second.ports)
    finally:
        os.umask(before)
    assert not list(base.iterdir())


def test_after_an_error_the_logs_stay_and_the_token_goes(base: Path) -> None:
    """Whoever looks for the reason finds the folder."""
    kept: list[PrivateFolder] = []

    def break_down() -> None:
        with private_folder() as folder:
            kept.append(folder)
            (folder.path / "log").write_text("why")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        break_down()
    (folder,) = kept
    assert (folder.path / "log").exists()
    assert not folder.token_file.exists()


def test_the_token_of_this_users_cluster_is_found_by_its_address(base: Path) -> None:
    """Of a running one, and of no other address."""
    with private_folder() as folder:
        (folder.path / CLUSTER_FILE).write_text(json.dumps(described_by(os.getpid())))
        token = folder.token_file.read_text()
        assert token_for("http://127.0.0.1:1/") == token
        assert token_for("http://localhost:1") == token
        assert token_for("http://127.0.0.1:2") is None
        assert token_for("http://10.0.0.1:1") is None


@pytest.mark.parametrize("trick", ["link", "open", "ended", "another process has its id"])
def test_a_folder_that_another_user_could_have_made_is_not_believed(base: Path, trick: str) -> None:
    """A link, a folder that others can enter, and one whose process has ended hand out no token."""
    own = base / "elsewhere"
    own.mkdir(mode=0o700)
    (own / TOKEN_FILE).write_text("stolen")
    pid = 2**22 + 1 if trick == "ended" else os.getpid()
    described = described_by(pid)
    if trick == "another process has its id":
        described["started_s"] -= 100
    (own / CLUSTER_FILE).write_text(json.dumps(described))
    place = base / "siglip-12345678"
    if trick == "link":
        place.symlink_to(own)
    else:
        own.rename(place)
    if trick == "open":
        place.chmod(0o755)
    assert token_for("http://127.0.0.1:1") is None


def test_old_folders_of_killed_runs_are_removed(base: Path) -> None:
    """Those of ended processes, a day later; a running one's stays."""
    folders = {}
    for name, pid in (("siglip-dead", 2**22 + 1), ("siglip-running", os.getpid())):
        folders[name] = base / name
        folders[name].mkdir(mode=0o700)
        described = folders[name] / CLUSTER_FILE
        described.write_text(json.dumps(described_by(pid)))
        os.utime(described, (0, 0))
    with private_folder():
        assert not folders["siglip-dead"].exists()
        assert folders["siglip-running"].exists()


def test_a_temporary_folder_with_a_long_path_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sockets in it could not be made; /tmp is taken in its place."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / ("x" * 100)))
    with private_folder() as folder:
        assert folder.path.parent == Path("/tmp")


def test_no_usable_folder_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to set."""
    monkeypatch.setattr(private_ray, "MAX_FOLDER_CHARACTERS", 3)
    with pytest.raises(ConfigError, match="set TMPDIR"), private_folder():
        pass


def test_the_environment_is_put_back(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside, the run's token and loopback; a token and an address of another cluster are gone;
    afterwards all is as before.
    """
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("KEPT", "the user's")
    monkeypatch.setenv("REPLACED", "the user's")
    before = dict(os.environ)
    with (
        private_folder() as folder,
        private_environment(folder, {"KEPT": "ours", "ADDED": "ours"}, {"REPLACED": "ours"}),
    ):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(folder.token_file)
        assert not {"RAY_AUTH_TOKEN", "RAY_ADDRESS"} & os.environ.keys()
        assert [os.environ[name] for name in ("KEPT", "ADDED", "REPLACED")] == [
            "the user's",
            "ours",
            "ours",
        ]
    assert dict(os.environ) == before

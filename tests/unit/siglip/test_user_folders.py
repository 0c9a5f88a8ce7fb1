"""Folders of a user that has no home, as containers run under ids that no list of users holds."""

import os
import shutil
import site
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.siglip.user_folders import cache_root, expand_user

NOBODY = 54_321
"""A user id that this machine does not know."""
PROGRAM = """
from serve_app.errors import ConfigError
{body}
"""


def interpreter_for_others() -> str:
    """Return a Python of this version that other users may run; ours may be private."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin")):
        if path and all(parent.stat().st_mode & 0o001 for parent in Path(path).resolve().parents):
            return path
    pytest.skip("other users can run no Python of this version")


def run_as_nobody(body: str, folder: Path, **environment: str) -> str:
    """Run a program under an unknown user id without a home folder, and return what it prints."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    folder.chmod(0o777)
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "USER", "LOGNAME")
    }
    ran = subprocess.run(
        [interpreter_for_others(), "-B", "-c", PROGRAM.format(body=body)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env=kept
        | {
            "TMPDIR": str(folder),
            "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{site.getsitepackages()[0]}",
        }
        | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="siglip-nobody-") as made:
        yield Path(made)


def test_a_user_without_home_tags_with_the_demo(folder: Path) -> None:
    """Tag banks go to a folder of the user's own below the temporary one."""
    said = run_as_nobody(
        "from serve_app.demo.settings import demo_config\n"
        "from serve_app.pipeline.local_tagger import LocalTagger\n"
        "LocalTagger(demo_config())\n"
        "from serve_app.siglip.user_folders import cache_root\n"
        "print(cache_root())",
        folder,
        HF_HUB_OFFLINE="1",
    )
    root = Path(said.splitlines()[-1])
    assert root == folder / f"siglip-serve-{NOBODY}"
    assert list((root / "tag-banks").iterdir())
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert not (folder / "~").exists()


def test_a_download_needs_a_folder_and_says_which_variable_names_it(folder: Path) -> None:
    """The Hugging Face cache is below the home folder unless HF_HOME is set."""
    said = run_as_nobody(
        "from serve_app.siglip.hub import load_checkpoint\n"
        "try:\n    load_checkpoint('tiny/siglip2')\nexcept ConfigError as error:\n    print(error)",
        folder,
    )
    assert "no home folder" in said
    assert "HF_HOME" in said


def test_a_folder_of_another_user_is_not_used(folder: Path) -> None:
    """Whoever makes the folder first could put tag banks into it."""
    (folder / f"siglip-serve-{NOBODY}").mkdir()
    said = run_as_nobody(
        "from serve_app.siglip.user_folders import cache_root\n"
        "try:\n    cache_root()\nexcept ConfigError as error:\n    print(error)",
        folder,
    )
    assert "belongs to another user; set XDG_CACHE_HOME" in said


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_root() == Path("/somewhere/siglip-serve")


def test_an_unknown_home_folder_is_reported() -> None:
    """`~somebody` of a user that is not there."""
    with pytest.raises(ConfigError, match="write the whole path"):
        expand_user("~nobody-of-this-name/checkpoint")

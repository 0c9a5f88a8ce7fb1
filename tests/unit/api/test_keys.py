"""API keys: made, hashed, read from a file or the environment, and rotated while the service
runs.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from serve_app.api import keys as module
from serve_app.api.keys import MAX_FILE_BYTES, ApiKeys, KeyFile, make_key
from serve_app.errors import ConfigError, Unauthorized


class Clock:
    """Seconds that a test moves on."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def bearer(key: str) -> Headers:
    return Headers({"authorization": f"Bearer {key}"})


def test_what_is_kept_is_the_hash_of_what_is_shown() -> None:
    """The line holds the SHA-256 of the key and never the key; two keys differ."""
    made = make_key("team-a")
    assert made.line == f"team-a sha256:{hashlib.sha256(made.key.encode()).hexdigest()}"
    assert made.key not in made.line
    assert len(made.key) > 50
    assert make_key("team-a").key != made.key


@pytest.mark.parametrize("name", ["", "a b", "-a", "ä", "x" * 65, "a\nb"])
def test_names_that_would_break_the_file_are_refused(name: str) -> None:
    """A name is one word of plain characters."""
    with pytest.raises(ConfigError, match="letters, digits"):
        make_key(name)


def test_keys_come_from_the_environment() -> None:
    """Several with commas or semicolons between, as `env` asks."""
    a = make_key("a")
    b = make_key("b")
    for separator in (",", ";", "\n"):
        keys = ApiKeys("env", {"SIGLIP_API_KEYS": separator.join([a.line, b.line])})
        assert (keys.name_of(bearer(a.key)), keys.name_of(bearer(b.key))) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "part"),
    [("", "holds no key"), ("# none\n\n", "holds no key"), ("a sk-siglip-plain", "line 1")],
)
def test_a_service_that_asks_for_keys_does_not_start_without_any(
    tmp_path: Path, text: str, part: str
) -> None:
    """An empty file, or a key itself where its hash belongs, is refused, and the key is not
    repeated.
    """
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part) as refused:
        ApiKeys(str(path))
    assert "sk-siglip-plain" not in str(refused.value)
    with pytest.raises(ConfigError, match="does not exist"):
        ApiKeys(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="SIGLIP_API_KEYS holds no key"):
        ApiKeys("env", {})


def watched(path: Path, clock: Clock) -> tuple[ApiKeys, KeyFile]:
    """Return the keys of a file that is read again only when a test says so."""
    keys = ApiKeys(str(path), clock=clock, watch=False)
    assert keys.file is not None
    return keys, keys.file


def test_a_changed_file_is_taken_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New keys are valid after the next check and old ones are not; a broken file leaves the last
    keys valid.
    """
    path = tmp_path / "keys"
    old = make_key("old")
    new = make_key("new")
    path.write_text(old.line)
    keys, file = watched(path, Clock())
    path.write_text(f"{old.line}\n{new.line}\n")
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(new.key))  # not checked yet
    file.check()
    assert (keys.name_of(bearer(new.key)), keys.name_of(bearer(old.key))) == ("new", "old")
    path.write_text(new.line)
    file.check()
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(old.key))
    path.write_text("rubbish")
    file.check()
    assert keys.name_of(bearer(new.key)) == "new"
    assert "the API keys stay as they were" in caplog.text


@pytest.mark.parametrize("how", ["deleted", "emptied", "commented out"])
def test_a_file_without_keys_revokes_all_of_them_after_thirty_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Until then the keys stay valid, as while a file is replaced; then every request is refused,
    and new keys are taken.
    """
    path = tmp_path / "keys"
    clock = Clock()
    made = make_key("team")
    path.write_text(made.line)
    keys, file = watched(path, clock)
    path.unlink() if how == "deleted" else path.write_text(
        "" if how == "emptied" else f"# {made.line}"
    )
    for now_s in (2.0, 31.9):
        clock.now_s = now_s
        file.check()
        assert keys.name_of(bearer(made.key)) == "team"
    clock.now_s = 32.0
    file.check()
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(made.key))
    assert caplog.text.count("all API keys are revoked, and every request is answered 401") == 1
    path.write_text(made.line)
    file.check()
    assert keys.name_of(bearer(made.key)) == "team"


def test_a_file_that_is_replaced_in_time_revokes_nothing(tmp_path: Path) -> None:
    """The thirty seconds begin again whenever the file is there."""
    path = tmp_path / "keys"
    clock = Clock()
    made = make_key("team")
    path.write_text(made.line)
    keys, file = watched(path, clock)
    for start_s in (0.0, 100.0):
        path.unlink()
        for now_s in (start_s, start_s + 29):
            clock.now_s = now_s
            file.check()
        path.write_text(made.line)
        file.check()
        assert keys.name_of(bearer(made.key)) == "team"


def test_a_pipe_in_place_of_the_file_hangs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused at the start, and later leaves the last keys valid."""
    path = tmp_path / "keys"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a regular file"):
        ApiKeys(str(path))
    path.unlink()
    made = make_key("team")
    path.write_text(made.line)
    keys, file = watched(path, Clock())
    path.unlink()
    os.mkfifo(path)
    file.check()
    assert keys.name_of(bearer(made.key)) == "team"
    assert "is not a regular file" in caplog.text


def test_a_file_of_more_than_a_mebibyte_is_refused(tmp_path: Path) -> None:
    """It is no file of keys, and might never end."""
    (tmp_path / "keys").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="more than 1,048,576 bytes"):
        ApiKeys(str(tmp_path / "keys"))


def test_a_file_that_hangs_stops_no_request_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a network share whose server is gone: requests are answered at once, and one thread
    waits.
    """
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "CHECK_EVERY_S", 0.01)
    path = tmp_path / "keys"
    hanging = threading.Event()
    back = threading.Event()
    made = make_key("team")
    new = make_key("new")
    path.write_text(made.line)
    read = module.read_text

    def hang(path: Path, max_bytes: int) -> str:
        hanging.set()
        back.wait(10)
        return read(path, max_bytes)

    keys = ApiKeys(str(path))
    monkeypatch.setattr(module, "read_text", hang)
    assert hanging.wait(5)
    began_s = time.monotonic()
    assert keys.name_of(bearer(made.key)) == "team"
    assert time.monotonic() - began_s < 0.5
    wait_until(lambda: "it has not been possible to read the file" in caplog.text)
    assert sum(thread.name == "api-keys-check" for thread in threading.enumerate()) == 1
    path.write_text(new.line)
    back.set()
    wait_until(lambda: new.line.split()[0] in keys.digests.values())
    back.clear()
    with pytest.raises(ConfigError, match=r"cannot be read within 0\.05 s"):
        ApiKeys(str(path))
    back.set()


def wait_until(done: Callable[[], bool]) -> None:
    """Wait at most five seconds for something to come true."""
    ends_s = time.monotonic() + 5
    while not done():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def test_a_file_that_could_not_be_read_for_a_moment_is_read_at_the_next_check(
    tmp_path: Path,
) -> None:
    """Else a key that was taken away would stay valid until the file changes once more."""
    path = tmp_path / "keys"
    old = make_key("old")
    new = make_key("new")
    path.write_text(old.line)
    keys, file = watched(path, Clock())
    path.write_text(new.line)
    aside = path.rename(tmp_path / "aside")
    file.check()
    assert keys.name_of(bearer(old.key)) == "old"
    aside.rename(path)
    file.check()
    assert keys.name_of(bearer(new.key)) == "new"
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(old.key))


def test_a_mounted_secret_that_is_swapped_by_a_link_is_taken(tmp_path: Path) -> None:
    """As Kubernetes does: the name stays, what it points to changes."""
    a = make_key("a")
    b = make_key("b")
    for made in (a, b):
        (tmp_path / made.line.split()[0]).write_text(made.line)
    link = tmp_path / "keys"
    link.symlink_to(tmp_path / "a")
    keys, file = watched(link, Clock())
    os.replace(_link_to(tmp_path / "b", tmp_path / "next"), link)
    file.check()
    assert keys.name_of(bearer(b.key)) == "b"
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(a.key))


def _link_to(target: Path, at: Path) -> Path:
    at.symlink_to(target)
    return at

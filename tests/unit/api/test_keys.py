"""API keys: made, hashed, read from a file or the environment, and rotated while the service runs."""

import hashlib
import os
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from serve_app.api.keys import ApiKeys, make_key
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
    a, b = make_key("a"), make_key("b")
    for separator in (",", ";", "\n"):
        keys = ApiKeys("env", {"SIGLIP_API_KEYS": separator.join([a.line, b.line])})
        assert (keys.name_of(bearer(a.key)), keys.name_of(bearer(b.key))) == ("a", "b")


@pytest.mark.parametrize(("text", "part"), [("", "holds no key"), ("# none\n\n", "holds no key"), ("a sk-siglip-plain", "line 1")])
def test_a_service_that_asks_for_keys_does_not_start_without_any(tmp_path: Path, text: str, part: str) -> None:
    """An empty file, or a key itself where its hash belongs, is refused, and the key is not repeated."""
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part) as refused:
        ApiKeys(str(path))
    assert "sk-siglip-plain" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        ApiKeys(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="SIGLIP_API_KEYS holds no key"):
        ApiKeys("env", {})


def test_a_changed_file_is_taken_and_a_broken_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """New keys hold within seconds and the old ones no more; what cannot be read leaves the last ones."""
    path, clock = tmp_path / "keys", Clock()
    old, new = make_key("old"), make_key("new")
    path.write_text(old.line)
    keys = ApiKeys(str(path), clock=clock)
    path.write_text(f"{old.line}\n{new.line}\n")
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(new.key))  # not looked at again yet
    clock.now_s += 3
    assert (keys.name_of(bearer(new.key)), keys.name_of(bearer(old.key))) == ("new", "old")
    path.write_text(new.line)
    clock.now_s += 3
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(old.key))
    for broken in ("rubbish", None):
        path.write_text(broken) if broken else path.unlink()
        clock.now_s += 3
        assert keys.name_of(bearer(new.key)) == "new"
    assert "the API keys stay as they were" in caplog.text


def test_a_file_that_could_not_be_read_for_a_moment_is_read_at_the_next_look(tmp_path: Path) -> None:
    """Else a key that was taken away would stay valid until the file changes once more."""
    path, clock = tmp_path / "keys", Clock()
    old, new = make_key("old"), make_key("new")
    path.write_text(old.line)
    keys = ApiKeys(str(path), clock=clock)
    path.write_text(new.line)
    aside = path.rename(tmp_path / "aside")
    clock.now_s += 3
    assert keys.name_of(bearer(old.key)) == "old"
    aside.rename(path)
    clock.now_s += 3
    assert keys.name_of(bearer(new.key)) == "new"
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(old.key))


def test_a_mounted_secret_that_is_swapped_by_a_link_is_taken(tmp_path: Path) -> None:
    """As Kubernetes does: the name stays, what it points to changes."""
    clock, a, b = Clock(), make_key("a"), make_key("b")
    for made in (a, b):
        (tmp_path / made.line.split()[0]).write_text(made.line)
    link = tmp_path / "keys"
    link.symlink_to(tmp_path / "a")
    keys = ApiKeys(str(link), clock=clock)
    os.replace(_link_to(tmp_path / "b", tmp_path / "next"), link)
    clock.now_s += 3
    assert keys.name_of(bearer(b.key)) == "b"
    with pytest.raises(Unauthorized):
        keys.name_of(bearer(a.key))


def _link_to(target: Path, at: Path) -> Path:
    at.symlink_to(target)
    return at

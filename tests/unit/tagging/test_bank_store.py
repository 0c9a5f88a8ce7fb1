"""Tag banks on disk and in a real S3 endpoint: found again, built from known rows, never half
written, never fatal.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from safetensors.numpy import load_file, save_file

from serve_app.errors import ConfigError
from serve_app.tagging import bank_store
from serve_app.tagging.bank_store import BankStore
from serve_app.tagging.tag_bank import TagBank, row_keys
from serve_app.tagging.vocabulary import Tag, TagVocabulary

ENCODER = "checkpoint-float32-none"


def vocabulary_of(*labels: str) -> TagVocabulary:
    tags = tuple(Tag(label=label, aliases=(f"{label} too",)) for label in labels)
    return TagVocabulary(
        tags=tags, prompt_templates=("a {label}",), background_prompts=("a photo.",)
    )


def bank_of(*labels: str, seed: int = 0) -> TagBank:
    own = vocabulary_of(*labels)
    return TagBank(
        own,
        np.random.default_rng(seed).normal(size=(len(row_keys(own)), 8)).astype(np.float32),
        ENCODER,
    )


def test_a_bank_is_found_again_memory_mapped(tmp_path: Path) -> None:
    """The same rows, on the disk's own pages, for this vocabulary and encoder only."""
    store = BankStore(str(tmp_path))
    bank = bank_of("cat", "dog")
    assert store.load(bank.vocabulary, ENCODER) is None
    saved = store.save(bank)
    found = store.load(bank.vocabulary, ENCODER)
    for one in (saved, found):
        assert one is not None
        assert isinstance(one.text_embeds, np.memmap)
        assert not one.text_embeds.flags.writeable
        np.testing.assert_array_equal(one.text_embeds, bank.text_embeds)
        assert one.fingerprint == bank.fingerprint
    assert store.load(bank.vocabulary, "another") is None
    assert store.load(vocabulary_of("cat"), ENCODER) is None
    assert load_file(tmp_path / f"{bank.fingerprint}.tagbank.safetensors")["text_embeds"].shape == (
        5,
        8,
    )


def test_rows_of_other_banks_are_found(tmp_path: Path) -> None:
    """All but the new label's rows; none for another encoder or other templates."""
    store = BankStore(str(tmp_path))
    bank = bank_of("cat", "dog")
    store.save(bank)
    wanted = row_keys(vocabulary_of("cat", "bird"))
    rows = store.rows(wanted, ENCODER)
    assert set(rows) == {(("a {label}",), "cat"), (("a {label}",), "cat too"), ((), "a photo.")}
    np.testing.assert_array_equal(rows[("a {label}",), "cat too"], bank.text_embeds[2])
    assert store.rows(wanted, "another") == {}
    assert store.rows([(("the {label}",), "cat")], ENCODER) == {}


@pytest.mark.parametrize("damage", ["cut", "foreign", "text", "empty", "renamed"])
def test_a_damaged_file_is_not_used(tmp_path: Path, damage: str) -> None:
    """Truncated, another kind of file, or under another's name: as if there were none, and written
    anew.
    """
    store = BankStore(str(tmp_path))
    bank = bank_of("cat", "dog")
    path = tmp_path / f"{bank.fingerprint}.tagbank.safetensors"
    store.save(bank_of("cat", "bird") if damage == "renamed" else bank)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-4])
        case "foreign":
            save_file({"x": np.zeros(3)}, path)
        case "text":
            path.write_text("hello, this is no safetensors file")
        case "empty":
            path.write_bytes(b"")
        case _:
            next(tmp_path.glob("*.safetensors")).rename(path)
    assert store.load(bank.vocabulary, ENCODER) is None
    store.rows(row_keys(bank.vocabulary), ENCODER)
    store.save(bank)
    found = store.load(bank.vocabulary, ENCODER)
    assert found is not None
    np.testing.assert_array_equal(found.text_embeds, bank.text_embeds)


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": "5"},
        {"names": '[["a"]]'},
        {"names": "[1]"},
        {"background_prompts": "{}"},
        {"prompt_templates": "x"},
        {},
    ],
)
def test_a_foreign_bank_stops_nobody(tmp_path: Path, metadata: dict[str, str]) -> None:
    """A file of our name with other things in it is skipped where rows are looked for, and others
    are found.
    """
    good = {
        "encoder": ENCODER,
        "names": '["a"]',
        "background_prompts": "[]",
        "prompt_templates": '["a {label}"]',
    }
    save_file(
        {"text_embeds": np.ones((1, 8), np.float32)},
        tmp_path / "x.tagbank.safetensors",
        good | metadata if metadata else {},
    )
    store = BankStore(str(tmp_path))
    bank = bank_of("cat")
    store.save(bank)
    assert len(store.rows([*row_keys(bank.vocabulary), (("a {label}",), "b")], ENCODER)) == 3


def test_rows_that_are_not_finite_are_not_used(tmp_path: Path) -> None:
    """NaN would make every score of the vocabulary NaN."""
    bank = bank_of("cat")
    bank.text_embeds[1, 1] = np.nan
    store = BankStore(str(tmp_path))
    store.save(bank)
    assert store.load(bank.vocabulary, ENCODER) is None


def test_a_folder_that_cannot_be_written_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The bank is used from memory, and the log says why.

    A file stands where the folder should be: root writes anywhere else.
    """
    (tmp_path / "file").write_text("")
    bank = bank_of("cat")
    assert BankStore(str(tmp_path / "file" / "banks")).save(bank) is bank
    assert "could not be stored" in caplog.text


def test_nothing_half_written_stays_and_others_can_read(tmp_path: Path) -> None:
    """One file with the usual rights, no temporary ones."""
    BankStore(str(tmp_path)).save(bank_of("cat"))
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_banks_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of two: the one not used for longest goes."""
    monkeypatch.setattr(bank_store, "MAX_BANKS", 2)
    store = BankStore(str(tmp_path))
    first = bank_of("cat")
    second = bank_of("dog")
    store.save(first)
    store.save(second)
    for path, age in ((first, 100), (second, 200)):
        file = tmp_path / f"{path.fingerprint}.tagbank.safetensors"
        bank_store.os.utime(file, (file.stat().st_mtime - age,) * 2)
    assert store.load(second.vocabulary, ENCODER) is not None  # used now
    store.save(bank_of("bird"))
    assert store.load(first.vocabulary, ENCODER) is None
    assert store.load(second.vocabulary, ENCODER) is not None


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 endpoint on this machine, as a URI."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for key, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(key, value)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(
        Bucket="banks"
    )
    yield f"s3://banks/siglip?scheme=http&region=us-east-1&endpoint_override={quote(f'{host}:{port}')}"
    server.stop()


def test_a_second_node_finds_what_the_first_has_built(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written to S3 by one machine, read by another whose disk is empty; without the endpoint the
    copy on disk serves on.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    bank = bank_of("cat", "dog")
    BankStore(bucket).save(bank)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    other = BankStore(bucket)
    found = other.load(bank.vocabulary, ENCODER)
    assert found is not None
    np.testing.assert_array_equal(found.text_embeds, bank.text_embeds)
    assert other.load(vocabulary_of("bird"), ENCODER) is None


def test_an_object_store_that_is_not_there_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing listens: the bank is kept on disk and the log says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = BankStore(
        "s3://a:b@banks/x?scheme=http&region=us-east-1&endpoint_override=127.0.0.1%3A9"
    )
    bank = bank_of("cat")
    assert isinstance(store.save(bank).text_embeds, np.memmap)
    assert "object store" in caplog.text


def test_a_uri_that_cannot_be_read_is_refused() -> None:
    """With the reason, and without what may be a secret in its query."""
    with pytest.raises(ConfigError, match="tag_banks: nonsense://x") as caught:
        BankStore("nonsense://x?secret_key=hunter2")
    assert "hunter2" not in str(caught.value)

"""Paths and addresses as people write them, and what they become."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.batch.urls import (
    file_url,
    folder_of,
    joined,
    local_path,
    name_of,
    shown_url,
    url_beside,
    url_of,
)
from serve_app.errors import ConfigError
from tests.odd_names import write


def test_dots_are_resolved_as_the_system_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a link to a folder, where `..` is the parent of the link's target."""
    (tmp_path / "a/b/in").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/link").symlink_to(tmp_path / "a/b/in")
    monkeypatch.chdir(tmp_path / "c")
    for written, meant in {
        "../a": "a",
        "./x//y/.": "c/x/y",
        "..": "",
        "../c/../out": "out",
        "link/../z.jpg": "a/b/z.jpg",
        "link/z.jpg": "c/link/z.jpg",
        f"{tmp_path}/c/link/..": "a/b",
        f"file://{tmp_path}/c/../a": "a",
        "new..name/...": "c/new..name/...",
    }.items():
        assert url_of(written) == f"file://{tmp_path}/{meant}".rstrip("/"), written


def test_in_a_bucket_dots_do_not_lead_above_its_root() -> None:
    """As RFC 3986 has it; empty parts of a key stay."""
    manifest = "s3://bucket/lists/today/m.csv"
    for written, meant in {
        "a.jpg": "lists/today/a.jpg",
        "./a.jpg": "lists/today/a.jpg",
        "../a.jpg": "lists/a.jpg",
        "../../../../a.jpg": "a.jpg",
        "x/../y//a.jpg": "lists/today/y//a.jpg",
        "s3://bucket/p/../q/./a.jpg": "q/a.jpg",
        "..a/b..jpg": "lists/today/..a/b..jpg",
    }.items():
        assert url_beside(manifest, written) == f"s3://bucket/{meant}", written
    assert url_beside(manifest, "gs://other/a.jpg") == "gs://other/a.jpg"
    assert url_beside(manifest, "/data/./a.jpg") == "file:///data/a.jpg"


def test_addresses_are_left_as_they_are_but_for_their_scheme() -> None:
    """A path of the web may mean anything; what has no readable scheme is refused."""
    assert url_of("HTTPS://host/a/../b/?x=1#y") == "https://host/a/../b/?x=1#y"
    assert url_of("S3://bucket/a/") == "s3://bucket/a"
    assert url_of("/photos/odd://name") == "file:///photos/odd:/name"
    with pytest.raises(
        ConfigError, match=r"ftp://h/x: ftp:// cannot be read; use a path or one of file://, s3://"
    ):
        url_of("ftp://h/x?secret")


def test_a_file_url_may_have_escapes(tmp_path: Path) -> None:
    """As `Path.as_uri` writes them; a file whose own name has a percent sign goes first."""
    for name in ("a b.jpg", "c%20d.jpg"):
        write(tmp_path, name)
    assert url_of((tmp_path / "a b.jpg").as_uri()) == f"file://{tmp_path}/a b.jpg"
    assert url_of(f"file://{tmp_path}/c%20d.jpg") == f"file://{tmp_path}/c%20d.jpg"
    assert url_of(f"file://{tmp_path}/gone%20.jpg") == f"file://{tmp_path}/gone%20.jpg"


def test_a_user_who_is_not_there_is_part_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~nobody-here` has no home to lead to."""
    monkeypatch.chdir(tmp_path)
    assert url_of("~nobody-here/a") == f"file://{tmp_path}/~nobody-here/a"


@given(
    st.lists(
        st.binary(min_size=1, max_size=9).filter(
            lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")
        )
    )
)
def test_every_path_of_the_system_has_a_url_that_can_be_stored(names: list[bytes]) -> None:
    """As Unicode, and back to the same bytes; as shown it is printable text."""
    path = os.fsdecode(b"/" + b"/".join(names))
    url = file_url(path)
    url.encode()
    shown_url(url).encode()
    assert local_path(url) == path
    assert url_of(url) == url
    assert local_path(joined(url, "x")) == path.rstrip("/") + "/x"
    if names:
        assert local_path(folder_of(url)) == path.rpartition("/")[0] or len(names) == 1
        assert name_of(url) == shown_url(url).rpartition("/")[2]


@given(st.lists(st.sampled_from(["..", ".", "a", "link", ""]), max_size=8))
def test_a_row_names_what_the_system_would_open(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    """For any mix of dots, links and slashes that leads to a file."""
    root = tmp_path_factory.mktemp("tree")
    (root / "a/a/a").mkdir(parents=True)
    (root / "link").symlink_to("a/a")
    written = "/".join([*parts, "f.jpg"]).lstrip("/")
    opened = os.path.join(root, "a", written)
    folder = os.path.realpath(os.path.dirname(opened))
    if os.path.isdir(os.path.dirname(opened)) and folder.startswith(os.path.realpath(root)):
        write(Path(folder), "f.jpg", b"this one")
        found = local_path(url_beside(file_url(f"{root}/a/m.csv"), written))
        assert os.path.samefile(found, opened)
        assert "/../" not in found
        assert "/./" not in found

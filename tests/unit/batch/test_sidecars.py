"""Where sidecars go, whatever a URI says, and what stands in them."""

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from serve_app.batch.options import BatchOptions
from serve_app.batch.sidecars import Sidecars, sidecar_path, write_sidecars
from serve_app.batch.storage import url_of
from serve_app.batch.xmp import NAMESPACES, xmp_packet
from serve_app.errors import ConfigError
from tests.object_store import bucket
from tests.odd_names import ODD_NAMES, write
from tests.unit.batch.finished import finished_job


@pytest.mark.parametrize(
    ("url", "base", "path"),
    [
        ("file:///photos/2024/a.jpg", "file:///photos", "2024/a.jpg.xmp"),
        ("file:///photos/2024/a.jpg", "file:///photos/", "2024/a.jpg.xmp"),
        ("file:///photos2/a.jpg", "file:///photos", "photos2/a.jpg.xmp"),
        ("s3://bucket/in/a.jpg", "s3://bucket/in", "a.jpg.xmp"),
        ("s3://other/a.jpg", "s3://bucket/in", "other/a.jpg.xmp"),
        ("s3://bucket/in/../../etc/passwd", "s3://bucket/in", "etc/passwd.xmp"),
        ("https://host:8080/a\\b\n.jpg", "file:///photos", "host_8080/a_b_.jpg.xmp"),
        ("file:///..", "file:///photos", "picture.xmp"),
        ("file-bytes:///photos/caf%E9/100%25.jpg", "file-bytes:///photos/caf%E9", "100%.jpg.xmp"),
    ],
)
def test_paths_stay_below_the_prefix(url: str, base: str, path: str) -> None:
    """Below INPUT its own path, elsewhere host and path, and never a step up."""
    assert sidecar_path(url, base) == path


@pytest.mark.parametrize("folder", ["file:///photos", "s3://bucket/in"])
@pytest.mark.parametrize(
    "name",
    [
        "a#b.jpg",
        "10:30.jpg",
        "what?.jpg",
        "100%25.jpg",
        "a b+c.jpg",
        "été.jpg",
        "back\\slash.jpg",
        "-rf.jpg",
        "[1]*.jpg",
    ],
)
def test_a_sidecar_has_the_name_of_its_image(folder: str, name: str) -> None:
    """Whatever signs are in it, so that a photo program finds it beside the image."""
    assert sidecar_path(f"{folder}/2024:10/{name}", folder) == f"2024:10/{name}.xmp"


def test_members_have_sidecars_below_the_name_of_their_tar_file() -> None:
    """The path within the tar file cannot lead out."""
    assert (
        sidecar_path("s3://bucket/in/a#b.tar", "s3://bucket/in", "./dir/x#y.jpg")
        == "a#b.tar/dir/x#y.jpg.xmp"
    )
    assert (
        sidecar_path("s3://bucket/in/a.tar", "s3://bucket/in", "../../x.jpg") == "a.tar/x.jpg.xmp"
    )


def test_addresses_that_differ_by_their_query_have_sidecars_of_their_own() -> None:
    """Their query does not stand in the name: it may hold a signature."""
    paths = {
        sidecar_path(f"https://host/a.jpg?id={at}&sig=secret", "file:///photos") for at in range(3)
    }
    assert len(paths) == 3
    assert not any("secret" in path for path in paths)


def test_sidecars_lie_beside_images_of_any_name(tmp_path: Path) -> None:
    """The name may be not UTF-8; a name that is too long for a sidecar affects only that one."""
    folder = tmp_path / "photos"
    too_long = b"x" * 250 + b".jpg"
    for name in (*ODD_NAMES, too_long):
        write(folder, name)
    job = finished_job(BatchOptions(url_of(str(folder)), url_of(str(tmp_path / "out"))))
    assert write_sidecars(job.options.source, job.options, job.result) == Sidecars(
        len(ODD_NAMES), 0, 1
    )
    written = {name for name in os.listdir(os.fsencode(folder)) if name.endswith(b".xmp")}
    assert written == {name + b".xmp" for name in ODD_NAMES}


@pytest.mark.parametrize("chunk_size", [1, 10])
def test_a_chunk_without_a_sidecar_ends_no_job(tmp_path: Path, chunk_size: int) -> None:
    """Nor does it when the job runs again, and all other chunks are done."""
    folder = tmp_path / "photos"
    for name in (b"a.jpg", b"x" * 248 + b".jpg", b"z.jpg"):
        write(folder, name)
    job = finished_job(
        BatchOptions(url_of(str(folder)), url_of(str(tmp_path / "out")), chunk_size=chunk_size)
    )
    assert write_sidecars(job.options.source, job.options, job.result) == Sidecars(2, 0, 1)
    assert sorted(path.name for path in folder.glob("*.xmp")) == ["a.jpg.xmp", "z.jpg.xmp"]
    again = write_sidecars(job.options.source, job.options, job.result)
    assert again.failed == 1


def test_a_job_without_any_sidecar_is_an_error(tmp_path: Path) -> None:
    """It says why the first one cannot be written."""
    folder = tmp_path / "photos"
    write(folder, b"x" * 248 + b".jpg")
    job = finished_job(BatchOptions(url_of(str(folder)), url_of(str(tmp_path / "out"))))
    with pytest.raises(
        ConfigError, match=r"Not one sidecar can be written\. The first: .*File name too long"
    ):
        write_sidecars(job.options.source, job.options, job.result)


def test_sidecars_of_a_manifest_lie_beside_its_images(tmp_path: Path) -> None:
    """Whether a row names them by a relative or by a whole path."""
    for name in ("in/a.jpg", "in/sub/b#1.jpg", "in/c.jpg"):
        write(tmp_path, name)
    write(tmp_path, "in/m.csv", f"uri\n./a.jpg\n../in/sub/b#1.jpg\n{tmp_path}/in/c.jpg\n".encode())
    job = finished_job(BatchOptions(url_of(f"{tmp_path}/in/m.csv"), url_of(str(tmp_path / "out"))))
    assert write_sidecars(url_of(str(tmp_path / "in")), job.options, job.result) == Sidecars(3)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.xmp")} == {
        "in/a.jpg.xmp",
        "in/sub/b#1.jpg.xmp",
        "in/c.jpg.xmp",
    }


def test_sidecars_lie_beside_the_objects_of_a_bucket() -> None:
    """Under the same key."""
    keys = [
        "a#b.jpg",
        "10:30.jpg",
        "what?.jpg",
        "100%25.jpg",
        "a b+c.jpg",
        "back\\slash.jpg",
        "é/1.jpg",
    ]
    with bucket() as s3:
        for key in keys:
            s3.storage.write(f"{s3.url}/in/{key}", b"x")
        job = finished_job(BatchOptions(f"{s3.url}/in", f"{s3.url}/out", storage=s3.storage))
        assert write_sidecars(job.options.source, job.options, job.result) == Sidecars(len(keys))
        found = {one.url for one in s3.storage.list(f"{s3.url}/in") if one.url.endswith(".xmp")}
    assert found == {f"{s3.url}/in/{key}.xmp" for key in keys}


def test_a_packet_holds_the_labels_in_order() -> None:
    """As `dc:subject`, with what XML cannot hold left out and what it must escape escaped."""
    labels = ["a cat & a dog", "<script>", "été", "be\x07ll"]
    packet = xmp_packet(labels)
    assert packet.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode())
    root = ElementTree.fromstring(packet.split(b"\n", 1)[1].rsplit(b"<?xpacket", 1)[0])
    found = [entry.text for entry in root.findall(".//dc:subject/rdf:Bag/rdf:li", NAMESPACES)]
    assert found == ["a cat & a dog", "<script>", "été", "bell"]

"""Where sidecars go, whatever a URI says, and what stands in them."""

from xml.etree import ElementTree

import pytest

from serve_app.batch.sidecars import NAMESPACES, sidecar_path, xmp_packet


@pytest.mark.parametrize(
    ("uri", "source", "path"),
    [
        ("/photos/2024/a.jpg", "/photos", "2024/a.jpg.xmp"),
        ("/photos/2024/a.jpg", "/photos/", "2024/a.jpg.xmp"),
        ("/photos2/a.jpg", "/photos", "photos2/a.jpg.xmp"),
        ("s3://bucket/in/a.jpg", "s3://bucket/in", "a.jpg.xmp"),
        ("s3://other/a.jpg", "s3://bucket/in", "other/a.jpg.xmp"),
        ("s3://bucket/in/shard.tar#dir/a.jpg", "s3://bucket/in", "shard.tar/dir/a.jpg.xmp"),
        ("s3://bucket/in/../../etc/passwd", "s3://bucket/in", "etc/passwd.xmp"),
        ("https://host:8080/a\\b\n.jpg", "/photos", "host_8080/a_b_.jpg.xmp"),
        ("..", "/photos", "picture.xmp"),
    ],
)
def test_paths_stay_below_the_prefix(uri: str, source: str, path: str) -> None:
    """Below INPUT its own path, elsewhere host and path, and never a step up."""
    assert sidecar_path(uri, source) == path


def test_addresses_that_differ_by_their_query_have_sidecars_of_their_own() -> None:
    """Their query does not stand in the name: it may hold a signature."""
    paths = {sidecar_path(f"https://host/a.jpg?id={at}&sig=secret", "/photos") for at in range(3)}
    assert len(paths) == 3
    assert not any("secret" in path for path in paths)


def test_a_packet_holds_the_labels_in_order() -> None:
    """As `dc:subject`, with what XML cannot hold left out and what it must escape escaped."""
    labels = ["a cat & a dog", "<script>", "été", "be\x07ll"]
    packet = xmp_packet(labels)
    assert packet.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode())
    root = ElementTree.fromstring(packet.split(b"\n", 1)[1].rsplit(b"<?xpacket", 1)[0])
    found = [entry.text for entry in root.findall(".//dc:subject/rdf:Bag/rdf:li", NAMESPACES)]
    assert found == ["a cat & a dog", "<script>", "été", "bell"]

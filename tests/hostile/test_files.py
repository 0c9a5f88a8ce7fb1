"""Files and responses that are hostile or broken: refused in one sentence, within bounds, and never
the end of a whole job.
"""

import asyncio
import contextlib
import gzip
import io
import json
import os
import struct
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

import serve_app
from serve_app.batch.cutting import Cut
from serve_app.batch.inputs import find_inputs
from serve_app.batch.options import BatchOptions
from serve_app.batch.reading import ReadImage, read_inputs
from serve_app.batch.storage import Storage, url_of
from serve_app.batch.tar_members import MAX_EXTENDED_BYTES, Damage, Member, read_members
from serve_app.cli import main
from serve_app.client import AsyncClient, Client
from serve_app.commands.embeddings_file import read_embeddings
from serve_app.commands.resume_file import keep_tagged
from serve_app.config.service import load_config
from serve_app.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    PayloadTooLarge,
    ServiceError,
    SourceUnavailable,
    TaggerError,
    Unavailable,
)
from serve_app.graph import deploy
from serve_app.graph.deploy import Cluster
from serve_app.siglip.checkpoints import read_checkpoint, weight_files
from serve_app.siglip.safetensors_files import read_header, read_tensors
from serve_app.tagging.calibration import read_calibration
from serve_app.tagging.registered import read_registered
from serve_app.tagging.vocabulary_files import read_vocabulary_file
from serve_app.untrusted import bounded_http, yaml_files
from serve_app.untrusted.bounded_files import FileProblem, parse_json, read_regular, read_within
from tests.conftest import encoded, random_picture
from tests.hostile.servers import Respond, answering, endless, slow_head, whole

MIB = 2**20
PICTURE = encoded(random_picture(8, 8))


@contextlib.contextmanager
def memory_below(nbytes: int) -> Iterator[None]:
    """Run a block, and see that Python never held so many bytes in it."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < nbytes
    finally:
        tracemalloc.stop()


# YAML

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
HOSTILE_YAML = {
    "an alias bomb": (
        BOMB,
        r":\d+: more than 1,000,000 values, counting expanded aliases; split the file\.",
    ),
    "100,000 lists": (
        "[" * 100_000 + "]" * 100_000,
        ":1: nested deeper than 64 blocks; make it flatter",
    ),
    "100,000 open lists": ("a: " + "[" * 100_000, ":1: nested deeper than 64 blocks"),
    "100,000 blocks": ("{a: " * 100_000 + "1" + "}" * 100_000, ":1: nested deeper than 64 blocks"),
    "a list in itself": ("a: &a [*a]\n", r":1: the alias \*a refers to itself"),
    "depth by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100)),
        ":63: nested deeper than 64 blocks",
    ),
    "a number of a million digits": (
        f"a: {'1' * 1_000_000}\n",
        ":1: a number has more than 100 characters",
    ),
    "a sexagesimal number of a million parts": (
        f"a: 1{':1' * 1_000_000}\n",
        ":1: a number has more than 100 characters",
    ),
    "not a number": ("a: .nan\n", ":1: .nan is not a finite number"),
    "infinity": ("a: 1\nb: -.inf\n", ":2: -.inf is not a finite number"),
    "infinity in disguise": ("a: 1.0e+999\n", r":1: 1\.0e\+999 is not a finite number"),
    "a key twice": (
        "a: 1\nb: {c: 1,\n  c: 2}\n",
        ":3: 'c' is set twice in one block; keep one of them",
    ),
}


def read_as_manifest(path: Path) -> object:
    """Read a file as `siglip-serve k8s plan --against` does."""
    return yaml_files.read_documents(path)


@pytest.mark.parametrize(
    "read", [load_config, read_vocabulary_file, read_calibration, read_as_manifest]
)
@pytest.mark.parametrize(("text", "said"), HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_every_reader_of_yaml_refuses_what_takes_too_much(
    tmp_path: Path, read: Callable[[Path], object], text: str, said: str
) -> None:
    """In under a second, without recursion, with the file and the line."""
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    began_s = time.process_time()
    with pytest.raises(ConfigError, match="hostile.yaml" + said) as refused:
        read(path)
    assert time.process_time() - began_s < 2
    assert len(str(refused.value)) < 1000


def test_aliases_that_stand_for_little_are_read() -> None:
    """Merge keys and anchors are what people write YAML with."""
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n"
    assert yaml_files.parse_documents(text, "f") == [
        {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}
    ]


def test_no_other_module_reads_yaml() -> None:
    """Another call of yaml's loaders would have none of these bounds."""
    package = Path(serve_app.__file__).parent
    calls = (
        "yaml.load",
        "yaml.safe_load",
        "yaml.full_load",
        "SafeLoader",
        "yaml.compose",
        "yaml.parse",
    )
    found = [
        str(path)
        for path in package.rglob("*.py")
        if any(call in path.read_text(encoding="utf-8") for call in calls)
    ]
    assert found == [str(Path(yaml_files.__file__))]


# Any file that is read whole


@pytest.mark.parametrize(
    "read",
    [
        load_config,
        read_vocabulary_file,
        read_calibration,
        read_regular,
        read_embeddings,
        read_header,
    ],
)
def test_a_pipe_or_folder_in_place_of_a_file_is_refused_at_once(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    """Opening a pipe without a writer would wait for ever."""
    os.mkfifo(tmp_path / "pipe.npy")
    for path in (tmp_path / "pipe.npy", tmp_path):
        with pytest.raises(
            (ConfigError, InvalidRequest), match=r"not a regular file|cannot be read"
        ):
            read_within(lambda path=path: read(path), 5)


def test_a_file_without_end_is_refused_after_its_bound(tmp_path: Path) -> None:
    """A sparse file of a terabyte stands for one that is still written to."""
    path = tmp_path / "v.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with memory_below(128 * MIB):
        with pytest.raises(ConfigError, match=r"v\.yaml has more than 33,554,432 bytes"):
            read_vocabulary_file(path)


def test_a_read_that_hangs_is_given_up() -> None:
    """As on a network share whose server is gone; what the read raises is raised."""
    with pytest.raises(TimeoutError):
        read_within(threading.Event().wait, 0.05)
    with pytest.raises(KeyError):
        read_within(lambda: {}["x"], 5)
    assert read_within(lambda: 7, 5) == 7


# JSON


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"a": NaN}',
        '{"a": 1e999}',
        "1" * 10_000,
        '{"a": "\ud800"',
    ],
)
def test_json_that_python_trips_over_is_refused_in_a_sentence(text: str) -> None:
    """Depth, numbers that are not finite, endless numbers."""
    with pytest.raises(FileProblem, match=r"^f cannot be read as JSON: "):
        parse_json(text, "f")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b" " * (17 * MIB), "more than 16,777,216 bytes"),
        (
            b'{"model_type": "siglip", "vision_config": {"hidden_size": 1e999}, "text_config": {}}',
            "too large for a number",
        ),
        (
            b'{"model_type": "siglip", "vision_config": {"image_size": "x"}, "text_config": {}}',
            "image_size must be a whole number",
        ),
        (
            b'{"model_type": "siglip", "vision_config": {"patch_size": -1}, "text_config": {}}',
            "patch_size must be a whole number",
        ),
        (
            b'{"model_type": "siglip", "vision_config": {}, "text_config": {"vocab_size": 1e18}}',
            "vocab_size must be a whole number",
        ),
    ],
    ids=["depth", "size", "infinity", "text", "negative", "absurd"],
)
def test_a_hostile_checkpoint_is_refused_with_the_file(
    tiny: Callable[[str], Path], tmp_path: Path, content: bytes, said: str
) -> None:
    """Its `config.json` is read before anything else of it."""
    for file in tiny("siglip").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as refused:
        read_checkpoint(tmp_path)
    assert "config.json" in str(refused.value)


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "", "..", 7, "a\0b"])
def test_an_index_of_weights_names_files_of_its_own_folder_only(
    tmp_path: Path, file: object
) -> None:
    """Nothing outside a checkpoint's folder is opened for it."""
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"logit_scale": file}})
    )
    with pytest.raises(
        ConfigError,
        match="weight_map must map each tensor to the name of a file in the same folder",
    ):
        weight_files(tmp_path)


def test_a_file_of_lines_with_a_deep_one_is_refused(tmp_path: Path) -> None:
    """As `tag --out` goes on with."""
    for tail in ("[" * 200_000, '": 1}', '7, "x": 1}'):
        (tmp_path / "out.jsonl").write_text(
            '{"file": "' * (tail[0] != "7") + '{"file": ' * (tail[0] == "7") + tail + "\n"
        )
        with pytest.raises(InvalidRequest, match=r"contains a line|was not written by"):
            keep_tagged(tmp_path / "out.jsonl")


# Vocabularies


def test_parents_of_parents_without_end_are_refused(tmp_path: Path) -> None:
    """A long chain or a few wide layers of parents would take the square of the file's size."""
    chain = "".join(f"- {{label: t{i}, parents: [t{i + 1}]}}\n" for i in range(5_000)) + "- t5000\n"
    (tmp_path / "v.yaml").write_text("tags:\n" + chain)
    with pytest.raises(
        ConfigError, match=r"v\.yaml:2: the tag has more than 256 parents, counting theirs"
    ):
        read_registered("v.yaml", tmp_path, "labels", ("a {label}",))


def test_a_file_of_wrong_parents_is_refused_in_time(tmp_path: Path) -> None:
    """The nearest label is looked for only where it is told."""
    lines = "".join(f"- {{label: some label {i}, parents: [no label {i}]}}\n" for i in range(3_000))
    (tmp_path / "v.yaml").write_text("tags:\n" + lines)
    began_s = time.process_time()
    with pytest.raises(ConfigError, match="and 2950 more"):
        read_registered("v.yaml", tmp_path, "labels", ("a {label}",))
    assert time.process_time() - began_s < 10


# Arrays


def npy(header: str, data: bytes = b"") -> bytes:
    """Return a `.npy` file with a header of one's own."""
    padded = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + data


HOSTILE_NPY = {
    "954 GiB": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 256), }"),
    "cut off": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }", bytes(31)),
    "pickled": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }", b"cos\nsystem\n"),
    "negative": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }", bytes(16)),
    "a program": npy("__import__('os').system('true')"),
    "deep": npy("(" * 100),
    "a huge header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{",
    "another version": b"\x93NUMPY\x09\x00",
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE_NPY)
def test_a_hostile_array_is_refused_before_memory_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """One sentence, status 1, as `siglip-serve score` prints it."""
    path = tmp_path / "e.npy"
    path.write_bytes(HOSTILE_NPY[name])
    with memory_below(64 * MIB):
        assert main(["score", str(path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "e.npy" in said[0]
    assert ("declares" in said[0]) == (name in ("954 GiB", "cut off", "a huge header"))


def test_arrays_of_both_orders_are_read(tmp_path: Path) -> None:
    """Row by row and column by column, as numpy writes them."""
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for order in ("C", "F"):
        np.save(tmp_path / "e.npy", np.asarray(values, order=order))
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        np.testing.assert_allclose(
            read_embeddings(tmp_path / "e.npy").image_embeds, unit, atol=1e-6
        )


def safetensors(header: object, data: bytes = b"", announced: int | None = None) -> bytes:
    """Return a safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text + data


def entry(shape: list[Any], offsets: list[Any], dtype: str = "F32") -> dict[str, Any]:
    """Return a header with one tensor of embeddings."""
    return {"image_embeds": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HOSTILE_SAFETENSORS = {
    "a header of an exabyte": safetensors({}, announced=2**60),
    "a header longer than the file": safetensors({}, announced=1000),
    "a deep header": safetensors(b"[" * 200_000),
    "a terabyte": safetensors(entry([2**20, 2**18], [0, 2**40])),
    "more than its bytes": safetensors(entry([2**31, 2**31], [0, 16]), bytes(16)),
    "shapes that overflow": safetensors(entry([2**63, 2**63], [0, 0])),
    "negative": safetensors(entry([-2, -2], [0, 16]), bytes(16)),
    "backwards": safetensors(entry([0], [16, 0]), bytes(16)),
    "text": safetensors(entry(["2", 2], [0, 16]), bytes(16)),
    "unknown": safetensors(entry([2, 2], [0, 16], "F99"), bytes(16)),
    "names that are no list": safetensors(
        entry([2, 2], [0, 16]) | {"__metadata__": {"names": "[" * 100_000}}, bytes(16)
    ),
    "no block": safetensors([1]),
    "empty": b"",
}


@pytest.mark.parametrize("data", HOSTILE_SAFETENSORS.values(), ids=HOSTILE_SAFETENSORS)
def test_a_hostile_safetensors_file_is_refused_before_memory_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    """One sentence, status 1."""
    path = tmp_path / "e.safetensors"
    path.write_bytes(data)
    with memory_below(64 * MIB):
        assert main(["score", str(path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "e.safetensors" in said[0]


def test_tensors_are_what_the_safetensors_package_wrote(tmp_path: Path) -> None:
    """Every dtype that numpy has, of the shape that was written; too many bytes are refused."""
    written = {
        name: np.arange(6).reshape(2, 3).astype(name)
        for name in ("float16", "float32", "float64", "int64", "uint8")
    }
    save_file(written, tmp_path / "t.safetensors")
    found = read_tensors(tmp_path / "t.safetensors", written, 1000)
    for name, values in written.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    with pytest.raises(ConfigError, match="at most 10 are read"):
        read_tensors(tmp_path / "t.safetensors", written, 10)


# Responses


def asked(url: str, kind: str, **settings: Any) -> BaseException:
    """Return what a client raises when it asks a server what it serves."""
    settings = {"timeout_s": 2.0, "deadline_s": 3.0, "max_tries": 1} | settings
    with pytest.raises(TaggerError) as raised:
        ask_model(url, kind, settings)
    return raised.value


def ask_model(url: str, kind: str, settings: dict[str, Any]) -> None:
    """Ask a server what it serves, by one of both clients."""
    if kind == "Client":
        with Client(url, **settings) as client:
            client.model()
        return

    async def ask() -> None:
        async with AsyncClient(url, **settings) as client:
            await client.model()

    asyncio.run(ask())


BOMB_GZ = gzip.compress(bytes(64 * MIB), 9)
HOSTILE_RESPONSES: dict[str, tuple[Respond, type[Exception], str]] = {
    "endless": (endless(bytes(2**16)), ServiceError, "is larger than"),
    "an endless error": (endless(bytes(2**16), 500), ServiceError, "is larger than"),
    "a gzip bomb": (whole(BOMB_GZ, content_encoding="gzip"), ServiceError, "is larger than"),
    "a bomb in an error": (
        whole(BOMB_GZ, 400, content_encoding="gzip"),
        ServiceError,
        "is larger than",
    ),
    "damaged gzip": (
        whole(b"no gzip", content_encoding="gzip"),
        ServiceError,
        "cannot be decompressed",
    ),
    "gzip that is cut off": (
        whole(gzip.compress(b"{}" * 99)[:20], content_encoding="gzip"),
        ServiceError,
        "cannot be decompressed",
    ),
    "a packing that nobody asked for": (
        whole(b"x", content_encoding="br"),
        ServiceError,
        "cannot be decompressed",
    ),
    "drop by drop": (
        endless(b" ", pause=lambda: time.sleep(0.05)),
        DeadlineExceeded,
        "did not end in time",
    ),
    "a head drop by drop": (slow_head, DeadlineExceeded, "did not end in time"),
    "deep": (whole(b"[" * 200_000), ServiceError, "not a response of siglip-serve"),
}


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
@pytest.mark.parametrize(
    ("respond", "error", "said"), HOSTILE_RESPONSES.values(), ids=HOSTILE_RESPONSES
)
def test_the_client_gives_a_hostile_response_up(
    monkeypatch: pytest.MonkeyPatch, kind: str, respond: Respond, error: type[Exception], said: str
) -> None:
    """After its bound of bytes, or at its deadline however steadily bytes arrive; in one
    sentence.
    """
    monkeypatch.setattr("serve_app.client.sync_client.MAX_RESPONSE_BYTES", MIB)
    monkeypatch.setattr("serve_app.client.async_client.MAX_RESPONSE_BYTES", MIB)
    with answering(respond) as url:
        began_s = time.monotonic()
        with memory_below(16 * MIB):
            raised = asked(url, kind, deadline_s=1.0)
        assert time.monotonic() - began_s < 5
    assert isinstance(raised, error)
    assert "\n" not in str(raised)
    assert any(part in str(raised) for part in said.split("|"))


def test_a_gzipped_response_is_read(tmp_path: Path) -> None:
    """A gateway may pack what we answer."""
    card = b'{"vocabularies": []}'
    with (
        answering(whole(gzip.compress(card), content_encoding="gzip")) as url,
        Client(url) as client,
    ):
        assert client.vocabularies() == ()


@pytest.mark.parametrize(
    "respond",
    [
        endless(bytes(2**16)),
        whole(BOMB_GZ, content_encoding="gzip"),
        whole(b"<html>"),
        whole(b"[" * 200_000),
    ],
)
def test_a_hostile_dashboard_is_given_up(monkeypatch: pytest.MonkeyPatch, respond: Respond) -> None:
    """What `siglip-serve deploy` and `plan --cluster` speak to may be another service."""
    monkeypatch.setattr(deploy, "MAX_RESPONSE_BYTES", MIB)
    with answering(respond) as url:
        for ask in (Cluster(url).nodes, lambda: Cluster(url).application("a")):
            with pytest.raises(Unavailable):
                ask()
    with answering(whole(b'{"data": [], "applications": 7}')) as url:
        with pytest.raises(Unavailable, match="lists no nodes"):
            Cluster(url).nodes()
        assert Cluster(url).application("a") == {}


def test_a_host_of_a_manifest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless images, endless redirects, and redirects with endless bodies are errors of their
    rows.
    """
    with (
        answering(endless(bytes(2**16))) as url,
        pytest.raises(PayloadTooLarge, match="more than 1,048,576 bytes"),
    ):
        Storage().read(url + "/a.jpg", MIB)
    for respond in (
        whole(b"", 302, location="/again"),
        endless(bytes(2**16), 302, location="/again"),
    ):
        with (
            answering(respond) as url,
            pytest.raises(SourceUnavailable, match="redirects more than 5 times"),
        ):
            Storage().read(url + "/a.jpg", MIB)
    with answering(whole(PICTURE, content_type="image/png")) as url:
        assert Storage().read(url + "/a.png", MIB)[0] == PICTURE


def test_bounded_exceptions_are_httpx_own_kind() -> None:
    """So that whoever handles httpx's errors handles these."""
    for cls in (
        bounded_http.ResponseTooLarge,
        bounded_http.ResponseTooSlow,
        bounded_http.ResponseNotReadable,
    ):
        assert issubclass(cls, httpx.HTTPError)


# Inputs of a batch job


def options_for(source: Path, **changed: Any) -> BatchOptions:
    return BatchOptions(source=url_of(str(source)), output=url_of("/nowhere"), **changed)


def everything(source: Path, **changed: Any) -> tuple[list[str], list[ReadImage]]:
    """Return the names of all inputs and what reading them gave."""
    inputs = find_inputs(options_for(source, **changed))
    rows = pa.concat_tables(list(inputs.tables), promote_options="permissive")
    reads = list(read_inputs(rows, inputs.kind, inputs.image_column, Storage(), 10**6))
    return [uri.removeprefix(f"{source}/") for uri in rows["uri"].to_pylist()], reads


def tar_of(
    *members: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT
) -> bytes:
    """Return a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


GOOD_TAR = tar_of(("a.png", PICTURE), ("a.json", b"{}"), ("b.png", PICTURE))


def members_of(data: bytes) -> list[Member | Damage]:
    return list(read_members(io.BytesIO(data), len(data)))


def test_members_are_those_that_tarfile_finds() -> None:
    """Of every format, with long names, in the same order and at the same bytes."""
    long = "d/" * 120 + "é" * 60 + ".png"
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["a.png", "é.png", *([] if kind == tarfile.USTAR_FORMAT else [long]), "empty.png"]
        data = tar_of(*[(name, b"x" * at * 700) for at, name in enumerate(names)], format=kind)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            expected = [Member(one.name, one.offset_data, one.size) for one in tar]
        assert members_of(data) == expected
    assert [one.name for one in members_of(GOOD_TAR) if isinstance(one, Member)] == [
        "a.png",
        "a.json",
        "b.png",
    ]


@pytest.mark.parametrize("cut_at", [700, 1024 + 200, 512 * 5 + 3, len(GOOD_TAR) - 9_000])
def test_a_tar_file_that_is_cut_off_ends_no_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut_at: int
) -> None:
    """Members before the cut are read, the rest is one error row that says where, and other tar
    files are read whole.
    """
    (tmp_path / "1.tar").write_bytes(GOOD_TAR)
    (tmp_path / "2.tar").write_bytes(GOOD_TAR[:cut_at])
    (tmp_path / "3.tar").write_bytes(GOOD_TAR)
    uris, reads = everything(tmp_path)
    names = [uri for uri, read in zip(uris, reads, strict=True) if read.data == PICTURE]
    assert {"1.tar#a.png", "1.tar#b.png", "3.tar#a.png", "3.tar#b.png"} <= set(names)
    failed = [
        (uri, read.error) for uri, read in zip(uris, reads, strict=True) if read.error is not None
    ]
    if len(failed) == 0:
        assert "2.tar#b.png" in names  # only the zeros at the end are gone
        return
    (uri, error), *others = failed
    assert not others
    assert uri.startswith("2.tar#damaged-at-byte-")
    assert "is damaged or cut off at byte" in str(error)
    assert "2.tar" in caplog.text


def test_a_cut_is_an_error_row_and_what_was_before_it_is_read(tmp_path: Path) -> None:
    """As in the test above, with the exact rows."""
    (tmp_path / "1.tar").write_bytes(GOOD_TAR)
    cut = (
        next(
            one.offset
            for one in members_of(GOOD_TAR)
            if isinstance(one, Member) and one.name == "b.png"
        )
        + 5
    )
    (tmp_path / "2.tar").write_bytes(GOOD_TAR[:cut])
    uris, reads = everything(tmp_path)
    assert uris == [
        "1.tar#a.png",
        "1.tar#b.png",
        "2.tar#a.png",
        f"2.tar#damaged-at-byte-{cut - 5 - 512}",
    ]
    assert [read.error is None for read in reads] == [True, True, True, False]
    (tmp_path / "2.tar").unlink()
    (tmp_path / "1.tar").write_bytes(b"no tar at all" * 99)
    with pytest.raises(ConfigError, match=r"1\.tar: it is not an uncompressed tar file"):
        everything(tmp_path)


def with_header(**changed: Any) -> bytes:
    """Return a tar file of one hostile member, then a good one."""
    info = tarfile.TarInfo("x.png")
    for name, value in changed.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT) + GOOD_TAR


def pax_header(content: bytes) -> bytes:
    """Return an extended header with records of one's own."""
    return with_header(type=tarfile.XHDTYPE, size=512)[:512] + content.ljust(512, b"\0")


def sparse_endless() -> bytes:
    """Return a sparse member whose map goes on in every block to the end."""
    header = bytearray(with_header(type=tarfile.GNUTYPE_SPARSE)[:512])
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"\1" * 512 * 300


HOSTILE_TARS: dict[str, tuple[bytes, int, str]] = {
    "a member of an exabyte": (with_header(size=2**60), 0, "announces more bytes"),
    "a member of a negative size": (with_header(size=-512), 0, "announces more bytes"),
    "a PAX header of gigabytes": (
        with_header(type=tarfile.XHDTYPE, size=2**32),
        0,
        "announces more bytes",
    ),
    "a long name of gigabytes": (
        with_header(type=tarfile.GNUTYPE_LONGNAME, size=2**32),
        0,
        "announces more bytes",
    ),
    "a PAX header without sense": (pax_header(b"9" * 512) + GOOD_TAR, 0, "cannot be read"),
    "a size in PAX without sense": (
        pax_header(b"12 size=9x9\n") + GOOD_TAR,
        0,
        "a size that is not a number",
    ),
    "a sparse map without end": (sparse_endless(), 0, "does not end"),
    "another checksum": (GOOD_TAR[:1024] + b"\xff" * 4096, 1, "there is no header"),
}


@pytest.mark.parametrize(("data", "before", "said"), HOSTILE_TARS.values(), ids=HOSTILE_TARS)
def test_a_hostile_tar_file_is_read_up_to_the_damage(data: bytes, before: int, said: str) -> None:
    """In time and memory that its own size bounds."""
    with memory_below(8 * MIB):
        *members, last = members_of(data)
    assert len(members) == before
    assert isinstance(last, Damage)
    assert said in last.why


def test_members_that_are_no_files_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Links, devices, sparse members and names beyond reason; everything after them is read."""
    link, hard, pipe, sparse = (
        tarfile.TarInfo(f"{name}.png") for name in ("link", "hard", "pipe", "sparse")
    )
    link.type = tarfile.SYMTYPE
    link.linkname = "/etc/passwd"
    hard.type = tarfile.LNKTYPE
    hard.linkname = "a.png"
    pipe.type = tarfile.FIFOTYPE
    sparse.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "s.png",
    }
    long = tarfile.TarInfo("x" * (MAX_EXTENDED_BYTES + 9) + ".png")
    named = tarfile.TarInfo("y" * 5000 + ".png")
    data = tar_of(
        (link, b""),
        (hard, b""),
        (pipe, b""),
        (sparse, b"1\n" * 256),
        (long, b"x"),
        (named, b"x"),
        ("a.png", PICTURE),
    )
    (tmp_path / "1.tar").write_bytes(data)
    uris, reads = everything(tmp_path)
    assert "1.tar#a.png" in uris
    assert [read.data for read in reads][-1] == PICTURE
    assert len(uris) <= 2  # the name of the one with too long a header is cut in its own header
    for reason in ("2 (a link)", "1 (not a file)", "1 (sparse)", "1 (a name that is too long)"):
        assert reason in caplog.text


def test_names_that_are_not_text_are_shown_escaped(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, newlines and escape sequences; the images are read all the same."""
    names = ["caf\udce9.png", "a\x1b[2J.png", "b\nc.png", "\u202egnp.png"]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "1.tar").write_bytes(tar_of(*[(name, PICTURE) for name in names], format=kind))
        uris, reads = everything(tmp_path)
        assert uris == [
            "1.tar#caf\\udce9.png",
            "1.tar#a\\x1b[2J.png",
            "1.tar#b\\nc.png",
            "1.tar#\\u202egnp.png",
        ]
        assert all(read.data == PICTURE for read in reads)


def test_many_tiny_members_are_not_held_in_memory() -> None:
    """A million would take a gigabyte in `tarfile`; here they pass one by one."""
    one = tarfile.TarInfo("a.png").tobuf()
    data = one * 5_000
    with memory_below(MIB):
        count = sum(
            isinstance(member, Member) for member in read_members(io.BytesIO(data), len(data))
        )
    assert count == 5_000


def parquet(**columns: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


HOSTILE_TABLES = {
    "no.parquet": b"no parquet",
    "cut.parquet": parquet(uri=["a.png"] * 100)[:-20],
    "metadata.parquet": b"PAR1" + b"\xff" * 64 + struct.pack("<I", 2**31 - 1) + b"PAR1",
    "deep.jsonl": b'{"uri": "a.png", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n",
    "deep-over-lines.jsonl": b'{"x":"]]]","y":[[\n' * 20_000,
    "list.jsonl": b"[1]\n",
    "cut.jsonl": b'{"uri": "a.png',
    "ragged.csv": b"uri,n\na.png,1,2,3\n",
    "wide.csv": b",".join(b"c%d" % at for at in range(20_000)) + b"\n",
    "twice.csv": b"uri,n,n\na.png,1,2\n",
    "empty.csv": b"",
    "other.csv": b"license\nMIT\n",
}


@pytest.mark.parametrize("name", HOSTILE_TABLES)
def test_a_hostile_manifest_among_good_ones_is_one_error_row(tmp_path: Path, name: str) -> None:
    """The others are read; named alone, it is refused in a sentence that names it."""
    (tmp_path / "1.png").write_bytes(PICTURE)
    for good in ("0.csv", "z.csv"):
        (tmp_path / good).write_text("uri,n\n1.png,7\n")
    (tmp_path / name).write_bytes(HOSTILE_TABLES[name])
    uris, reads = everything(tmp_path, input_format="manifest")
    assert uris == ["1.png", "1.png", f"{name}#damaged"]
    assert [read.data for read in reads[:2]] == [PICTURE, PICTURE]
    assert "is damaged" in str(reads[2].error)
    with pytest.raises(ConfigError, match=name) as refused:
        everything(tmp_path / name, input_format="manifest")
    assert "\n" not in str(refused.value)


def test_a_name_that_is_not_text_is_an_error_of_its_row(tmp_path: Path) -> None:
    """The rows beside it are read, and what is printed of it is escaped."""
    (tmp_path / "1.png").write_bytes(PICTURE)
    (tmp_path / "m.csv").write_bytes(b"uri,n\n1.png,1\ncaf\xe9\x1b.png,2\n")
    uris, reads = everything(tmp_path / "m.csv")
    assert uris == ["1.png", "caf\\udce9\\x1b.png"]
    assert [read.error is None for read in reads] == [True, False]


def test_rows_before_the_damage_of_a_manifest_are_read(tmp_path: Path) -> None:
    """As far as its lines are whole; the error is a row of any partition."""
    (tmp_path / "1.png").write_bytes(PICTURE)
    (tmp_path / "a.jsonl").write_bytes(
        b'{"uri": "1.png", "day": "mon"}\n{"uri": "1.png", "day": "tue"}\n{"uri": '
    )
    uris, reads = everything(tmp_path / "a.jsonl")
    assert uris == ["1.png", "1.png", f"{tmp_path}/a.jsonl#damaged"] or uris[2].endswith(
        "a.jsonl#damaged"
    )
    assert [read.error is None for read in reads] == [True, True, False]
    inputs = find_inputs(options_for(tmp_path / "a.jsonl"))
    parts = [part for _, part in Cut(10, "day").chunks(inputs.tables)]
    assert parts == ["day=__HIVE_DEFAULT_PARTITION__", "day=mon", "day=tue"]


def test_a_hostile_table_of_images_among_good_ones_is_one_error_row(tmp_path: Path) -> None:
    """Whether it is none, lacks the column, or has something else in it."""
    (tmp_path / "1.parquet").write_bytes(b"no parquet")
    (tmp_path / "2.parquet").write_bytes(parquet(image=[PICTURE, None]))
    (tmp_path / "3.parquet").write_bytes(parquet(other=[1]))
    (tmp_path / "4.parquet").write_bytes(parquet(image=["text"]))
    uris, reads = everything(tmp_path)
    assert uris == ["2.parquet#0", "2.parquet#1", "3.parquet#0", "4.parquet#0", "1.parquet#damaged"]
    assert [read.data for read in reads] == [PICTURE, b"", b"", b"", b""]
    assert [read.error is None for read in reads] == [True, False, False, False, False]


def test_a_folder_with_odd_names_is_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    r"""Names that are no UTF-8 or hold control characters end no listing; macOS' `Icon\r` is none
    of the images.
    """
    (tmp_path / "d").mkdir()
    for name in (b"a.png", b"Icon\r", b"caf\xe9.png", b"b\x1b.png", b"d/c.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(PICTURE)
    uris, reads = everything(tmp_path)
    assert uris == ["a.png", "b\x1b.png", "caf\\udce9.png", "d/c.png"]
    assert all(read.data == PICTURE for read in reads)
    assert "skipped hidden or system files and folders: 1" in caplog.text


def test_a_manifest_that_names_a_pipe_or_device_hangs_nothing(tmp_path: Path) -> None:
    """Each is an error of its row."""
    os.mkfifo(tmp_path / "p.png")
    (tmp_path / "m.csv").write_text("uri,n\np.png,1\n/dev/zero,2\n")
    _, reads = read_within(lambda: everything(tmp_path / "m.csv"), 10)
    assert [type(read.error) for read in reads] == [SourceUnavailable, SourceUnavailable]


def test_one_image_that_cannot_be_read_ends_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`siglip-serve tag FOLDER` reports it in its place and tags the others."""
    monkeypatch.setattr("serve_app.client.images.MAX_IMAGE_BYTES", 1000)
    for name, data in (("a.png", PICTURE), ("b.png", PICTURE + bytes(1000)), ("c.png", PICTURE)):
        (tmp_path / name).write_bytes(data)
    assert main(["tag", "--json", str(tmp_path)]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.png", "b.png", "c.png"]
    assert ["error" in line for line in lines] == [False, True, False]
    assert "more than 1,000 bytes" in lines[1]["error"]["message"]

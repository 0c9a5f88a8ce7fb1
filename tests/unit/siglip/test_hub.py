"""Downloads from a real local endpoint: revisions, the cache, offline use, and clear errors."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serve_app.siglip.hub_download import download_problem
from tests.conftest import encoded, random_picture

OWNER_MODEL = "tiny/siglip2"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(ThreadingHTTPServer):
    """The hub's HTTP interface for downloads, serving one folder and counting the requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched = []
        self.fault: str | None = None
        self.faulty_files = False
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        self._answer(407, b"", {"Proxy-Authenticate": "Basic"})

    def do_GET(self) -> None:
        if self.server.fault is not None and (
            not self.server.faulty_files or "/resolve/" in self.path
        ):
            self._fail(self.server.fault)
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) == OWNER_MODEL:
            self._answer_api(
                parts[4] if len(parts) > 4 else "revision", parts[5] if len(parts) > 5 else "main"
            )
        elif "/".join(parts[:2]) == OWNER_MODEL and parts[2:3] == ["resolve"]:
            self._answer_file(parts[3], "/".join(parts[4:]))
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _fail(self, fault: str) -> None:
        """Answer as a broken hub, or a proxy before it, does."""
        match fault:
            case "page instead of JSON":
                self._answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
            case "JSON of something else":
                self._answer(200, b"[]", {"Content-Type": "application/json"})
            case "redirects without end":
                self._answer(302, b"", {"Location": self.path})
            case "redirect to nowhere":
                self._answer(302, b"", {"Location": "http://["})
            case "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"id')
                self.close_connection = True
            case "no answer":
                self.close_connection = True
            case status:
                self._answer(int(status), b"", {})

    def _answer_api(self, what: str, revision: str) -> None:
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        sizes = {
            file.name: file.stat().st_size for file in sorted(self.server.folder.iterdir())
        } | {"modeling_evil.py": 9}
        if what == "tree":
            tree = [
                {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                for name, size in sizes.items()
            ]
            return self._answer(
                200, json.dumps(tree).encode(), {"Content-Type": "application/json"}
            )
        files = [{"rfilename": name} for name in sizes]
        info = {
            "id": OWNER_MODEL,
            "modelId": OWNER_MODEL,
            "sha": commit,
            "siblings": files,
            "private": False,
            "tags": [],
        }
        return self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _answer_file(self, revision: str, name: str) -> None:
        path = self.server.folder / name
        if not path.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.server.fetched.append(name)
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(
            200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMITS.get(revision, revision)}
        )

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tiny: Callable[[str], Path]) -> Iterator[Hub]:
    server = Hub(tiny("siglip2"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PROGRAM = """
import json, sys
from serve_app.errors import ConfigError
from serve_app.siglip.hub import load_checkpoint
try:
    c = load_checkpoint(sys.argv[1], sys.argv[2] or None)
    files = sorted(f.name for f in c.folder.iterdir())
    print(json.dumps({"name": c.name, "folder": str(c.folder), "files": files}))
except ConfigError as error:
    print(json.dumps({"error": str(error)}))
"""


def load(
    cache: Path,
    endpoint: str,
    model: str = OWNER_MODEL,
    revision: str = "",
    offline: bool = False,
    **environment: str,
) -> dict[str, object]:
    """Load in a process of its own: the hub's settings are read at import."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, model, revision],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_checkpoint_is_downloaded_once_and_works_offline(hub: Hub, tmp_path: Path) -> None:
    """The first load downloads weights, JSON and tokenizer, no code; the second needs no hub."""
    first = load(tmp_path, hub.url)
    assert first["name"] == OWNER_MODEL
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(first["files"])
    assert "modeling_evil.py" not in hub.fetched
    fetched = len(hub.fetched)
    assert load(tmp_path, hub.url, offline=True)["folder"] == first["folder"]
    assert len(hub.fetched) == fetched


def test_pinned_revision_is_the_one_loaded(hub: Hub, tmp_path: Path) -> None:
    """A tag and a commit lead to that commit's snapshot, another one than main's."""
    assert COMMITS["v1"] in str(load(tmp_path, hub.url, revision="v1")["folder"])
    assert COMMITS["v1"] in str(load(tmp_path, hub.url, revision=COMMITS["v1"])["folder"])
    assert COMMITS["main"] in str(load(tmp_path, hub.url)["folder"])


def test_each_missing_thing_has_its_own_message(hub: Hub, tmp_path: Path) -> None:
    """A wrong id, a wrong revision, no hub, and offline without a cache have different messages."""
    assert "is not on the hub" in str(load(tmp_path, hub.url, model="tiny/nothing")["error"])
    assert "no revision 'v9'" in str(load(tmp_path, hub.url, revision="v9")["error"])
    assert "cannot be reached" in str(load(tmp_path, "http://127.0.0.1:9")["error"])
    assert "HF_HUB_OFFLINE is set" in str(load(tmp_path, hub.url, offline=True)["error"])


@pytest.mark.parametrize(
    ("model", "revision", "said"),
    [("no such folder", "", "neither a folder"), ("FOLDER", "v1", "only hub ids have revisions")],
)
def test_folders_and_ids_are_distinguished(
    tiny: Callable[[str], Path], tmp_path: Path, model: str, revision: str, said: str
) -> None:
    """Something that is neither is refused, and so is a revision of a folder."""
    model = str(tiny("siglip")) if model == "FOLDER" else model
    assert said in str(
        load(tmp_path, "http://127.0.0.1:9", model=model, revision=revision)["error"]
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("page instead of JSON", "its response is not the hub's JSON"),
        ("JSON of something else", "its response is not understood"),
        ("redirects without end", "redirects endlessly"),
        ("redirect to nowhere", "HF_ENDPOINT"),
        ("cut", "closed the connection before the response was complete"),
        ("no answer", "closed the connection before the response was complete"),
        ("407", "the proxy requires a user and a password"),
        ("401", "does not accept HF_TOKEN"),
        ("403", "forbids the download"),
        ("418", "status 418"),
        ("500", "status 500; retry later"),
    ],
)
def test_a_broken_hub_is_one_sentence(hub: Hub, tmp_path: Path, fault: str, said: str) -> None:
    """What the HTTP client, the JSON parser and the hub's library raise, each with what to do."""
    hub.fault = fault
    error = str(load(tmp_path, hub.url)["error"])
    assert said in error
    assert error.startswith(f"{OWNER_MODEL} ")
    assert "\n" not in error


@pytest.mark.parametrize("fault", ["cut", "redirects without end", "403", "no answer"])
def test_a_file_that_does_not_arrive_is_one_sentence(hub: Hub, tmp_path: Path, fault: str) -> None:
    """The hub lists its files and then does not give them."""
    hub.fault = fault
    hub.faulty_files = True
    error = str(load(tmp_path, hub.url, HF_HUB_DOWNLOAD_TIMEOUT="2")["error"])
    assert error.startswith(f"{OWNER_MODEL} ")
    assert "\n" not in error


def test_a_proxy_that_wants_a_password_is_named(hub: Hub, tmp_path: Path) -> None:
    """For a hub with TLS, where the proxy refuses the tunnel, and one without."""
    for scheme in ("https", "http"):
        proxies = {
            f"{scheme.upper()}_PROXY": hub.url,
            f"{scheme}_proxy": hub.url,
            "NO_PROXY": "",
            "no_proxy": "",
        }
        hub.fault = "407"
        error = str(load(tmp_path, f"{scheme}://hub.example", **proxies)["error"])
        assert "proxy" in error
        assert "HTTPS_PROXY" in error


@pytest.mark.parametrize(
    "endpoint",
    ["huggingface.co", "ftp://hub", "http://", "http://[::1", "http://hub:99999", "http://a hub"],
)
def test_an_endpoint_that_is_no_url_is_reported(tmp_path: Path, endpoint: str) -> None:
    """Some of them stop huggingface_hub while it is imported."""
    assert f"HF_ENDPOINT is {endpoint!r}, which is not a URL" in str(
        load(tmp_path, endpoint)["error"]
    )


def test_a_password_in_the_endpoint_is_not_shown(tmp_path: Path) -> None:
    for endpoint in ("http://me:secret@127.0.0.1:9", "http://me:secret@[::1"):
        assert "secret" not in str(load(tmp_path, endpoint)["error"])


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
def test_a_timeout_that_is_no_number_is_reported(hub: Hub, tmp_path: Path, name: str) -> None:
    """They stop huggingface_hub while it is imported, too."""
    assert f"{name} is 'soon'" in str(load(tmp_path, hub.url, **{name: "soon"})["error"])


def test_a_proxy_that_is_no_url_is_reported(hub: Hub, tmp_path: Path) -> None:
    """An unknown scheme."""
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy"), "gopher://proxy") | dict.fromkeys(
        ("NO_PROXY", "no_proxy"), ""
    )
    assert "check HTTP_PROXY" in str(load(tmp_path, hub.url, **proxies)["error"])


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    """A file where the folder should be, and for all but root a folder without permission."""
    (tmp_path / "file").write_text("")
    error = str(load(tmp_path / "file", hub.url)["error"])
    assert "cannot be stored in" in error
    assert "HF_HOME" in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_is_reported(hub: Hub, tmp_path: Path) -> None:
    """A write that fails with the error of a full disk, whichever file it is of."""
    problem = download_problem(OWNER_MODEL, None, full_disk())
    assert "the disk is full" in str(problem)
    assert "HF_HOME" in str(problem)


def full_disk() -> OSError:
    """Return what the system raises when a disk is full."""
    try:
        Path("/dev/full").write_bytes(b"x")
    except OSError as error:
        return error
    raise AssertionError("the device took it")


def test_the_command_line_checks_the_environment_first(tmp_path: Path) -> None:
    """Commands that import transformers before they ask the hub."""
    image = tmp_path / "a.png"
    image.write_bytes(encoded(random_picture(40, 30)))
    ran = subprocess.run(
        [sys.executable, "-m", "serve_app", "tag", str(image)],
        env=os.environ | {"HF_ENDPOINT": "http://[::1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("siglip-serve: HF_ENDPOINT is")
    assert len(ran.stderr.splitlines()) == 1

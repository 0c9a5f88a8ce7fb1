"""The hub path against a real local endpoint: download, revision, cache, offline, and clear errors."""

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

OWNER_MODEL = "tiny/siglip2"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(ThreadingHTTPServer):
    """The parts of the hub's HTTP interface that downloading needs, over one folder; counts what was fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched = folder, []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) == OWNER_MODEL:
            self._answer_api(parts[4] if len(parts) > 4 else "revision", parts[5] if len(parts) > 5 else "main")
        elif "/".join(parts[:2]) == OWNER_MODEL and parts[2:3] == ["resolve"]:
            self._answer_file(parts[3], "/".join(parts[4:]))
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer_api(self, what: str, revision: str) -> None:
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        sizes = {file.name: file.stat().st_size for file in sorted(self.server.folder.iterdir())} | {"modeling_evil.py": 9}
        if what == "tree":
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            return self._answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        files = [{"rfilename": name} for name in sizes]
        info = {"id": OWNER_MODEL, "modelId": OWNER_MODEL, "sha": commit, "siblings": files, "private": False, "tags": []}
        return self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _answer_file(self, revision: str, name: str) -> None:
        path = self.server.folder / name
        if not path.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.server.fetched.append(name)
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMITS.get(revision, revision)})

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
    print(json.dumps({"name": c.name, "folder": str(c.folder), "files": sorted(f.name for f in c.folder.iterdir())}))
except ConfigError as error:
    print(json.dumps({"error": str(error)}))
"""


def load(cache: Path, endpoint: str, model: str = OWNER_MODEL, revision: str = "", offline: bool = False) -> dict[str, object]:
    """Load in a process of its own: the hub's settings are read at import."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, model, revision],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_checkpoint_is_downloaded_once_and_works_offline(hub: Hub, tmp_path: Path) -> None:
    """The first load downloads weights, JSON and tokenizer and no code; the second, offline, needs no hub."""
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


def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    """A wrong id, a wrong revision, no hub, and offline without a cache are four different sentences."""
    assert "is not on the hub" in str(load(tmp_path, hub.url, model="tiny/nothing")["error"])
    assert "no revision 'v9'" in str(load(tmp_path, hub.url, revision="v9")["error"])
    assert "cannot be reached" in str(load(tmp_path, "http://127.0.0.1:9")["error"])
    assert "HF_HUB_OFFLINE is set" in str(load(tmp_path, hub.url, offline=True)["error"])


@pytest.mark.parametrize(
    ("model", "revision", "said"), [("no such folder", "", "neither a folder"), ("FOLDER", "v1", "only a hub id has revisions")]
)
def test_folders_and_ids_are_told_apart(tiny: Callable[[str], Path], tmp_path: Path, model: str, revision: str, said: str) -> None:
    """Something that is neither is refused, and so is a revision of a folder."""
    model = str(tiny("siglip")) if model == "FOLDER" else model
    assert said in str(load(tmp_path, "http://127.0.0.1:9", model=model, revision=revision)["error"])

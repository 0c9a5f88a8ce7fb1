"""A private Ray node for one process: its own token, folder and ports, all on loopback.

`siglip-serve serve`, `siglip-serve batch`, the tests and the benchmarks start Ray with this module.
Ray runs code for anyone who reaches its ports, so its processes listen on loopback where possible.
Ports that cannot be moved to loopback require a random token. `docs/security.md` lists every port.

Not here: additional settings for Ray Serve and HAProxy (`graph/local_node.py`).
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from serve_app.errors import ConfigError
from serve_app.processes.ports import reserved_block

logger = logging.getLogger(__name__)

PREFIX = "siglip-"
TOKEN_FILE = "auth_token"
CLUSTER_FILE = "cluster.json"
ENVIRONMENT_FILE = "env"
MAX_FOLDER_CHARACTERS = 24
"""HAProxy accepts socket paths of at most 97 characters, and Ray's part takes 72: a slash, a
letter, a node id of 56 characters and `metrics.sock` with its slash. Source: HAProxy's own error
message, and `ray/serve/_private/haproxy.py`."""
STALE_AFTER_S = 24 * 3600.0
"""Age after which a later run removes the folder of a run that was killed."""

_LOOPBACK = {
    # Ray's switch for machines without a network: the node's address becomes 127.0.0.1, and GCS,
    # raylet, workers, agents and dashboard bind to it.
    # Source: `get_node_ip_address` in ray/_private/services.py.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_OTHER_CLUSTER = ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR")
"""Variables that are removed from the environment, because they name another cluster."""


@dataclass(frozen=True, slots=True)
class PrivateFolder:
    """The folder of one run, which only its user can read (mode 0700).

    Attributes:
        path: Path of the folder, which holds logs, sockets, the token and HAProxy's files.
        ports: Consecutive ports that are reserved for this run and were free when it started.
    """

    path: Path
    ports: range

    @property
    def token_file(self) -> Path:
        """The file that holds the token, mode 0600."""
        return self.path / TOKEN_FILE

    @property
    def environment_file(self) -> Path:
        """A shell file that lets `ray` commands of the same user reach this cluster."""
        return self.path / ENVIRONMENT_FILE


@dataclass(frozen=True, slots=True)
class PrivateRay:
    """A running Ray node of this process.

    Attributes:
        folder: The folder of this run.
        dashboard: URL of the dashboard; None if there is none.
    """

    folder: PrivateFolder
    dashboard: str | None


@contextlib.contextmanager
def private_folder() -> Iterator[PrivateFolder]:
    """Create the folder of a run with a new token; remove it afterwards.

    After an error, only the token is removed.

    Raises:
        ConfigError: The temporary folder cannot be used.
    """
    with reserved_block() as ports:
        folder = PrivateFolder(_new_folder(), ports)
        _describe(folder, dashboard=None)
        descriptor = os.open(folder.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        try:
            yield folder
        except BaseException:
            # keep the logs, so that the user can find the cause
            folder.token_file.unlink(missing_ok=True)
            raise
        shutil.rmtree(folder.path, ignore_errors=True)


@contextlib.contextmanager
def private_ray(
    folder: PrivateFolder,
    environment: Mapping[str, str] | None = None,
    fixed: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[PrivateRay]:
    """Start a Ray node and stop it when the block ends.

    Args:
        folder: The folder of this run.
        environment: Variables for this process and its children while the node runs; variables
            that the user has set take precedence.
        fixed: Variables that override what the user has set.
        options: Options of `ray.init`, such as `num_cpus`.

    Raises:
        ConfigError: Ray cannot start.
    """
    with private_environment(folder, environment, fixed):
        import ray  # here, because Ray reads the variables above when it is imported

        context = _start_ray(ray, folder, options)
        dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
        _describe(folder, dashboard)
        _write_environment(folder, dashboard, context.address_info["gcs_address"])
        try:
            yield PrivateRay(folder, dashboard)
        finally:
            if ray.is_initialized():
                ray.shutdown()


def _start_ray(ray: ModuleType, folder: PrivateFolder, options: Mapping[str, Any]) -> Any:
    own = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        return ray.init(
            "local",  # otherwise Ray would join a cluster that already runs on this machine
            **(own | dict(options)),
            dashboard_host="127.0.0.1",
            _temp_dir=str(folder.path / "ray"),
        )
    except Exception as error:  # Ray also raises bare `Exception`
        raise ConfigError(
            f"Ray cannot start on this machine: {error} See its logs in "
            f"{folder.path}/ray/session_latest/logs."
        ) from error


def token_for(address: str) -> str | None:
    """Return the token of a cluster that this user started with `siglip-serve serve`, or None.

    Args:
        address: URL of its dashboard, such as `http://127.0.0.1:8265`.
    """
    dashboard = address.rstrip("/").replace("://localhost:", "://127.0.0.1:")
    for folder in _own_folders():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            described = json.loads((folder / CLUSTER_FILE).read_text(encoding="utf-8"))
            if described["dashboard"] == dashboard and _is_running(described):
                return (folder / TOKEN_FILE).read_text(encoding="utf-8")
    return None


def _describe(folder: PrivateFolder, dashboard: str | None) -> None:
    """Record the process that owns the folder, and the cluster that its token is for."""
    described = {
        "dashboard": dashboard,
        "pid": os.getpid(),
        "started_s": psutil.Process().create_time(),
    }
    (folder.path / CLUSTER_FILE).write_text(json.dumps(described), encoding="utf-8")


def _is_running(described: Mapping[str, Any]) -> bool:
    """Return whether the process that created a folder still runs; its id may have been reused."""
    try:
        started_s = psutil.Process(described["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    return bool(abs(started_s - described["started_s"]) < 1.0)


def _write_environment(folder: PrivateFolder, dashboard: str | None, gcs_address: str) -> None:
    """Write the shell file for `ray` and `serve` commands of the same user."""
    exports = {
        "RAY_ADDRESS": gcs_address,
        "RAY_API_SERVER_ADDRESS": dashboard or "",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder.token_file),
        "RAY_TMPDIR": str(folder.path / "ray"),
    } | _LOOPBACK
    lines = [f"export {name}='{value}'\n" for name, value in exports.items() if value]
    folder.environment_file.write_text("".join(lines), encoding="utf-8")


def _new_folder() -> Path:
    """Create a folder with a path that is short enough for the sockets in it."""
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        if len(base) + len(f"/{PREFIX}12345678") > MAX_FOLDER_CHARACTERS:
            continue
        try:
            _remove_stale(Path(base))
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # mode 0700
        except OSError as error:
            logger.warning("cannot create a folder in %s: %s", base, error)
    raise ConfigError(
        f"cannot create a folder for this run in {tempfile.gettempdir()} or /tmp; set TMPDIR to "
        "a writable folder with a path of at most "
        f"{MAX_FOLDER_CHARACTERS - len(PREFIX) - 9} characters (sockets need short paths)."
    )


def _own_folders(base: Path | None = None) -> Iterator[Path]:
    """Yield the folders of this user's runs; skip similar folders that another user created."""
    for parent in dict.fromkeys((base,) if base else (Path(tempfile.gettempdir()), Path("/tmp"))):
        for folder in parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                found = folder.lstat()
                if (
                    stat.S_ISDIR(found.st_mode)
                    and found.st_uid == os.getuid()
                    and stat.S_IMODE(found.st_mode) == 0o700
                ):
                    yield folder


def _remove_stale(base: Path) -> None:
    for folder in _own_folders(base):
        described = folder / CLUSTER_FILE
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            is_old = time.time() - described.stat().st_mtime > STALE_AFTER_S
            if is_old and not _is_running(json.loads(described.read_text(encoding="utf-8"))):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def private_environment(
    folder: PrivateFolder,
    environment: Mapping[str, str] | None = None,
    fixed: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Set the variables that every process of a run inherits, and restore the old ones afterwards.

    Args:
        folder: The folder of the run.
        environment: Variables that the user may override.
        fixed: Paths and ports of this run, which override what the user has set.
    """
    before = dict(os.environ)
    for name in _OTHER_CLUSTER:
        os.environ.pop(name, None)
    for name, value in (environment or {}).items():
        os.environ.setdefault(name, value)  # values set by the user take precedence
    os.environ |= (
        dict(fixed or {})
        | _LOOPBACK
        | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder.token_file),
            "AUTOSCALER_METRIC_PORT": str(folder.ports[0]),
            "DASHBOARD_METRIC_PORT": str(folder.ports[1]),
        }
    )
    _reload_authentication(loopback=True)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        _reload_authentication(loopback=False)


def _reload_authentication(*, loopback: bool) -> None:
    """Make Ray reload the authentication variables, which it reads only once, when imported."""
    if "ray" not in sys.modules:
        return
    # here, because Ray must not be imported before the variables are set
    from ray import _private, _raylet

    raylet: Any = _raylet  # a compiled module, whose names mypy does not know
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    _private.ray_constants.ENABLE_RAY_CLUSTER = not loopback

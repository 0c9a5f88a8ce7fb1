"""Starts the servers that are measured, each in a process of its own, and stops them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
OWN_ENVIRONMENT = ROOT / "bench" / ".venv"
START_TIMEOUT_S = 240.0


def litserve_python() -> str:
    """Return the interpreter of the benchmark's own environment, which is made on first use.

    It has LitServe, and everything that is installed in this environment.
    """
    python = OWN_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(OWN_ENVIRONMENT)], check=True)
    have = subprocess.run([str(python), "-c", "import litserve"], capture_output=True, check=False)
    if have.returncode:
        constraints = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "litserve", *constraints], check=True
        )
    (site,) = OWN_ENVIRONMENT.glob("lib/python*/site-packages")
    (ours,) = Path(sys.prefix).glob("lib/python*/site-packages")
    (site / "beside.pth").write_text(f"{ours}\n{ROOT}\n")
    return str(python)


@contextlib.contextmanager
def running(
    command: Sequence[str], url: str, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Start a server, wait until `url` responds with 200, and stop it and its children later."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait(process, url)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode} before it answered")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"{process.args} did not answer within {START_TIMEOUT_S} s")

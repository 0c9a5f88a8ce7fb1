"""A supervised program with children in sessions of their own, as Ray's are: none of them outlives
it.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prctl(2)")

PROGRAM = textwrap.dedent(
    """
    import json, os, signal, subprocess, sys, time
    from serve_app.processes import supervisor

    supervisor.STOP_TIMEOUT_S = 2.0
    behaviour = sys.argv[2]

    def run():
        asked = []
        signal.signal(signal.SIGINT, lambda *_: asked.append("SIGINT"))
        signal.signal(signal.SIGTERM, lambda *_: asked.append("SIGTERM"))
        # a process that ignores signals and outlives the one that started it, as HAProxy might
        deaf = (
            "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)];"
            "time.sleep(60)"
        )
        orphan = (
            "import subprocess, sys; nowhere = subprocess.DEVNULL;"
            f"command = [sys.executable, '-c', {deaf!r}];"
            "options = dict(stdout=nowhere, stderr=nowhere, start_new_session=True);"
            "print(subprocess.Popen(command, **options).pid)"
        )
        command = [sys.executable, "-c", orphan]
        left = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with open(sys.argv[1] + ".new", "w") as file:
            json.dump({"child": os.getpid(), "orphan": int(left)}, file)
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        if behaviour == "ends by itself":
            while os.path.exists(sys.argv[1]):  # until the test has found the processes
                time.sleep(0.01)
            return 7
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            time.sleep(0.01)
            if behaviour == "ends in order" and asked:
                print(",".join(asked), flush=True)
                return 3
            if behaviour == "wants two signals" and len(asked) == 2:
                return 4
        return 99

    sys.exit(supervisor.supervised(run))
    """
)


class Program:
    """The running program.

    Attributes:
        process: The supervisor.
        child: What it runs.
        orphan: A process whose parent has ended, in a session of its own.
    """

    def __init__(self, folder: Path, behaviour: str) -> None:
        found = folder / "processes.json"
        command = [sys.executable, "-c", PROGRAM, str(found), behaviour]
        self.process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while not found.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pids = json.loads(found.read_text())
        self.child = psutil.Process(pids["child"])
        self.orphan = psutil.Process(pids["orphan"])
        found.unlink()

    def wait(self) -> tuple[int, str]:
        """Return the exit status and what was printed."""
        printed, _ = self.process.communicate(timeout=120)
        return self.process.returncode, printed.strip()

    @property
    def alive(self) -> list[psutil.Process]:
        """What still runs of the child and the orphan."""
        return [
            p
            for p in (self.child, self.orphan)
            if p.is_running() and p.status() != psutil.STATUS_ZOMBIE
        ]

    def kill(self) -> None:
        """End everything."""
        self.process.kill()
        for process in self.alive:
            process.kill()
        self.process.communicate()


@pytest.fixture
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    running = Program(tmp_path, request.param)
    yield running
    running.kill()


@pytest.mark.parametrize("program", ["ends by itself"], indirect=True)
def test_the_exit_status_is_the_childs_and_orphans_are_killed(program: Program) -> None:
    """An orphan becomes a child of the supervisor, which finds it there."""
    assert program.wait() == (7, "")
    assert program.alive == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("program", ["ends in order"], indirect=True)
def test_a_signal_to_the_group_reaches_the_child_once(
    program: Program, number: signal.Signals
) -> None:
    """As SIGINT: the child does not belong to the group, so it ends its own children in order."""
    os.killpg(program.process.pid, number)
    assert program.wait() == (3, "SIGINT")
    assert program.alive == []


@pytest.mark.parametrize("program", ["wants two signals"], indirect=True)
def test_the_second_signal_is_passed_on_too(program: Program) -> None:
    """A second Ctrl-C is for who does not want to wait."""
    program.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert program.process.poll() is None
    program.process.send_signal(signal.SIGINT)
    assert program.wait()[0] == 4


@pytest.mark.parametrize("program", ["never ends"], indirect=True)
def test_a_child_that_does_not_end_is_killed(program: Program) -> None:
    """It has a limited time, and so have its children."""
    program.process.send_signal(signal.SIGTERM)
    assert program.wait()[0] == 128 + signal.SIGKILL
    assert program.alive == []


@pytest.mark.parametrize("program", ["never ends"], indirect=True)
def test_a_killed_child_leaves_nothing(program: Program) -> None:
    """The supervisor ends what the child can no longer end."""
    program.child.kill()
    assert program.wait()[0] == 128 + signal.SIGKILL
    assert program.alive == []


@pytest.mark.parametrize("program", ["ends in order"], indirect=True)
def test_the_child_ends_in_order_when_the_supervisor_is_killed(program: Program) -> None:
    """The kernel sends it SIGINT."""
    program.process.kill()
    assert program.wait()[1] == "SIGINT"
    program.child.wait(timeout=10)


def test_a_background_job_of_a_script_ends_at_sigint(tmp_path: Path) -> None:
    """Shells start it with SIGINT ignored; `kill -INT` is meant all the same."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        program = Program(tmp_path, "ends in order")
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == (3, "SIGINT")
    finally:
        program.kill()


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    """`nohup siglip-serve serve …` goes on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # children inherit it
    try:
        program = Program(tmp_path, "ends in order")
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        program.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert program.process.poll() is None
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == (3, "SIGINT")
    finally:
        program.kill()

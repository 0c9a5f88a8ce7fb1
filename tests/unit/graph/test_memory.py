"""Freed memory goes back to the system."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading, time
from serve_app.graph import memory

memory.MIN_PAUSE_S = -1.0
freed = memory.FreedMemory()
before = memory._resident_bytes()

def burst():  # in a thread, as decoding is: every thread's arena keeps what was freed in it
    for _ in range(3000):
        blocks.append(bytearray(b"x" * 100_000))
        kept.append(bytes(2000))  # between two of them, so that the arena's end is never free

kept, blocks = [], []
threads = [threading.Thread(target=burst) for _ in range(2)]
for thread in threads:
    thread.start()
    thread.join()
peak = memory._resident_bytes()
blocks.clear()
freed.update(is_idle=False)
busy = memory._resident_bytes()
freed.update(is_idle=True)
freed._thread.join()
print(before, peak, busy, memory._resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_an_idle_process_returns_what_a_burst_left() -> None:
    """600 MB were allocated and freed with settings that keep them; after a look while idle the
    process is small again.
    """
    environment = {
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "PATH": "",
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    before, peak, busy, after = (
        (int(number) / 2**20 for number in ran.stdout.split()) if ran.stdout else (0, 0, 0, 0)
    )
    assert peak - before > 200, ran.stdout + ran.stderr
    assert busy > peak - 20
    assert after < before + 30

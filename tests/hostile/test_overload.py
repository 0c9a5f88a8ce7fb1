"""Attacks that once stopped the service, for a few seconds each, beside a client that behaves.

How fast the good client is answered is measured by `python -m bench.attacks`; here it is answered
at all, and memory stays within what the plan gives the replicas.
"""

import time

import pytest

from bench.attacks import ATTACKS, MIB, Target, memory_mib, run_attack
from serve_app.api.keys import NewKey
from serve_app.hardware.host_memory import PROCESS_BYTES, preprocessor_bytes
from tests.hostile.conftest import INGRESSES
from tests.service import Service

pytestmark = pytest.mark.parametrize(
    "exposed", [INGRESSES[0]], indirect=True
)  # the one that is used by default
SECONDS = 3.0
SETTLE_S = 0.5
CHOSEN = (
    "20,000 JPEG scans",
    "64 PNGs of 6 MP, quality=high",
    "48 large responses unread",
    "80 bodies of 60 MB",
    "8 clients x 64 images of 1 MP",
    "700 clients",
)


@pytest.mark.parametrize("name", CHOSEN)
async def test_a_good_client_is_answered_beside_an_attack(
    exposed: Service, keys: dict[str, NewKey], name: str
) -> None:
    """Every answer is 200, and the Preprocessor stays within the memory that pods get for it."""
    assert name in ATTACKS
    target = Target(
        "127.0.0.1", exposed.config["serving"]["port"], keys["bad"].key, keys["good"].key
    )
    outcome = await run_attack(exposed, target, name, SECONDS, SETTLE_S)
    assert set(outcome.good.answered) == {"200"}, (outcome.good.answered, exposed.lines[-5:])
    assert sum(outcome.attacker.values()) > 0
    (preprocessor,) = [
        mib for process, mib in outcome.peak_mib.items() if process.endswith(":Preprocessor")
    ]
    assert preprocessor * MIB < preprocessor_bytes(384 * MIB, 200 * MIB)


def test_memory_is_given_back_afterwards(exposed: Service) -> None:
    """Seconds after the attacks the Preprocessor is about as small as one without requests."""

    def preprocessor_mib() -> int:
        (mib,) = [
            mib for process, mib in memory_mib(exposed).items() if process.endswith(":Preprocessor")
        ]
        return mib

    deadline = time.monotonic() + 40
    while preprocessor_mib() * MIB >= PROCESS_BYTES and time.monotonic() < deadline:
        time.sleep(1)
    assert preprocessor_mib() * MIB < PROCESS_BYTES

"""Memory of the replicas without a tower is the sum of what the limits allow, and pods get it."""

import pytest

from serve_app.config.service import parse_config
from serve_app.demo.settings import demo_config
from serve_app.hardware.detection import parse_hardware
from serve_app.hardware.host_memory import (
    MIB,
    ScoredVocabularies,
    postprocessor_bytes,
    preprocessor_bytes,
)
from serve_app.hardware.planning import plan_service
from serve_app.kuberay.groups import worker_groups


def test_a_preprocessor_has_room_for_all_its_budgets() -> None:
    """By hand: 320 + 384 + 2 x 200 + 256 + 128 MiB, and 15 % kept free."""
    assert preprocessor_bytes(384 * MIB, 200 * MIB) == int(1488 * MIB / 0.85)


def test_every_limit_counts() -> None:
    """More bytes held, larger images, more tags, more embeddings or a larger cache: more memory."""
    assert preprocessor_bytes(385 * MIB, 200 * MIB) > preprocessor_bytes(384 * MIB, 200 * MIB)
    assert preprocessor_bytes(384 * MIB, 201 * MIB) > preprocessor_bytes(384 * MIB, 200 * MIB)
    small = ScoredVocabularies(1000, 1000, 1152)
    least = postprocessor_bytes(small, 256 * MIB, 1024)
    assert postprocessor_bytes(ScoredVocabularies(30_000, 20_000, 1152), 256 * MIB, 1024) > least
    assert postprocessor_bytes(small, 257 * MIB, 1024) > least
    assert postprocessor_bytes(small, 256 * MIB, 1025) > least


def test_pods_follow_the_limits() -> None:
    """A service that may hold 8 GiB of bodies gets pods that are larger by that much for each
    Preprocessor.
    """
    base = {
        "labels": ["cat"],
        "plugins": {"siglip": {"model": str(demo_config().siglip.model_source)}},
        "hardware": "cpu8",
    }
    limits = [{"max_held_bytes": held} for held in (2**29, 2**33)]
    plans = [
        plan_service(parse_config(base | {"limits": own}), parse_hardware("cpu8")) for own in limits
    ]
    small, large = (worker_groups([plan])[0].memory_gib for plan in plans)
    grown = plans[1].host_bytes["preprocessor"] - plans[0].host_bytes["preprocessor"]
    assert grown == pytest.approx((2**33 - 2**29) / 0.85, abs=1)
    assert large - small >= 8

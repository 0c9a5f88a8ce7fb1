"""Simulates a day of bursty load under our scaling and under Serve's default policy.

`python -m bench.autoscaling` prints late images and GPU hours. Both policies see what they would
see in Serve: numbers averaged over 10 s, reported every 2 s, replicas that take 40 s to start, and
the same bounds. Serve's policy is Serve's own code with its own delays. The simulation has one
queue, and each encoder does a fixed number of images per second.
"""

import argparse
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.serve import autoscaling_policy
from ray.serve.autoscaling_policy import (
    _apply_autoscaling_config,
    replica_queue_length_autoscaling_policy,
)
from ray.serve.config import AutoscalingConfig

from serve_app.hardware.scaling import HOLD_S, Bounds, History, Load, damp, wanted_replicas

PER_ENCODER = 40.0
MAX_REPLICAS = 16
START_S = 40.0
LOOK_BACK_S = 10.0
STEP_S = 1.0
LATE_S = 2.0
"""An image that waits longer than this is late."""
DAY_S = 86_400
MAX_IN_FLIGHT = 32.0
"""Maximum number of micro-batched images at each encoder; Serve's policy sees only these."""

Policy = Callable[[float, float, float, int, int], int]
"""Takes the time in seconds, arrivals per second, images waiting, replicas running and the target.

Returns the new target.
"""


@dataclass
class Outcome:
    """What a day cost and how it was served."""

    images: float = 0.0
    late: float = 0.0
    gpu_hours: float = 0.0
    changes: int = 0
    longest_s: float = 0.0


def day_of_load(seed: int) -> list[float]:
    """Return images per second for every second of a day: a daily wave, bursts and noise."""
    draw = random.Random(seed)
    wave = [120 + 100 * math.sin(2 * math.pi * (second / DAY_S - 0.3)) for second in range(DAY_S)]
    for _ in range(30):
        start = draw.randrange(DAY_S)
        length = draw.randrange(60, 900)
        height = draw.uniform(50, 350)
        for second in range(start, min(DAY_S, start + length)):
            wave[second] += height
    return [max(0.0, rate * draw.uniform(0.8, 1.2)) for rate in wave]


def simulate(load: list[float], decide: Policy) -> Outcome:
    """Run a policy over a day."""
    outcome = Outcome()
    waiting = 0.0
    running = 1
    target = 1
    starting: list[float] = []
    lately: deque[tuple[float, float]] = deque(maxlen=int(LOOK_BACK_S / STEP_S))
    for second, arrivals in enumerate(load):
        now_s = float(second)
        running += sum(ready <= now_s for ready in starting)
        starting = [ready for ready in starting if ready > now_s]
        capacity = running * PER_ENCODER * STEP_S
        wait_s = waiting / (running * PER_ENCODER)
        outcome.images += arrivals
        outcome.late += arrivals if wait_s > LATE_S else 0.0
        outcome.longest_s = max(outcome.longest_s, wait_s)
        waiting = max(0.0, waiting + arrivals - capacity)
        outcome.gpu_hours += (running + len(starting)) / 3600
        lately.append((arrivals, waiting))
        if second % 2 == 0:
            means = [sum(values) / len(lately) for values in zip(*lately, strict=True)]
            wish = decide(now_s, means[0], means[1], running, target)
            outcome.changes += wish != target
            more = wish - running - len(starting)
            if more > 0:
                starting += [now_s + START_S] * more
            while more < 0 and starting:
                starting.pop()
                more += 1
            running = running + min(0, more)
            target = wish
    return outcome


def ours() -> Policy:
    """Return our scaling with its history."""
    history: History = ()

    def decide(now_s: float, arrivals: float, waiting: float, running: int, target: int) -> int:
        nonlocal history
        load = Load(arrivals, waiting, 0.0, PER_ENCODER, None, 0.0)
        wanted = wanted_replicas(load, {"ImageEncoder": Bounds(target, running, 1, MAX_REPLICAS)})[
            "ImageEncoder"
        ]
        result, history = damp(wanted, history, now_s, HOLD_S)
        return result

    return decide


def serves_own(
    target_ongoing: float, upscale_s: float, downscale_s: float, sees_queue: bool
) -> Policy:
    """Return Serve's default policy for the encoder deployment, with its own delays.

    Args:
        target_ongoing: `target_ongoing_requests`.
        upscale_s: `upscale_delay_s`.
        downscale_s: `downscale_delay_s`.
        sees_queue: Whether it counts the images that wait in the Preprocessor, which Serve does not
            see. Otherwise it counts the calls at the encoders, which the Preprocessor bounds.
    """
    config = AutoscalingConfig(
        min_replicas=1,
        max_replicas=MAX_REPLICAS,
        target_ongoing_requests=target_ongoing,
        upscale_delay_s=upscale_s,
        downscale_delay_s=downscale_s,
    )
    policy: Any = _apply_autoscaling_config(replica_queue_length_autoscaling_policy)
    state: dict[str, Any] = {}

    def decide(now_s: float, arrivals: float, waiting: float, running: int, target: int) -> int:
        nonlocal state
        busy = min(running * MAX_IN_FLIGHT, arrivals * MAX_IN_FLIGHT / PER_ENCODER / 2)
        ongoing = busy + waiting if sees_queue else min(running * MAX_IN_FLIGHT, busy + waiting)
        context = SimpleNamespace(
            current_num_replicas=running,
            target_num_replicas=target,
            total_num_requests=ongoing,
            config=config,
            policy_state=state,
        )
        with SimulatedClock(now_s):
            wanted, state = policy(context)
        return max(1, min(MAX_REPLICAS, math.ceil(wanted)))

    return decide


class SimulatedClock:
    """Let Serve's delays go by the simulated seconds."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def __enter__(self) -> None:
        self._real = autoscaling_policy.time
        autoscaling_policy.time = SimpleNamespace(time=lambda: self._now_s)  # type: ignore[assignment]

    def __exit__(self, *exc: object) -> None:
        autoscaling_policy.time = self._real


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    policies: dict[str, Callable[[], Policy]] = {
        "ours": ours,
        "Serve's default (target 2, up 30 s, down 600 s)": lambda: serves_own(
            2, 30, 600, sees_queue=False
        ),
        "Serve's, target 16, up 30 s, down 600 s": lambda: serves_own(
            16, 30, 600, sees_queue=False
        ),
        "Serve's, target 16, up 5 s, down 120 s": lambda: serves_own(16, 5, 120, sees_queue=False),
        "the same, with the queue counted": lambda: serves_own(16, 5, 120, sees_queue=True),
        "always all": lambda: lambda *_: MAX_REPLICAS,
    }
    columns = ["policy", f"late (> {LATE_S:g} s)", "longest wait", "GPU-hours", "changes a day"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    days = [day_of_load(seed) for seed in range(given.seeds)]
    for name, make in policies.items():
        outcomes = [simulate(day, make()) for day in days]
        late = sum(o.late for o in outcomes) / sum(o.images for o in outcomes)
        longest_s = max(outcome.longest_s for outcome in outcomes)
        hours = sum(outcome.gpu_hours for outcome in outcomes) / len(outcomes)
        changes = sum(outcome.changes for outcome in outcomes) / len(outcomes)
        print(f"| {name} | {late:.2%} | {longest_s:.0f} s | {hours:.0f} | {changes:.0f} |")


if __name__ == "__main__":
    main()

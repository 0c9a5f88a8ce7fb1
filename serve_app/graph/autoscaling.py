"""Serve's application-level autoscaling policy.

It reads the metrics that replicas report, and returns the numbers of replicas that
`hardware/scaling.py` computes. Serve's controller calls it ten times a second, so it only adds up a
few numbers. Serve also applies the bounds of each deployment's `autoscaling_config`. If a request
waits for a deployment without replicas, Serve starts one itself.
"""

import time
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

from serve_app.hardware.scaling import HOLD_S, Bounds, Load, damp, wanted_replicas

POLICY = "serve_app.graph.autoscaling:GraphScaling"
ARRIVALS = "images_arriving_per_second"
WAITING = "images_waiting"
UNDECODED = "images_undecoded"
PER_PREPROCESSOR = "images_decodable_per_second"
PER_ENCODER = "images_encodable_per_second"


class GraphScaling:
    """The policy of one application, which Serve calls with the state of its deployments."""

    def __init__(self, scale_down_delay_s: float = HOLD_S) -> None:
        self._hold_s = scale_down_delay_s

    def __call__(
        self, contexts: Mapping[Any, AutoscalingContext]
    ) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
        """Return the number of replicas of each deployment, and its state for the next call."""
        by_name = {context.deployment_name: context for context in contexts.values()}
        wanted = wanted_replicas(
            _load(by_name), {name: _bounds(context) for name, context in by_name.items()}
        )
        targets: dict[Any, int] = {}
        states: dict[Any, dict[str, Any]] = {}
        for deployment, context in contexts.items():
            history = tuple(
                (time_s, count) for time_s, count in context.policy_state.get("history", ())
            )
            now_s = context.current_time or time.time()
            targets[deployment], history = damp(
                wanted[context.deployment_name], history, now_s, self._hold_s
            )
            states[deployment] = {"history": history}
        return targets, states


def _bounds(context: AutoscalingContext) -> Bounds:
    return Bounds(
        context.target_num_replicas,
        context.current_num_replicas,
        context.capacity_adjusted_min_replicas,
        context.capacity_adjusted_max_replicas,
    )


def _load(by_name: Mapping[str, AutoscalingContext]) -> Load:
    text = by_name.get("TextEncoder")
    arriving = _reported(by_name, "Preprocessor", ARRIVALS)
    return Load(
        arrivals=sum(arriving),
        waiting=sum(_reported(by_name, "Preprocessor", WAITING)),
        undecoded=sum(_reported(by_name, "Preprocessor", UNDECODED)),
        per_encoder=_mean(_reported(by_name, "ImageEncoder", PER_ENCODER)),
        per_preprocessor=_mean(_reported(by_name, "Preprocessor", PER_PREPROCESSOR)),
        text_calls=text.total_num_requests if text else 0.0,
    )


def _reported(
    by_name: Mapping[str, AutoscalingContext], deployment: str, metric: str
) -> list[float]:
    """Return the values of a metric by replica, averaged by Serve over its look-back period."""
    context = by_name.get(deployment)
    return list((context.aggregated_metrics or {}).get(metric, {}).values()) if context else []


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if value > 0]
    return sum(known) / len(known) if known else None

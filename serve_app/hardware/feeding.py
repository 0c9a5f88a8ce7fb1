"""The deployments before and after the encoders, and the bounds that every deployment gets."""

import math

from serve_app.config.serving import DeploymentScale, Serving
from serve_app.hardware.plan import DeploymentPlan
from serve_app.hardware.reasons import Reason
from serve_app.hardware.scaling import POSTPROCESSOR_PER_SECOND

DECODE_S = 0.015
"""Seconds of one CPU to decode and resize an image of 2 megapixels.

Measured between 10 and 20 ms; smaller images take less.
"""
PREPROCESSOR_CPUS = 2.0
"""CPUs of a Preprocessor where there are enough: its event loop keeps one core busy at some 600
requests a second."""


def bounded(
    scale: DeploymentScale,
    num_cpus: float,
    num_gpus: float,
    max_replicas: int,
    per_second: float,
) -> DeploymentPlan:
    """Return a deployment where explicit values of its block replace the planned ones."""
    if scale.num_replicas != "auto":
        min_replicas = max_replicas = scale.num_replicas
    else:
        min_replicas = scale.min_replicas
        max_replicas = max(max_replicas, 1, min_replicas)
        if scale.max_replicas != "auto":
            max_replicas = scale.max_replicas

    return DeploymentPlan(
        num_cpus if scale.fixed_cpus is None else scale.fixed_cpus,
        num_gpus if scale.fixed_gpus is None else scale.fixed_gpus,
        min_replicas,
        max_replicas,
        per_second,
    )


def feed(
    serving: Serving, rate: float, cpus: float, post_cpus: float, pre_cpus: float
) -> tuple[dict[str, DeploymentPlan], Reason]:
    """Return as many Preprocessors and Postprocessors for a rate as the CPUs hold, and why.

    Args:
        serving: The `serving` block, for its explicit values.
        rate: Images per second that the encoders take.
        cpus: CPUs that the encoders leave.
        post_cpus: CPUs of a Postprocessor.
        pre_cpus: CPUs of a Preprocessor.
    """
    max_post = max(1, math.ceil(rate / POSTPROCESSOR_PER_SECOND))
    if post_cpus:
        max_post = max(1, min(max_post, math.floor(cpus / 4 / post_cpus)))
    post = bounded(serving.postprocessor, post_cpus, 0.0, max_post, POSTPROCESSOR_PER_SECOND)

    fixed_cpus = serving.preprocessor.fixed_cpus
    num_cpus = pre_cpus if fixed_cpus is None else fixed_cpus
    per_second = max(0.25, num_cpus) / DECODE_S
    wanted = max(1, math.ceil(rate / per_second))
    left = cpus - post.num_cpus * post.max_replicas
    held = max(1, math.floor(left / max(num_cpus, 0.01) + 1e-6))
    pre = bounded(serving.preprocessor, pre_cpus, 0.0, min(wanted, held), per_second)

    why = (
        f"decoding takes about {DECODE_S * 1000:.0f} ms of a CPU, "
        f"so {wanted} with {num_cpus:g} CPUs each would keep the encoders busy"
    )
    if pre.max_replicas < wanted:
        limit = pre.max_replicas * per_second
        why += (
            f"; the {cpus:g} CPUs beside the encoders hold {held}, "
            f"so decoding is what limits: {limit:.0f} images/s"
        )
    replicas = f"{pre.min_replicas} to {pre.max_replicas} replicas"
    return {"preprocessor": pre, "postprocessor": post}, Reason("preprocessor", replicas, why)

"""The deployments that feed the encoders and take their answers, and the bounds that every
deployment gets.
"""

import math

from serve_app.hardware.plan import Asked, AskedScale, DeploymentPlan, Reason
from serve_app.hardware.scaling import POSTPROCESSOR_PER_SECOND

DECODE_S = 0.015
"""Seconds of one CPU to decode and resize a picture of 2 megapixels; measured between 10 and 20 ms.

Smaller ones take less.
"""
PREPROCESSOR_CPUS = 2.0
"""Of a Preprocessor where there are CPUs enough: its event loop holds one core at some 600 requests
a second."""


def bounded(
    asked: AskedScale, num_cpus: float, num_gpus: float, most: int, per_second: float
) -> DeploymentPlan:
    """Return a deployment with what is asked in place of what would be planned: `num_cpus`,
    `num_gpus` and at most `most` replicas.
    """
    if asked.num_replicas is not None:
        least = most = asked.num_replicas
    else:
        least = asked.min_replicas
        most = max(most, 1, least) if asked.max_replicas is None else asked.max_replicas
    cpus = num_cpus if asked.num_cpus is None else asked.num_cpus
    return DeploymentPlan(
        cpus, num_gpus if asked.num_gpus is None else asked.num_gpus, least, most, per_second
    )


def feed(
    asked: Asked, rate: float, cpus: float, post_cpus: float, pre_cpus: float
) -> tuple[dict[str, DeploymentPlan], Reason]:
    """Return Preprocessors and Postprocessors for a rate, as many as the CPUs hold, and why.

    Args:
        asked: What the configuration fixes.
        rate: Images a second that the encoders take.
        cpus: What the encoders leave.
        post_cpus: Of a Postprocessor.
        pre_cpus: Of a Preprocessor.
    """
    wanted_post = max(1, math.ceil(rate / POSTPROCESSOR_PER_SECOND))
    most_post = (
        max(1, min(wanted_post, math.floor(cpus / 4 / post_cpus))) if post_cpus else wanted_post
    )
    post = bounded(
        asked.scale("postprocessor"), post_cpus, 0.0, most_post, POSTPROCESSOR_PER_SECOND
    )
    scale = asked.scale("preprocessor")
    num_cpus = pre_cpus if scale.num_cpus is None else scale.num_cpus
    per_second = max(0.25, num_cpus) / DECODE_S
    wanted = max(1, math.ceil(rate / per_second))
    held = max(
        1, math.floor((cpus - post.num_cpus * post.max_replicas) / max(num_cpus, 0.01) + 1e-6)
    )
    pre = bounded(scale, pre_cpus, 0.0, min(wanted, held), per_second)
    why = f"decoding takes about {DECODE_S * 1000:.0f} ms of a CPU, so {wanted} with {num_cpus:g} CPUs each would keep the encoders busy"
    if pre.max_replicas < wanted:
        limit = pre.max_replicas * per_second
        why += f"; the {cpus:g} CPUs beside the encoders hold {held}, so decoding is what limits: {limit:.0f} images/s"
    return {"preprocessor": pre, "postprocessor": post}, Reason(
        "preprocessor", f"{pre.min_replicas} to {pre.max_replicas} replicas", why
    )

"""From a checkpoint, what is asked and the hardware to a plan: dtype, batch, GPU fractions,
replicas, and why.

Arithmetic only, standard library only. The numbers it rests on are in `accelerators.py` and
`footprint.py`; what was assumed and not measured says so there. Plans for GPUs are made in
`gpu_plan.py`, others in `cpu_plan.py`.
"""

import dataclasses

from serve_app.errors import ConfigError
from serve_app.hardware.cpu_plan import plan_cpus
from serve_app.hardware.detection import Hardware
from serve_app.hardware.gpu_plan import plan_gpus
from serve_app.hardware.plan import Asked, Plan
from serve_app.hardware.precision import resolve_precision
from serve_app.siglip.architecture import Architecture


def make_plan(
    name: str,
    shape: Architecture,
    asked: Asked,
    hardware: Hardware,
    has_flash_attention: bool = False,
) -> Plan:
    """Plan a checkpoint on some hardware.

    Args:
        name: The checkpoint's, for messages.
        shape: Its towers.
        asked: What the configuration fixes.
        hardware: What there is, or what the cluster may grow to.
        has_flash_attention: Whether the flash-attn package is installed.

    Raises:
        ConfigError: It cannot work; one sentence with what would.
    """
    if hardware.cpus <= 0:
        raise ConfigError(
            f"{hardware.described} has no CPU yet; set hardware to what the cluster may grow to, such as l4x2+32cpu or cpu8."
        )
    if asked.scale("image_encoder").num_gpus == 0 and asked.device == "auto":
        hardware = dataclasses.replace(hardware, gpus=0, accelerator=None)  # said to take no GPU
    resolved = resolve_precision(asked, shape.family, hardware, has_flash_attention)
    _check_gpus_are_used(asked, resolved.device, hardware)
    planner = plan_gpus if resolved.device == "cuda" else plan_cpus
    plan = planner(name, shape, asked, hardware, resolved)
    return dataclasses.replace(plan, advice=(*plan.advice, *shortages(plan)))


def shortages(plan: Plan) -> tuple[str, ...]:
    """Return what keeps the fewest replicas of a plan from being placed on its hardware, a sentence
    each.
    """
    needed = sum(planned.num_cpus * planned.min_replicas for planned in plan.deployments.values())
    hardware = plan.hardware
    found = []
    if needed > hardware.cpus + 1e-6:
        found.append(
            f"at least {needed:g} CPUs are needed, and {hardware.described} has fewer; ask for fewer or smaller replicas."
        )
    for name, planned in plan.deployments.items():
        if planned.num_cpus > hardware.node_cpus + 1e-6:
            found.append(
                f"{name} takes {planned.num_cpus:g} CPUs, and the largest node has {hardware.node_cpus:g}; ask for fewer num_cpus."
            )
    return tuple(found)


def _check_gpus_are_used(asked: Asked, device: str, hardware: Hardware) -> None:
    """Refuse parts of a GPU for what runs on the CPU, and a GPU device without a part of one."""
    for name in ("image_encoder", "text_encoder"):
        share = asked.scale(name).num_gpus
        if share and device != "cuda":
            why = (
                f"device is {device}"
                if asked.device != "auto"
                else f"{hardware.described} has no GPU that it could take"
            )
            raise ConfigError(
                f"serving.{name}.num_gpus is {share:g}, and {why}; leave it out, or set device or hardware."
            )
        if share == 0 and asked.device == "cuda":
            raise ConfigError(
                f"serving.{name}.num_gpus is 0, and device is cuda; leave num_gpus out, or set device to auto."
            )

"""From a configuration, the shape of its checkpoint and the hardware to a plan.

Arithmetic only. The numbers that plans rest on are in `accelerators.py` and `footprint.py`, which
say what was assumed and not measured. Plans for GPUs are made in `gpu_plan.py`, others in
`cpu_plan.py`.
"""

import dataclasses

from serve_app.config.plugin import SiglipPlugin
from serve_app.config.service import ServiceConfig
from serve_app.config.serving import Serving
from serve_app.errors import ConfigError
from serve_app.hardware.cpu_plan import plan_cpus
from serve_app.hardware.detection import Hardware
from serve_app.hardware.gpu_plan import plan_gpus
from serve_app.hardware.host_memory import host_bytes
from serve_app.hardware.plan import Plan
from serve_app.hardware.precision import cpu_text_precision, resolve_precision
from serve_app.hardware.workload import Workload
from serve_app.siglip.architecture import Architecture

SLACK = 1e-6
"""Tolerance for sums of fractions."""


def make_plan(config: ServiceConfig, shape: Architecture, hardware: Hardware) -> Plan:
    """Plan a configuration on some hardware.

    Args:
        config: The configuration.
        shape: Shape of its checkpoint.
        hardware: What there is, or what the cluster may grow to.

    Raises:
        ConfigError: It cannot work; the message is one sentence that says what would.
    """
    if hardware.cpus <= 0:
        raise ConfigError(
            f"{hardware.described} has no CPU yet; set hardware to what the cluster may grow to, "
            "such as l4x2+32cpu or cpu8."
        )
    plugin = config.siglip
    if config.serving.image_encoder.fixed_gpus == 0 and plugin.device == "auto":
        # an encoder without a part of a GPU is for the CPU
        hardware = dataclasses.replace(hardware, gpus=0, accelerator=None)

    resolution = resolve_precision(plugin, shape.family, hardware)
    precision = resolution.precision
    _check_gpus_are_used(plugin, config.serving, precision.device, hardware)
    text_cpu_precision = cpu_text_precision(plugin, hardware)
    work = Workload(config, shape, precision, text_cpu_precision, hardware)
    sizes = [len(registered.vocabulary.tags) for registered in config.vocabularies.values()]
    plan = plan_gpus(work) if precision.device == "cuda" else plan_cpus(work)
    return dataclasses.replace(
        plan,
        reasons=(*resolution.reasons, *plan.reasons),
        advice=(*resolution.advice, *plan.advice, *shortages(plan)),
        host_bytes=host_bytes(config.limits, sizes, shape.text.hidden_size),
    )


def shortages(plan: Plan) -> tuple[str, ...]:
    """Return a sentence for each reason why the minimum of replicas cannot be placed."""
    hardware = plan.hardware
    found = []
    if plan.min_cpus > hardware.cpus + SLACK:
        found.append(
            f"at least {plan.min_cpus:g} CPUs are needed, and {hardware.described} has fewer; "
            "ask for fewer or smaller replicas."
        )
    for name, planned in plan.deployments.items():
        if planned.num_cpus > hardware.node_cpus + SLACK:
            found.append(
                f"{name} takes {planned.num_cpus:g} CPUs, and the largest node has "
                f"{hardware.node_cpus:g}; ask for fewer num_cpus."
            )
    return tuple(found)


def _check_gpus_are_used(
    plugin: SiglipPlugin, serving: Serving, device: str, hardware: Hardware
) -> None:
    """Refuse a part of a GPU for what runs on a CPU, and device cuda without a part of one."""
    _check_host_deployments(serving)
    requested = plugin.device
    for name in ("image_encoder", "text_encoder"):
        share = serving.scale(name).fixed_gpus
        if share and device != "cuda":
            why = (
                f"{hardware.described} has no GPU that it could take"
                if requested == "auto"
                else f"device is {device}"
            )
            raise ConfigError(
                f"serving.{name}.num_gpus is {share:g}, and {why}; "
                "leave it out, or set device or hardware."
            )
        if share == 0 and requested == "cuda":
            raise ConfigError(
                f"serving.{name}.num_gpus is 0, and device is cuda; "
                "leave num_gpus out, or set device to auto."
            )


def _check_host_deployments(serving: Serving) -> None:
    for name in ("preprocessor", "postprocessor"):
        if share := serving.scale(name).fixed_gpus:
            raise ConfigError(
                f"serving.{name}.num_gpus is {share:g}; it does nothing on a GPU, leave it out."
            )

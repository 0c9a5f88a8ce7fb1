"""From a configuration to a plan, and from a plan to a configuration without an `auto` that the
hardware decides.
"""

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from serve_app.config.service import ServiceConfig
from serve_app.config.serving import DEPLOYMENTS, DeploymentScale
from serve_app.errors import ConfigError
from serve_app.hardware.detection import Hardware, parse_hardware
from serve_app.hardware.host_memory import (
    ScoredVocabularies,
    postprocessor_bytes,
    preprocessor_bytes,
)
from serve_app.hardware.plan import Asked, AskedScale, Plan
from serve_app.hardware.planner import make_plan
from serve_app.siglip.architecture import Architecture, read_architecture
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.json_files import read_json
from serve_app.siglip.released import find_released


def plan_service(config: ServiceConfig, look: Callable[[bool], Hardware]) -> Plan:
    """Plan a service on the hardware that its configuration names, or else on what there is.

    Args:
        config: The service's.
        look: Says what there is, with GPUs or without; not called where the configuration names the
            hardware.

    Raises:
        ConfigError: It cannot work; says what would.
    """
    hardware = (
        look(config.siglip.device != "cpu")
        if config.hardware == "auto"
        else parse_hardware(config.hardware)
    )
    architecture = architecture_of(config)
    plan = make_plan(
        config.siglip.model_shown,
        architecture,
        _asked(config),
        hardware,
        find_spec("flash_attn") is not None,
    )
    return dataclasses.replace(plan, host_bytes=host_bytes(config, architecture))


def host_bytes(config: ServiceConfig, architecture: Architecture) -> dict[str, int]:
    """Return the maximum memory in bytes of each replica without a tower, by deployment."""
    limits = config.limits
    sizes = [len(registered.vocabulary.tags) for registered in config.vocabularies.values()]
    vocabularies = ScoredVocabularies(
        sum(sizes), max([*sizes, limits.max_labels_per_request]), architecture.text.hidden_size
    )
    return {
        "preprocessor": preprocessor_bytes(limits.max_held_bytes, limits.max_decode_bytes),
        "postprocessor": postprocessor_bytes(
            vocabularies, limits.max_cached_label_bytes, limits.max_embeddings_per_request
        ),
    }


def architecture_of(config: ServiceConfig) -> Architecture:
    """Return the shape of a configuration's checkpoint: from the table for released ones, else from
    its `config.json`.

    Raises:
        ConfigError: There is no such folder or repository, or it is no SigLIP checkpoint.
    """
    released = find_released(config.siglip.model)
    if released is not None:
        return released.architecture
    checkpoint = load_checkpoint(config.siglip.model_source, config.revision)
    return read_architecture(
        read_json(checkpoint.folder / "config.json", "it says which model the weights belong to"),
        checkpoint.family,
    )


def resolve_config(config: ServiceConfig, plan: Plan) -> ServiceConfig:
    """Return a configuration with the plan's values in place of `auto`; what was fixed stays as it
    is.
    """
    serving: dict[str, Any] = {}
    for name in DEPLOYMENTS:
        scale: DeploymentScale = getattr(config.serving, name)
        planned = plan.deployments[name]
        values: dict[str, Any] = {"num_cpus": planned.num_cpus, "num_gpus": planned.num_gpus}
        if planned.min_replicas == planned.max_replicas:
            values |= {"num_replicas": planned.max_replicas, "max_replicas": "auto"}
        else:
            values |= {"min_replicas": planned.min_replicas, "max_replicas": planned.max_replicas}
        serving[name] = scale.model_copy(update=values)
    # attention stays as asked: whether flash-attn is installed is known on the node that loads the
    # model
    # and on CPUs the dtype, since whether they compute bfloat16 is known there
    dtype = plan.dtype if plan.device == "cuda" else config.siglip.dtype
    plugin = config.siglip.model_copy(
        update={"batch_size": plan.batch_size, "dtype": dtype, "device": _device(config, plan)}
    )
    plugins = config.plugins.model_copy(update={"siglip": plugin})
    return config.model_copy(
        update={"plugins": plugins, "serving": config.serving.model_copy(update=serving)}
    )


def _device(config: ServiceConfig, plan: Plan) -> str:
    """Return the device for both towers; `auto` where they differ, since each replica sees the GPU
    that it was given or none.
    """
    shared = plan.device != "cuda" or plan.deployments["text_encoder"].num_gpus > 0
    return config.siglip.device if config.siglip.device != "auto" or not shared else plan.device


def _asked(config: ServiceConfig) -> Asked:
    plugin = config.siglip
    scales = tuple(
        (name, _asked_scale(name, getattr(config.serving, name))) for name in DEPLOYMENTS
    )
    return Asked(
        device=plugin.device,
        dtype=plugin.dtype,
        attention=plugin.attention,
        quantization=plugin.quantization,
        batch_size=None if plugin.batch_size == "auto" else plugin.batch_size,
        max_num_patches=plugin.max_num_patches,
        deployments=scales,
    )


def _asked_scale(name: str, scale: DeploymentScale) -> AskedScale:
    values = {
        key: getattr(scale, key) for key in ("num_cpus", "num_gpus", "num_replicas", "max_replicas")
    }
    fixed = {key: None if value == "auto" else value for key, value in values.items()}
    if name in ("preprocessor", "postprocessor") and fixed["num_gpus"]:
        raise ConfigError(
            f"serving.{name}.num_gpus is {fixed['num_gpus']:g}; it does nothing on a GPU, leave it out."
        )
    return AskedScale(min_replicas=scale.min_replicas, **fixed)

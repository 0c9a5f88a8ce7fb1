"""Plans and precisions from what has to be read first: the checkpoint's shape and this machine.

Not here: the arithmetic (`planner.py`), and what a Ray cluster has (`processes/cluster_nodes.py`).
"""

from importlib.metadata import PackageNotFoundError, version

from serve_app.config.plugin import SiglipPlugin
from serve_app.config.service import ServiceConfig
from serve_app.hardware.detection import (
    Hardware,
    detect_features,
    detect_machine,
    parse_hardware,
)
from serve_app.hardware.plan import Plan
from serve_app.hardware.planner import make_plan
from serve_app.hardware.precision import resolve_precision
from serve_app.siglip.architecture import Architecture, read_architecture
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.json_files import read_json
from serve_app.siglip.precision import Precision
from serve_app.siglip.released import find_released


def plan_service(config: ServiceConfig, hardware: Hardware) -> Plan:
    """Plan a service on some hardware.

    Raises:
        ConfigError: It cannot work; the message says what would.
    """
    return make_plan(config, architecture_of(config.siglip, config.revision), hardware)


def hardware_here(named: str, plugin: SiglipPlugin) -> Hardware:
    """Return this machine, or named GPUs and CPUs with what this machine can run.

    Args:
        named: The configuration's `hardware`.
        plugin: The configuration's plugin block.

    Raises:
        ConfigError: The named hardware cannot be read.
    """
    if named == "auto":
        return detect_machine(with_gpus=plugin.device != "cpu")
    return parse_hardware(named).with_features(detect_features())


def precision_here(plugin: SiglipPlugin, family: Family) -> Precision:
    """Return what the towers run as in one process on this machine.

    Raises:
        ConfigError: The machine or the family cannot run an explicit value.
    """
    with_gpus = plugin.device != "cpu" and not _is_cpu_build_of_torch()
    return resolve_precision(plugin, family, detect_machine(with_gpus)).precision


def architecture_of(plugin: SiglipPlugin, revision: str | None) -> Architecture:
    """Return the shape of a checkpoint: released ones from the table, others from `config.json`.

    Raises:
        ConfigError: There is no such folder or repository, or it is no SigLIP checkpoint.
    """
    released = find_released(plugin.model)
    if released is not None:
        return released.architecture
    checkpoint = load_checkpoint(plugin.model_source, revision)
    return read_architecture(
        read_json(checkpoint.folder / "config.json", "it says which model the weights belong to"),
        checkpoint.family,
    )


def _is_cpu_build_of_torch() -> bool:
    """Whether the installed torch cannot use a GPU, by its version: importing it takes seconds."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False

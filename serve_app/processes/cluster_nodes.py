"""The hardware of the Ray cluster that this process is connected to.

Ray knows the resources of its nodes. A task on each node probes whether its CPU computes bfloat16
and whether flash-attn is installed, so that every replica can run the plan.
"""

import dataclasses
import logging
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.client import ray as ray_client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve_app.config.plugin import SiglipPlugin
from serve_app.hardware.detection import (
    Hardware,
    NodeFeatures,
    detect_features,
    hardware_of_nodes,
    parse_hardware,
)

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 60.0
"""Maximum time for probing a node; a node that does not respond is skipped."""
PLACEHOLDER_FRACTION = 0.01
"""Fraction of a CPU or GPU that the placeholder task requests while no node has one."""
POLL_S = 2.0
"""Seconds between two checks for such a node."""


def cluster_hardware(requested: str, plugin: SiglipPlugin) -> Hardware:
    """Return the hardware of the cluster, or the requested one, with the features of its nodes.

    Nodes of a cluster may differ. A feature counts if every living node has it, because Serve may
    place or restart a replica on any of them, and all replicas must compute the same embeddings:
    bfloat16 on a CPU without units for it is many times slower than float32, while float32 on a CPU
    with such units costs less than half of the speed. A node that joins later without the feature
    still runs the plan's dtype; a missing flash-attn package is an error there. To use the faster
    CPUs of a mixed cluster, set `dtype: bfloat16` and select their nodes by `label_selector`.

    Args:
        requested: The configuration's `hardware`.
        plugin: The configuration's plugin block.

    Raises:
        ConfigError: The GPUs are of several kinds, or `requested` cannot be parsed.
    """
    with_gpus = plugin.device != "cpu"
    if requested == "auto":
        hardware = hardware_of_nodes(_living_nodes(), "this cluster", with_gpus)
    else:
        hardware = parse_hardware(requested)
    if hardware.cpus <= 0:  # the planner refuses such hardware
        return hardware

    if plugin.dtype == "auto":
        features = _probe("CPU")
        has_bfloat16 = all(one.has_cpu_bfloat16 for one in features)
        hardware = dataclasses.replace(hardware, has_cpu_bfloat16=has_bfloat16)
    if plugin.attention == "auto" and with_gpus and hardware.gpus:
        features = _probe("GPU")
        has_flash = all(one.has_flash_attention for one in features)
        hardware = dataclasses.replace(hardware, has_flash_attention=has_flash)
    return hardware


def _living_nodes() -> list[dict[str, Any]]:
    return [
        {
            "id": node["NodeID"],
            "resources": node["Resources"],
            "labels": node.get("Labels", {}),
        }
        for node in ray.nodes()
        if node["Alive"]
    ]


def _probe(resource: str) -> list[NodeFeatures]:
    """Return the features of every living node with a resource; wait for the first such node."""
    while True:
        probes = {node_id: _start_probe(node_id) for node_id in _nodes_with(resource)}
        found = [_features(node_id, probe) for node_id, probe in probes.items()]
        known = [features for features in found if features is not None]
        if known:
            return known
        _wait_for_node(resource)


def _start_probe(node_id: str) -> Any:
    """Start the probe of a node; return None for this node, which needs no task."""
    if not ray_client.is_connected() and node_id == ray.get_runtime_context().get_node_id():
        return None
    on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(detect_features).options(num_cpus=0, scheduling_strategy=on_node)
    return task.remote()


def _features(node_id: str, probe: Any) -> NodeFeatures | None:
    if probe is None:
        return detect_features()
    try:
        features: NodeFeatures = ray.get(probe, timeout=PROBE_TIMEOUT_S)
    except RayError as error:  # the node died or did not respond in time
        logger.warning("node %s could not be probed: %s", node_id, type(error).__name__)
        return None
    return features


def _nodes_with(resource: str) -> list[str]:
    return [node["id"] for node in _living_nodes() if node["resources"].get(resource, 0)]


def _wait_for_node(resource: str) -> None:
    """Wait for a node with a resource; the placeholder task makes an autoscaler start one."""
    logger.warning("waiting for a node with a %s", resource)
    amount = {"num_cpus": 0.0, "num_gpus": 0.0, f"num_{resource.lower()}s": PLACEHOLDER_FRACTION}
    task = ray.remote(detect_features).options(**amount).remote()
    ray.wait([task], timeout=POLL_S)
    while not _nodes_with(resource):
        ray.wait([task], timeout=POLL_S)
    ray.cancel(task)

"""The Ray cluster that a job runs on: the one it was submitted to, one that an address names, or one on this machine."""

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from serve_app.hardware.detection import Hardware, cpu_has_bfloat16, detect_machine, hardware_of_nodes


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Connect to a cluster, or start one on this machine and end it on the way out; yield whether it was started here.

    A process that is connected already keeps its connection.

    Args:
        address: Of the cluster; None for what `RAY_ADDRESS` says, as it does in a Ray job, and else for a new one.
    """
    if ray.is_initialized():
        yield False
        return
    named = address or os.environ.get("RAY_ADDRESS")
    if not named:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a cluster that only this process knows
    ray.init(address=named, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None if named else False)
    try:
        yield not named
    finally:
        ray.shutdown()


def hardware_of_cluster(own: bool, with_gpus: bool) -> Hardware:
    """Return what the cluster has."""
    if own:
        return detect_machine(with_gpus)
    nodes = [{"resources": node["Resources"], "labels": node.get("Labels", {})} for node in ray.nodes() if node["Alive"]]
    return hardware_of_nodes(nodes, cpu_has_bfloat16(), "the cluster", with_gpus)


def cpus() -> float:
    """Return the CPUs that the cluster has now."""
    return float(ray.cluster_resources().get("CPU", 1.0))

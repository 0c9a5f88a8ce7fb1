"""The patch of a RayService, and the effects of applying it to the running RayService."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.graph.serve_config import serve_config_text
from serve_app.kuberay.changes import as_applied, compare
from serve_app.kuberay.effects import Change
from serve_app.kuberay.groups import CPU, GPU, WorkerGroup, plan_for, worker_groups
from serve_app.kuberay.patch import apply_patch, ray_service_patch
from serve_app.untrusted.yaml_files import read_documents


def service_patch(configs: Sequence[ServiceConfig]) -> list[dict[str, Any]]:
    """Return the patch that makes the RayService of k8s/base serve the configurations."""
    groups = worker_groups([plan_for(config) for config in configs])
    return ray_service_patch(serve_config_text(*configs), groups, configs)


def changes_of(
    against: Path,
    manifest: Path | None,
    configs: Sequence[ServiceConfig],
    groups: Sequence[WorkerGroup],
) -> tuple[Change, ...]:
    """Return the differences from the running RayService, with the effect of each.

    Args:
        against: A file with the running RayService.
        manifest: A file with the RayService to apply; None to apply the patch of `configs` to the
            running RayService.
        configs: The configurations.
        groups: Their worker groups.

    Raises:
        ConfigError: A file cannot be read, or the patch does not fit the running worker groups.
    """
    running = _ray_service(against)
    if manifest is not None:
        return compare(running, _ray_service(manifest))

    applied = as_applied(running)
    running_groups = _known_groups(_group_names(applied))
    new_groups = _known_groups([group.name for group in groups])
    if running_groups != new_groups:
        raise ConfigError(
            f"the running RayService has {_listed(running_groups)}, but the configuration makes "
            f"{_listed(new_groups)}; pass the manifests that kubectl kustomize prints "
            "with --manifest."
        )
    return compare(running, apply_patch(applied, service_patch(configs)))


def _known_groups(names: Sequence[str]) -> set[str]:
    return {CPU, GPU} & set(names)


def _group_names(manifest: dict[str, Any]) -> list[str]:
    cluster = (manifest.get("spec") or {}).get("rayClusterConfig") or {}
    return [str(group.get("groupName")) for group in cluster.get("workerGroupSpecs") or []]


def _listed(names: set[str]) -> str:
    return f"the worker groups {' and '.join(sorted(names))}" if names else "no worker groups"


def _ray_service(path: Path) -> dict[str, Any]:
    """Return the only RayService of a file of manifests."""
    documents = [document for document in read_documents(path) if isinstance(document, dict)]
    manifests = [item for document in documents for item in (document.get("items") or [document])]
    services = [
        manifest
        for manifest in manifests
        if isinstance(manifest, dict) and manifest.get("kind") == "RayService"
    ]
    if len(services) != 1:
        raise ConfigError(f"{path} contains {len(services)} RayServices; it must contain one.")
    return services[0]

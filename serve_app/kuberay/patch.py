"""The part of a RayService that follows from a configuration, as a JSON patch over `k8s/base`.

Everything else (images, probes, security, volumes) is written by hand in `k8s/base` and its
components, so rendering this part again overwrites nobody's changes.
"""

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import yaml

from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.kuberay.groups import WorkerGroup
from serve_app.kuberay.machines import node_affinity

GROUPS = "/spec/rayClusterConfig/workerGroupSpecs"
POD = "template/spec"
HEADER = (
    "# Made by `siglip-serve k8s render --config {files} --out FILE`: "
    "change the configuration and make it again; a test compares.\n"
    "# A JSON patch over the RayService of k8s/base.\n"
)
FETCHED_MODELS = "SIGLIP_FETCH"
"""Environment variable of the container that fetches checkpoints before a pod starts: a list of
`model@revision` separated by spaces."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""A repository of the hub; a folder is on the pods already."""


class _Text(str):
    """Text that is written as a YAML block."""


def ray_service_patch(
    serve_config: str, groups: Sequence[WorkerGroup], configs: Sequence[ServiceConfig]
) -> list[dict[str, Any]]:
    """Return a JSON patch (RFC 6902) of Serve config, worker groups and checkpoints to fetch.

    Args:
        serve_config: The Serve config as YAML, of `graph/serve_config.py`.
        groups: The worker groups, in the order of the manifest.
        configs: The configurations of the applications.
    """
    patch: list[dict[str, Any]] = [_replace("/spec/serveConfigV2", _Text(serve_config))]
    for i, group in enumerate(groups):
        patch += _group_patch(f"{GROUPS}/{i}", group, fetched(configs))
    return patch


def patch_text(patch: list[dict[str, Any]], files: Sequence[str]) -> str:
    """Return a patch as the file of an overlay."""
    return HEADER.format(files=" ".join(files)) + _yaml(patch)


def fetched(configs: Sequence[ServiceConfig]) -> str:
    """Return the checkpoints that pods fetch from the hub before they start, each once."""
    models = [(config.siglip.model, config.revision) for config in configs]
    named = [
        f"{model}@{revision}" if revision else model
        for model, revision in models
        if _HUB_ID.fullmatch(model)
    ]
    return " ".join(dict.fromkeys(named))


def apply_patch(manifest: dict[str, Any], patch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a manifest with a patch of `ray_service_patch` applied, as kustomize applies it.

    Raises:
        ConfigError: The manifest is not laid out as k8s/base is.
    """
    made = copy.deepcopy(manifest)
    for step in patch:
        try:
            _apply_step(made, step)
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"the manifest has no {step['path']}; is it a RayService made from k8s/base?"
            ) from error
    return made


def _apply_step(manifest: dict[str, Any], step: dict[str, Any]) -> None:
    *parents, last = step["path"].strip("/").split("/")
    block: Any = manifest
    for key in parents:
        block = block[int(key)] if isinstance(block, list) else block[key]
    key = int(last) if isinstance(block, list) else last

    if step["op"] == "test":
        if block[key] != step["value"]:
            raise ConfigError(
                f"{step['path']} is {block[key]!r} and should be {step['value']!r}; "
                "the worker groups stand in another order."
            )
        return
    if step["op"] == "replace":
        block[key]  # has to exist
    block[key] = step["value"]


def _group_patch(path: str, group: WorkerGroup, models: str) -> list[dict[str, Any]]:
    amounts: dict[str, Any] = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
    if group.gpus:
        amounts["nvidia.com/gpu"] = str(group.gpus)
    made = [
        {"op": "test", "path": f"{path}/groupName", "value": group.name},
        _replace(f"{path}/minReplicas", group.min_pods),
        _replace(f"{path}/maxReplicas", group.max_pods),
        _replace(
            f"{path}/{POD}/containers/0/resources", {"requests": amounts, "limits": dict(amounts)}
        ),
        _replace(f"{path}/{POD}/initContainers/0/env/0", {"name": FETCHED_MODELS, "value": models}),
    ]
    if group.accelerator is not None:
        made.append(
            {
                "op": "add",
                "path": f"{path}/{POD}/affinity",
                "value": {"nodeAffinity": node_affinity(group.accelerator)},
            }
        )
    return made


def _replace(path: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


class _Dumper(yaml.SafeDumper):
    """Writes long texts as YAML blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Text,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|"),
)

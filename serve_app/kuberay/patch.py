"""The part of a RayService that follows from a configuration and its plan, as a JSON patch over
`k8s/base`.

Everything else (images, probes, security, volumes) is written by hand in `k8s/base` and its
components, so making this part again loses nobody's changes.
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
    "# Made by `siglip-serve k8s render --config {files} --out FILE`: change the configuration and make it again; a test compares.\n"
    "# A JSON patch over the RayService of k8s/base.\n"
)
FETCHED_MODELS = "SIGLIP_FETCH"
"""Environment of the container that fetches checkpoints before a pod starts: `model@revision`, with
spaces between."""
_HUB_ID = re.compile(
    r"[A-Za-z0-9][\w.-]*/[\w.-]+"
)  # and no folder, which is on the pods or nowhere


class _Text(str):
    """Text that is written as a block."""


def ray_service_patch(
    serve_config: str, groups: Sequence[WorkerGroup], configs: Sequence[ServiceConfig]
) -> list[dict[str, Any]]:
    """Return a JSON patch (RFC 6902): the Serve config, the worker groups' sizes, and the
    checkpoints that pods fetch.

    Args:
        serve_config: As YAML, of `graph/render.py`.
        groups: Of `worker_groups`, in the order of the manifest.
        configs: Of the applications.
    """
    patch: list[dict[str, Any]] = [_replace("/spec/serveConfigV2", _Text(serve_config))]
    for at, group in enumerate(groups):
        patch += _group_patch(f"{GROUPS}/{at}", group, fetched(configs))
    return patch


def patch_text(patch: list[dict[str, Any]], files: Sequence[str]) -> str:
    """Return a patch as the file of an overlay."""
    return HEADER.format(files=" ".join(files)) + _yaml(patch)


def fetched(configs: Sequence[ServiceConfig]) -> str:
    """Return what pods fetch from the hub before they start: each checkpoint once, at its
    revision.
    """
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
        *parents, last = step["path"].strip("/").split("/")
        try:
            at: Any = made
            for key in parents:
                at = at[int(key)] if isinstance(at, list) else at[key]
            key = int(last) if isinstance(at, list) else last
            if step["op"] == "test" and at[key] != step["value"]:
                raise ConfigError(
                    f"{step['path']} is {at[key]!r} and should be {step['value']!r}; the worker groups stand in another order."
                )
            if step["op"] == "replace":
                at[key]  # has to be there
            if step["op"] != "test":
                at[key] = step["value"]
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"the manifest has no {step['path']}; is it a RayService made from k8s/base?"
            ) from error
    return made


def _group_patch(path: str, group: WorkerGroup, models: str) -> list[dict[str, Any]]:
    amounts: dict[str, Any] = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
    if group.gpus:
        amounts["nvidia.com/gpu"] = str(group.gpus)
    made = [
        {"op": "test", "path": f"{path}/groupName", "value": group.name},
        _replace(f"{path}/minReplicas", group.least),
        _replace(f"{path}/maxReplicas", group.most),
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
    """Writes long texts as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Text,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|"),
)

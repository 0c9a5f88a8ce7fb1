"""What applying a RayService does to one that runs: in place, rolling, or a new cluster.

These are KubeRay's rules, each with its source; Serve's are in `serve_changes.py`.
"""

from collections.abc import Iterator
from typing import Any

from serve_app.errors import ConfigError
from serve_app.kuberay.effects import Change, Effect, differing
from serve_app.kuberay.serve_changes import serve_changes
from serve_app.untrusted.bounded_files import FileProblem, parse_json
from serve_app.untrusted.yaml_files import parse_documents

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Annotation with the manifest as it was applied, without what the API server fills in.

It is missing after `kubectl apply --server-side`.
"""
FILLED_IN = {
    "protocol": "TCP",
    "numOfHosts": 1,
    "priority": 0,
    "replicas": 0,
    "minReplicas": 0,
    "maxReplicas": 2**31 - 1,
    "maxSurgePercent": 100,
}
"""Default values that the API server fills into a RayService like ours.

Source: defaults of KubeRay 1.7.0's definition.
"""
SCALE_KEYS = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy")
"""Keys that are not in the hash that decides on a new cluster.

Source: `GenerateHashWithoutReplicasAndWorkersToDelete` of KubeRay's utils/util.go.
"""
ADMISSION_KEYS = ("tolerations", "schedulingGates")
"""Keys of pod templates that are not in that hash either, because Kueue sets them.

Source: KubeRay pull request 4569.
"""
SERVE_CONFIG = "serveConfigV2"
SERVICE = "serveService"
"""`SERVICE` is written only when the Service moves to another cluster.

Source: `reconcileServices` of rayservice_controller.go.
"""
TWICE = "a second cluster beside the first, with all its GPUs, until it serves"
INCREMENTAL = "NewClusterWithIncrementalUpgrade"
UPGRADES = {"NewCluster": TWICE, INCREMENTAL: "a second cluster that takes over step by step"}
ENTRANCE = (
    "requests come in by the operator's own Gateway with incremental upgrades, "
    "and by the Service without: the other is not kept"
)
"""Source: `BuildServeService` of KubeRay's common/service.go, and kuberay#5148."""
REFUSED = "upgradeStrategy.type is None: delete the RayService and apply it again"
STARTS_WITH_IT = "the new cluster starts with it"
LEFT_ALONE = (
    "the operator leaves the cluster that runs alone; change its RayCluster too, by kubectl edit"
)
"""Bounds reach new clusters only.

Source: KubeRay issues 2331 and 4568 (open in 2026-09), pull request 5326.
"""


def compare(running: dict[str, Any], wanted: dict[str, Any]) -> tuple[Change, ...]:
    """Return the differences between a running RayService and one that will be applied.

    Args:
        running: The manifest as `kubectl get rayservice NAME -o yaml` shows it, or as applied.
        wanted: The manifest that will be applied.

    Raises:
        ConfigError: One of them is no RayService, or they have different names.
    """
    applied = as_applied(running)
    _check_same(applied, wanted)
    before = without_filled_in(_spec(applied), _spec(wanted))
    after = without_filled_in(_spec(wanted), _spec(applied))
    old = before.get("rayClusterConfig") or {}
    new = after.get("rayClusterConfig") or {}
    hashed = list(_hashed(old, new))
    strategy = _strategy(after)
    renews = bool(hashed) and strategy != "None"
    effect, why = (
        (Effect.NEW_CLUSTER, UPGRADES.get(strategy, TWICE))
        if renews
        else (Effect.NOT_TAKEN, REFUSED)
    )
    return (
        *(Change(path, effect, why) for path in hashed),
        *_unhashed(old, new, hashed=bool(hashed), renews=renews),
        *_serve(before, after, renews),
        *_own(before, after, renews),
        *_metadata(applied.get("metadata") or {}, wanted.get("metadata") or {}),
    )


def as_applied(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest as it was applied if its annotation has that, else the manifest itself.

    Raises:
        ConfigError: The copy cannot be read.
    """
    text = ((manifest.get("metadata") or {}).get("annotations") or {}).get(LAST_APPLIED)
    if not text:
        return manifest
    try:
        applied = parse_json(text, "it")
    except FileProblem as error:
        raise ConfigError(
            f"the annotation {LAST_APPLIED} of the running RayService is not JSON: {error}"
        ) from error
    return applied if isinstance(applied, dict) else manifest


def without_filled_in(manifest: Any, other: Any) -> Any:
    """Return a part of a manifest without filled-in fields that the other manifest lacks."""
    if isinstance(manifest, dict) and isinstance(other, dict):
        kept = {
            key: value
            for key, value in manifest.items()
            if key in other or FILLED_IN.get(key) != value
        }
        return {key: without_filled_in(value, other.get(key)) for key, value in kept.items()}
    if isinstance(manifest, list) and isinstance(other, list):
        return [
            without_filled_in(value, other[i] if i < len(other) else None)
            for i, value in enumerate(manifest)
        ]
    return manifest


def _spec(manifest: dict[str, Any]) -> dict[str, Any]:
    if manifest.get("kind") != "RayService":
        raise ConfigError(
            "a RayService is needed, and this is a "
            f"{manifest.get('kind') or 'file without a kind'}."
        )
    spec = manifest.get("spec")
    return spec if isinstance(spec, dict) else {}


def _check_same(running: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = [(manifest.get("metadata") or {}).get("name") for manifest in (running, wanted)]
    if None not in names and names[0] != names[1]:
        raise ConfigError(
            f"the RayService that runs is {names[0]} and the one to be applied is {names[1]}, "
            "which would run beside it."
        )


def _serve_config(spec: dict[str, Any]) -> dict[str, Any]:
    documents = parse_documents(str(spec.get(SERVE_CONFIG) or "{}"), SERVE_CONFIG)
    return documents[0] if documents and isinstance(documents[0], dict) else {}


def _groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return cluster.get("workerGroupSpecs") or []


def _named(
    old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield the groups that are in both lists, with a name, by their position."""
    for i, (before, after) in enumerate(zip(old, new, strict=False)):
        yield f"worker group {after.get('groupName', i)}", before, after


def _hashed(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield the differences that make the operator start a new cluster."""
    for key in sorted({*old, *new} - {"workerGroupSpecs"}):
        yield from differing(
            _admitted(old.get(key)), _admitted(new.get(key)), f"rayClusterConfig.{key}"
        )
    for name, before, after in _named(_groups(old), _groups(new)):
        yield from differing(
            _admitted(_without_scale(before)), _admitted(_without_scale(after)), name
        )
    for gone in _groups(old)[len(_groups(new)) :]:
        yield f"worker group {gone.get('groupName')} is gone"


def _unhashed(
    old: dict[str, Any], new: dict[str, Any], hashed: bool, renews: bool
) -> Iterator[Change]:
    """Yield the differences that start no new cluster.

    Those are groups at the end of the list, bounds, and what Kueue sets.
    """
    added = _groups(new)[len(_groups(old)) :]
    effect, why = _unhashed_effect(bool(added), hashed, renews)
    for group in added:
        added_why = why if hashed else "a group more at the end of the list"
        yield Change(f"worker group {group.get('groupName')} is added", effect, added_why)

    for name, before, after in _named(_groups(old), _groups(new)):
        for key in SCALE_KEYS:
            if before.get(key) != after.get(key):
                yield Change(f"{name}: {key} {before.get(key)} → {after.get(key)}", effect, why)
    for path in _admission_changes(old, new):
        yield Change(path, effect, why)


def _unhashed_effect(added: bool, hashed: bool, renews: bool) -> tuple[Effect, str]:
    if renews:
        return Effect.NEW_CLUSTER, STARTS_WITH_IT
    if hashed:
        return Effect.NOT_TAKEN, REFUSED
    if added:  # the operator writes the whole RayCluster again
        return Effect.IN_PLACE, "with the worker group that is added"
    return Effect.NOT_TAKEN, LEFT_ALONE


def _admission_changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of differences that Kueue makes in pod templates."""
    heads = (old.get("headGroupSpec") or {}, new.get("headGroupSpec") or {})
    named = (
        ("rayClusterConfig.headGroupSpec", *heads),
        *_named(_groups(old), _groups(new)),
    )
    for name, before, after in named:
        for key in ADMISSION_KEYS:
            if _pod(before).get(key) != _pod(after).get(key):
                yield f"{name}.template.spec.{key}"


def _serve(before: dict[str, Any], after: dict[str, Any], renews: bool) -> Iterator[Change]:
    """Yield the differences of the Serve config; a new cluster takes all of them at once."""
    if before.get(SERVE_CONFIG) == after.get(SERVE_CONFIG):
        return
    old = _serve_config(before)
    new = _serve_config(after)
    if not renews:
        yield from serve_changes(old, new)
    elif old != new:
        yield Change(SERVE_CONFIG, Effect.NEW_CLUSTER, STARTS_WITH_IT)


def _own(before: dict[str, Any], after: dict[str, Any], renews: bool) -> Iterator[Change]:
    """Yield the differences of the RayService itself."""
    for key in sorted({*before, *after} - {"rayClusterConfig", SERVE_CONFIG}):
        if before.get(key) == after.get(key):
            continue
        if key == SERVICE and not renews:
            yield Change(
                key,
                Effect.NOT_TAKEN,
                "the operator writes it when it moves the Service to a new cluster; "
                "change the Service too",
            )
        elif key == "upgradeStrategy" and INCREMENTAL in {_strategy(before), _strategy(after)}:
            yield Change(key, Effect.IN_PLACE, ENTRANCE)
        else:
            yield Change(key, Effect.IN_PLACE, "the operator's own")


def _strategy(spec: dict[str, Any]) -> str:
    return (spec.get("upgradeStrategy") or {}).get("type") or "NewCluster"


def _metadata(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    for block in ("labels", "annotations"):
        had = before.get(block) or {}
        has = after.get(block) or {}
        for key in sorted(has.keys() - {LAST_APPLIED}):
            if had.get(key) != has[key]:
                yield Change(
                    f"metadata.{block}.{key}",
                    Effect.IN_PLACE,
                    "of the RayService; pods that run stay as they are",
                )


def _without_scale(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in SCALE_KEYS}


def _pod(group: Any) -> dict[str, Any]:
    """Return the specification of a group's pods; empty if there is none."""
    template = group.get("template") if isinstance(group, dict) else None
    spec = template.get("spec") if isinstance(template, dict) else None
    return spec if isinstance(spec, dict) else {}


def _admitted(group: Any) -> Any:
    """Return a group without what Kueue sets in its pods; other values as they are."""
    if not _pod(group):
        return group
    pod = {key: value for key, value in _pod(group).items() if key not in ADMISSION_KEYS}
    return group | {"template": group["template"] | {"spec": pod}}

"""Manifests as a person would apply them, and what a Kubernetes API server would have against them,
asked of nobody.

Strictly: a server drops a field that it does not know, here it is a problem. Custom kinds go by the
packed definitions in `schemas/`, as `custom_kinds` reads them: KubeRay 1.7.0 (RayService, RayJob,
RayCronJob), gateway-api 1.6.1 (Gateway, HTTPRoute) and prometheus-operator
0.93.0 (PodMonitor, PrometheusRule), without the descriptions of their fields. Core kinds go by
Kubernetes' own schemas, which `kubernetes-validate` brings. They know types and fields, and no
rules between fields.

Not here: what the operator refuses although its schema takes it (`operator_rules`), and what is
taken but unwise (`test_policies`).
"""

import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.manifests import custom_kinds

ROOT = Path(__file__).parents[2]
KUBERNETES = ("1.29", kubernetes_validate.latest_version())
"""The oldest that docs/kubernetes.md names, and the newest: what one does not know yet, and what
the other no longer knows."""
OVERLAY = "k8s/overlays/l4"
"""What components are shown on that no kustomization includes."""


def kustomizations() -> list[str]:
    """Return every folder that `kubectl apply -k` takes, and an overlay `with` each component that
    none of them includes.
    """
    found = {
        file.parent: yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in (ROOT / "k8s").rglob("kustomization.yaml")
    }
    included = {
        (folder / name).resolve()
        for folder, read in found.items()
        for name in read.get("components", ())
    }
    whole = [
        folder.relative_to(ROOT)
        for folder, read in found.items()
        if read.get("kind", "Kustomization") == "Kustomization"
    ]
    others = [
        folder.relative_to(ROOT)
        for folder, read in found.items()
        if read.get("kind") == "Component" and folder not in included
    ]
    return sorted(map(str, whole)) + sorted(f"{OVERLAY} with {folder}" for folder in others)


def kustomized(folder: str) -> list[dict[str, Any]]:
    """Return what `kubectl apply -k` would send, new objects each time.

    Args:
        folder: One of `kustomizations()`.
    """
    return [found for found in yaml.load_all(_kustomized(folder), yaml.CSafeLoader) if found]


def problems(manifest: dict[str, Any], kind: str | None = None) -> list[str]:
    """Return what a manifest has wrong.

    Args:
        manifest: Any object.
        kind: The packed definition to go by, such as `ray.io_rayjobs`; by default what apiVersion
            and kind say.
    """
    if kind is None:
        group, _, _ = manifest["apiVersion"].rpartition("/")
        kind = f"{group}_{manifest['kind'].lower()}s"
    if custom_kinds.is_packed(kind):
        return custom_kinds.problems(manifest, kind)
    text = json.dumps(manifest, sort_keys=True)
    return sorted({found for version in KUBERNETES for found in _core_problems(text, version)})


@cache
def _kustomized(name: str) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl; install Debian's package kubernetes-client")
    folder, _, component = name.partition(" with ")
    with tempfile.TemporaryDirectory() as made_up:
        if component:
            paths = {"resources": folder, "components": component}
            written = {
                key: [os.path.relpath(ROOT / path, os.path.realpath(made_up))]
                for key, path in paths.items()
            }
            (Path(made_up) / "kustomization.yaml").write_text(
                yaml.safe_dump({"namespace": "siglip"} | written), encoding="utf-8"
            )
        where = made_up if component else str(ROOT / folder)
        made = subprocess.run(["kubectl", "kustomize", where], capture_output=True, text=True)
    if made.returncode or made.stderr:  # warnings too, such as those of what is deprecated
        raise AssertionError(f"{name}: {made.stderr}")
    return made.stdout


@cache  # overlays have most objects in common
def _core_problems(text: str, version: str) -> list[str]:
    manifest = json.loads(text)
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [
            f"{manifest['apiVersion']} {manifest['kind']} is unknown to Kubernetes {version} "
            "and is no packed kind"
        ]
    except kubernetes_validate.ValidationError as error:
        return [f"{'/'.join(map(str, error.path))}: {error.message}"]
    return []

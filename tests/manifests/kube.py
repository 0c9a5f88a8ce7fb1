"""Manifests as a person would apply them, checked strictly against the operator's own schemas: a field that is not known is an error.

The schemas are those of KubeRay 1.7.0 (`helm-chart/kuberay-operator/crds`), packed.
"""

import gzip
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).parent / "schemas"


def kustomized(folder: str) -> list[dict[str, Any]]:
    """Return what `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl; install Debian's package kubernetes-client")
    made = subprocess.run(["kubectl", "kustomize", str(ROOT / folder)], capture_output=True, text=True, check=True)
    return [found for found in yaml.safe_load_all(made.stdout) if found]


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """Return the strict JSON schema of a custom kind, such as `ray.io_rayjobs`."""
    definition = yaml.load(gzip.decompress((SCHEMAS / f"{kind}.yaml.gz").read_bytes()), yaml.CSafeLoader)
    version = next(found for found in definition["spec"]["versions"] if found["storage"])
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def problems(manifest: dict[str, Any], kind: str) -> list[str]:
    """Return what a manifest has wrong."""
    found = jsonschema.Draft202012Validator(schema_of(kind)).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in found]


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a structural schema as JSON schema in which unknown fields are errors."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes") and key not in ("default", "description")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        return made | {"type": ["integer", "string"]}
    if schema.pop("nullable", False) and "type" in made:
        made["type"] = [made["type"], "null"]
    if "properties" in schema:
        made["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        made["items"] = _strict(schema["items"])
    return made

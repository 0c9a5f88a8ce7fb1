"""checkov's policies for Kubernetes over our manifests, offline.

checkov pins some hundred packages, so it has an environment of its own, `.venv-policies`, which is
made once from `policies.txt`. It knows none of KubeRay's kinds, so their pods are shown to it as
Deployments.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.manifests.kube import ROOT
from tests.manifests.pods import pods_of

ENVIRONMENT = ROOT / ".venv-policies"
PINS = Path(__file__).parent / "policies.txt"


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that an object failed.

    Attributes:
        folder: Of the object.
        check: The check's number, such as `CKV_K8S_14`.
        says: What the check wants.
        resource: Kind, namespace and name of the object.
    """

    folder: str
    check: str
    says: str
    resource: str


def found_by_checkov(
    objects: Mapping[str, Sequence[dict[str, Any]]], scratch: Path
) -> list[Finding]:
    """Return what checkov finds in the objects of folders, all looked at together: network policies
    of one hold for the others too.
    """
    for folder, manifests in objects.items():
        file = scratch / folder / "objects.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(
            yaml.safe_dump_all([shown for one in manifests for shown in _shown(one)]),
            encoding="utf-8",
        )
    command = [
        _python(),
        "-m",
        "checkov.main",
        "-d",
        str(scratch),
        "--framework",
        "kubernetes",
        "--skip-download",
    ]
    command += ["--compact", "--quiet", "--soft-fail", "-o", "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"LOG_LEVEL": "ERROR"}
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    told = json.loads(done.stdout)
    if told["summary"]["parsing_errors"]:
        raise RuntimeError(f"checkov could not read {told['results']['parsing_errors']}")
    return [
        Finding(
            str(Path(one["file_path"]).parent).strip("/"),
            one["check_id"],
            one["check_name"],
            one["resource"],
        )
        for one in told["results"]["failed_checks"]
    ]


def _shown(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an object as checkov knows it."""
    if not manifest["apiVersion"].startswith("ray.io/"):
        return [manifest]
    made = []
    for pod in pods_of(manifest):
        name = re.sub(r"[^a-z0-9]", "-", f"{pod.owner} {pod.role}".lower())
        template = {"metadata": {"labels": pod.labels}, "spec": pod.spec}
        spec = {"selector": {"matchLabels": pod.labels}, "template": template}
        metadata = {"name": name, "namespace": manifest["metadata"]["namespace"]}
        made.append(
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        )
    return made


def _python() -> str:
    """Return the interpreter that has checkov, after making its environment if `policies.txt` is
    another than it was made from.
    """
    python = ENVIRONMENT / "bin" / "python"
    mark = ENVIRONMENT / "made-from.txt"
    pins = PINS.read_text(encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    if not mark.exists() or mark.read_text(encoding="utf-8") != pins:
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
                str(PINS),
            ],
        ):
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        mark.write_text(pins, encoding="utf-8")
    return str(python)

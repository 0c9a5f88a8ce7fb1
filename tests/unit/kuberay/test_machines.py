"""Pods find the nodes with their kind of GPU, whoever has labelled those, and no others."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import ACCELERATORS, generic_accelerator
from serve_app.hardware.detection import detect_machine
from serve_app.kuberay.machines import MARKS, node_affinity

PRODUCT = "nvidia.com/gpu.product"
GKE = "cloud.google.com/gke-accelerator"
NAME = "karpenter.k8s.aws/instance-gpu-name"
MEMORY = "karpenter.k8s.aws/instance-gpu-memory"
AUTO_NAME = "eks.amazonaws.com/instance-gpu-name"
AUTO_MEMORY = "eks.amazonaws.com/instance-gpu-memory"
NODES = {
    "g4dn.xlarge": ("T4", {NAME: "t4", MEMORY: "16384"}),
    "p3.2xlarge": ("V100", {NAME: "v100", MEMORY: "16384"}),
    "g5.xlarge": ("A10G", {NAME: "a10g", MEMORY: "24576"}),
    "g6.xlarge": ("L4", {NAME: "l4", MEMORY: "22888"}),
    "g6e.xlarge": ("L40S", {NAME: "l40s", MEMORY: "45776"}),
    "p4d.24xlarge": ("A100-40G", {NAME: "a100", MEMORY: "40960"}),
    "p4de.24xlarge": ("A100-80G", {NAME: "a100", MEMORY: "81920"}),
    "p5.48xlarge": ("H100", {NAME: "h100", MEMORY: "81920"}),
    "p5en.48xlarge": ("H200", {NAME: "h200", MEMORY: "144384"}),
    "g2-standard-8": ("L4", {GKE: "nvidia-l4"}),
    "n1-standard-8": ("T4", {GKE: "nvidia-tesla-t4"}),
    "a2-highgpu-1g": ("A100-40G", {GKE: "nvidia-tesla-a100"}),
    "a2-ultragpu-1g": ("A100-80G", {GKE: "nvidia-a100-80gb"}),
    "a3-highgpu-8g": ("H100", {GKE: "nvidia-h100-80gb"}),
    "a3-ultragpu-8g": ("H200", {GKE: "nvidia-h200-141gb"}),
    "a4-highgpu-8g": ("B200", {GKE: "nvidia-b200"}),
    "a3-megagpu-8g": ("H100", {GKE: "nvidia-h100-mega-80gb"}),
    "p4de.24xlarge of Auto Mode": ("A100-80G", {AUTO_NAME: "a100", AUTO_MEMORY: "81920"}),
    "g6.xlarge of Auto Mode": ("L4", {AUTO_NAME: "l4", AUTO_MEMORY: "22888"}),
    "with both": ("A100-80G", {NAME: "a100", MEMORY: "81920", PRODUCT: "NVIDIA-A100-SXM4-80GB"}),
}
"""Machines and their labels.

Source: the instance types of Karpenter's documentation, GPU platforms of GKE's.
"""
OTHERS = (
    {},
    {PRODUCT: "NVIDIA-GeForce-RTX-4090"},
    {NAME: "t4g", MEMORY: "16384"},
    {GKE: "nvidia-rtx-pro-6000"},
    {MEMORY: "40960"},
)
"""Nodes without a GPU, with one that is not in the table, and with half of a mark."""


def takes(affinity: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a node may have the pod: one of the terms holds, with all that it says.

    Source: Kubernetes, "Assign Pods to Nodes".
    """
    (terms,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"].values()
    assert all(one["operator"] == "In" for term in terms for one in term["matchExpressions"])
    return any(
        all(labels.get(one["key"]) in one["values"] for one in term["matchExpressions"])
        for term in terms
    )


@pytest.mark.parametrize("machine", NODES)
def test_a_node_is_taken_for_its_gpu_and_no_other(machine: str) -> None:
    """Whichever of the three has labelled it: marks are alternatives, and A100 of 40 and 80 GB are
    told apart.
    """
    accelerator, labels = NODES[machine]
    assert [name for name in MARKS if takes(node_affinity(name), labels)] == [accelerator]


@pytest.mark.parametrize("name", MARKS)
def test_other_nodes_are_left_alone(name: str) -> None:
    """No label, another card, or the memory without the name."""
    assert not any(takes(node_affinity(name), labels) for labels in OTHERS)


def test_every_accelerator_has_marks() -> None:
    """Every card of the planner's table can be written into a manifest, and nothing else is."""
    assert {row.name for row in ACCELERATORS} == MARKS.keys()
    assert all(node_affinity(row.name) for row in ACCELERATORS)


@pytest.mark.parametrize("name", [generic_accelerator(24).name, "RTX4090"])
def test_a_card_without_marks_is_refused(name: str) -> None:
    """One that is described by its memory only is on nobody's label."""
    with pytest.raises(
        ConfigError,
        match=rf"how nodes with {name} are labelled is not known; "
        r"known are t4, v100, .*, a100-80g, h100",
    ):
        node_affinity(name)


@pytest.mark.parametrize(
    ("name", "product"),
    [(name, product) for name, marks in MARKS.items() for product in marks.products],
)
def test_nvidias_label_is_the_cards_name(
    name: str, product: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's discovery takes the name that the driver shows, with dashes for spaces: detection
    reads the same card from it.
    """
    memory_bytes = next(row.memory_bytes for row in ACCELERATORS if row.name == name)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{product.replace('-', ' ')}, {memory_bytes // 2**20}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = detect_machine().accelerator
    assert found is not None
    assert found.name == name

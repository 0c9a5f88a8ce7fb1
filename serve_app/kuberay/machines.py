"""How Kubernetes nodes with each kind of GPU are labelled, as data with a source for each label.

Different clouds and operators set different labels, so a node needs to match only one of them.
"""

from dataclasses import dataclass
from typing import Any

from serve_app.errors import ConfigError

PRODUCT = "nvidia.com/gpu.product"
"""Label of NVIDIA's GPU feature discovery, which is part of the GPU operator.

Source: NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery.
"""
GKE = "cloud.google.com/gke-accelerator"
"""Source: Google Kubernetes Engine's documentation, GPU platforms."""
AWS = ("karpenter.k8s.aws", "eks.amazonaws.com")
"""Prefixes of Karpenter and EKS Auto Mode for the labels `instance-gpu-name` and
`instance-gpu-memory` in MiB.

Source: Karpenter's documentation, instance types; EKS' documentation, Auto Mode node pools.
"""


@dataclass(frozen=True, slots=True)
class Marks:
    """The labels of nodes with one kind of GPU.

    Attributes:
        products: Values of `PRODUCT`.
        gke: Values of `GKE`; empty if Google Cloud does not offer it.
        aws: Name of the GPU, and its memory if the name is ambiguous; None if AWS does not offer
            it.
    """

    products: tuple[str, ...]
    gke: tuple[str, ...] = ()
    aws: tuple[str, str | None] | None = None


MARKS: dict[str, Marks] = {
    "T4": Marks(("Tesla-T4",), ("nvidia-tesla-t4",), ("t4", None)),
    "V100": Marks(
        ("Tesla-V100-SXM2-16GB", "Tesla-V100-PCIE-16GB"), ("nvidia-tesla-v100",), ("v100", "16384")
    ),
    "A10G": Marks(("NVIDIA-A10G", "NVIDIA-A10"), (), ("a10g", None)),
    "L4": Marks(("NVIDIA-L4",), ("nvidia-l4",), ("l4", None)),
    "L40S": Marks(("NVIDIA-L40S",), (), ("l40s", None)),
    "A100-40G": Marks(
        ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
        ("nvidia-tesla-a100",),
        ("a100", "40960"),
    ),
    "A100-80G": Marks(
        ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"), ("nvidia-a100-80gb",), ("a100", "81920")
    ),
    "H100": Marks(
        ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe"),
        ("nvidia-h100-80gb", "nvidia-h100-mega-80gb"),
        ("h100", None),
    ),
    "H200": Marks(("NVIDIA-H200",), ("nvidia-h200-141gb",), ("h200", None)),
    "B200": Marks(("NVIDIA-B200",), ("nvidia-b200",), ("b200", None)),
}
"""Labels by Ray's accelerator type."""


def node_affinity(accelerator: str) -> dict[str, Any]:
    """Return the `nodeAffinity` of pods that need a kind of GPU; any one of the labels is enough.

    Raises:
        ConfigError: The labels of such nodes are not known.
    """
    marks = MARKS.get(accelerator)
    if marks is None:
        known = ", ".join(name.lower() for name in MARKS)
        raise ConfigError(
            f"how nodes with {accelerator} are labelled is not known; known are {known}."
        )
    terms = [[_one_of(PRODUCT, marks.products)]]
    if marks.gke:
        terms.append([_one_of(GKE, marks.gke)])
    if marks.aws is not None:
        name, memory = marks.aws
        for prefix in AWS:
            sized = [_one_of(f"{prefix}/instance-gpu-memory", (memory,))] if memory else []
            terms.append([_one_of(f"{prefix}/instance-gpu-name", (name,)), *sized])
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": expressions} for expressions in terms]
        }
    }


def _one_of(key: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": list(values)}

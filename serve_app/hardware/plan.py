"""The plan of a service: every value that the configuration leaves `auto`, and why.

A plan is complete, and it is what runs: `graph/builder.py` and the batch job take these values as
they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.config.public import PlanShown
from serve_app.hardware.detection import Hardware
from serve_app.hardware.footprint import Footprint
from serve_app.hardware.reasons import Reason
from serve_app.siglip.precision import Precision


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """Ray's resources for a replica of one deployment, and the range that it scales within.

    Attributes:
        num_cpus: Logical CPUs of a replica.
        num_gpus: Fraction of a GPU of a replica.
        min_replicas: Minimum number of replicas.
        max_replicas: Maximum number of replicas.
        per_second: Images per second that one replica is expected to process; 0 for deployments
            that do not process images.
    """

    num_cpus: float
    num_gpus: float
    min_replicas: int
    max_replicas: int
    per_second: float

    def shown(self) -> dict[str, Any]:
        """Return the part that `GET /v1/config` shows.

        A fixed number of replicas may have been changed live since, so the number is left out.
        """
        resources = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.min_replicas == self.max_replicas:
            return resources | {"num_replicas": "fixed"}
        bounds = {"min_replicas": self.min_replicas, "max_replicas": self.max_replicas}
        return bounds | resources


@dataclass(frozen=True, slots=True)
class Plan:
    """How a checkpoint is laid out on some hardware.

    Attributes:
        checkpoint: Name of the checkpoint.
        hardware: The hardware that it is planned for.
        precision: What the image tower runs as, and the text tower unless it is on the CPU alone.
        text_precision: What the text tower runs as.
        batch_size: Maximum number of images in one forward pass.
        image: Memory of an ImageEncoder.
        text: Memory of a TextEncoder.
        deployments: One plan for each key of `config.serving.DEPLOYMENTS`.
        images_per_second: Images per second that all encoders together are expected to process.
        reasons: The reason for each value.
        advice: What might be better, where a value was set explicitly.
        host_bytes: Maximum memory in bytes of each replica without a tower, by deployment.
    """

    checkpoint: str
    hardware: Hardware
    precision: Precision
    text_precision: Precision
    batch_size: int
    image: Footprint
    text: Footprint
    deployments: Mapping[str, DeploymentPlan]
    images_per_second: float
    reasons: tuple[Reason, ...]
    advice: tuple[str, ...] = ()
    host_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def min_cpus(self) -> float:
        """CPUs of the minimum number of replicas of all deployments."""
        return sum(one.num_cpus * one.min_replicas for one in self.deployments.values())

    @property
    def min_gpus(self) -> float:
        """GPUs of the minimum number of replicas of all deployments."""
        return sum(one.num_gpus * one.min_replicas for one in self.deployments.values())

    def shown(self) -> PlanShown:
        """Return the part that `GET /v1/config` shows in place of `auto`."""
        plugin = {
            "batch_size": self.batch_size,
            "attention": self.precision.attention,
            "dtype": self.precision.dtype,
            "quantization": self.precision.quantization,
            "device": self.precision.device,
        }
        return PlanShown(plugin, {name: one.shown() for name, one in self.deployments.items()})


def gib(nbytes: float) -> str:
    """Return bytes as text in GiB."""
    return f"{nbytes / 2**30:.2f} GiB"

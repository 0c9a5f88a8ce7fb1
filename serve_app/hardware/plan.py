"""What a plan says: every number that was left to it, and why."""

from dataclasses import dataclass, field

from serve_app.hardware.detection import Hardware
from serve_app.hardware.footprint import Footprint


@dataclass(frozen=True, slots=True)
class Asked:
    """What the configuration fixes; `auto` or None where the plan decides.

    Attributes:
        device: `auto`, `cuda`, `mps` or `cpu`.
        dtype: `auto`, `float32`, `float16` or `bfloat16`.
        attention: `auto`, `sdpa`, `eager` or `flash_attention_2`.
        quantization: `none`, `8bit` or `4bit`.
        batch_size: Images in one forward pass.
        max_num_patches: Of a NaFlex image.
        deployments: What is fixed of each deployment, by its name in the configuration's `serving`
            block.
    """

    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    quantization: str = "none"
    batch_size: int | None = None
    max_num_patches: int = 256
    deployments: tuple[tuple[str, "AskedScale"], ...] = ()

    def scale(self, name: str) -> "AskedScale":
        """Return what is fixed of a deployment."""
        return dict(self.deployments).get(name, AskedScale())


@dataclass(frozen=True, slots=True)
class AskedScale:
    """What the configuration fixes of one deployment; None where the plan decides."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    num_replicas: int | None = None
    min_replicas: int = 1
    max_replicas: int | None = None


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """One deployment: Ray's resources of a replica, and between how many replicas it scales.

    Attributes:
        num_cpus: Logical CPUs of a replica.
        num_gpus: Part of a GPU of a replica.
        min_replicas: Fewest replicas.
        max_replicas: Most replicas.
        per_second: Images a second that one replica is expected to do; 0 where none are counted.
    """

    num_cpus: float
    num_gpus: float
    min_replicas: int
    max_replicas: int
    per_second: float


@dataclass(frozen=True, slots=True)
class Reason:
    """One value of the plan and why it is that."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a checkpoint is laid out on some hardware.

    Attributes:
        checkpoint: Its name.
        hardware: What it was planned for.
        device: `cuda`, `mps` or `cpu`.
        dtype: `float32`, `float16` or `bfloat16`.
        attention: `sdpa`, `eager` or `flash_attention_2`.
        quantization: As asked.
        batch_size: Most images in one forward pass.
        image: Memory of an ImageEncoder.
        text: Memory of a TextEncoder.
        deployments: By their names in the `serving` block.
        images_per_second: What all encoders together are expected to do, if they are fed.
        reasons: Why each number is what it is.
        advice: What might be better, where something was asked for explicitly.
        host_bytes: Maximum memory in bytes of each replica without a tower, by deployment.
    """

    checkpoint: str
    hardware: Hardware
    device: str
    dtype: str
    attention: str
    quantization: str
    batch_size: int
    image: Footprint
    text: Footprint
    deployments: dict[str, DeploymentPlan]
    images_per_second: float
    reasons: tuple[Reason, ...]
    advice: tuple[str, ...] = ()
    host_bytes: dict[str, int] = field(default_factory=dict)


def gib(nbytes: float) -> str:
    """Return bytes as text in GiB."""
    return f"{nbytes / 2**30:.2f} GiB"

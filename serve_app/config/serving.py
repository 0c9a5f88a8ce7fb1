"""The `serving` block: where the service listens, and the size and scale of each deployment.

Not here: the rest of the file and how it is read (`config/service.py`), and what `auto` becomes
(`hardware/planner.py`).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve_app.config.settings import Count, Seconds, Settings

DEPLOYMENTS = ("preprocessor", "image_encoder", "text_encoder", "postprocessor")
"""Keys of the deployments in the `serving` block."""

BY_REFERENCE_BYTES = 2 * 2**20
"""Payload from which one deployment sends arrays to another through Ray's object store.

Measured with micro-batches of uint8 pixels on two cores: 1.7 MiB takes a quarter less CPU by value,
and 2.3 MiB a sixth less by reference (bench/LOG.md).
"""


class DeploymentScale(Settings):
    """Number of replicas of a deployment, the resources of each, and the length of its queue."""

    num_replicas: Literal["auto"] | Count = "auto"
    min_replicas: Count = 1
    max_replicas: Literal["auto"] | Count = "auto"
    num_cpus: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    num_gpus: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = 0.0
    label_selector: dict[str, str] = {}
    max_ongoing_requests: Count = 64
    max_queued_requests: Count = 256

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.max_replicas != "auto" and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}"
            )
        if self.num_replicas != "auto" and self.num_replicas < self.min_replicas:
            raise ValueError(
                f"num_replicas {self.num_replicas} is less than min_replicas {self.min_replicas}; "
                "keep one of them"
            )
        if self.num_replicas != "auto" and self.max_replicas != "auto":
            raise ValueError(
                "num_replicas fixes the number and max_replicas bounds it; keep one of them"
            )
        return self

    @property
    def fixed_gpus(self) -> float | None:
        """The explicit fraction of a GPU; None for `auto`."""
        return None if self.num_gpus == "auto" else self.num_gpus

    @property
    def fixed_cpus(self) -> float | None:
        """The explicit number of CPUs; None for `auto`."""
        return None if self.num_cpus == "auto" else self.num_cpus


class Preprocessing(DeploymentScale):
    """The Preprocessor, which is the HTTP ingress and decodes images."""

    max_ongoing_requests: Count = 768
    decode_threads: Literal["auto"] | Count = "auto"


class ImageEncoding(DeploymentScale):
    """The ImageEncoder; each call carries a micro-batch."""

    num_gpus: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"


class TextEncoding(DeploymentScale):
    """The TextEncoder. New labels are rare, so it may scale to zero."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    num_gpus: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"


class Postprocessing(DeploymentScale):
    """The Postprocessor, which scores embeddings."""


class Serving(Settings):
    """Where the service listens, and how its deployments are laid out."""

    host: str = "auto"
    port: int = Field(8000, ge=1, le=65535)
    route_prefix: str = Field("/", pattern=r"^/([a-z0-9][a-z0-9-]*)?$")
    ingress: Literal["auto", "haproxy", "python"] = "auto"
    request_timeout_s: Seconds = 60.0
    batch_wait_timeout_s: float = Field(0.002, ge=0, le=10)
    scale_down_delay_s: Seconds = 120.0
    by_reference_bytes: Count = BY_REFERENCE_BYTES
    preprocessor: Preprocessing = Preprocessing()
    image_encoder: ImageEncoding = ImageEncoding()
    text_encoder: TextEncoding = TextEncoding()
    postprocessor: Postprocessing = Postprocessing()

    def scale(self, name: str) -> DeploymentScale:
        """Return the block of a deployment by its key in `DEPLOYMENTS`."""
        block: DeploymentScale = getattr(self, name)
        return block

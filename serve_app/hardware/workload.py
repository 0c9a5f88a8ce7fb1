"""What a plan is made for: a configuration, its checkpoint, its precision and the hardware."""

from dataclasses import dataclass

from serve_app.config.service import ServiceConfig
from serve_app.hardware.detection import Hardware
from serve_app.siglip.architecture import Architecture
from serve_app.siglip.precision import Precision


@dataclass(frozen=True, slots=True)
class Workload:
    """The input of a plan, after `auto` is resolved for device, dtype and attention.

    Attributes:
        config: The configuration.
        shape: Shape of the checkpoint's towers.
        precision: What the image tower runs as.
        text_cpu_precision: What the text tower runs as where it is on the CPU.
        hardware: The hardware to plan for.
    """

    config: ServiceConfig
    shape: Architecture
    precision: Precision
    text_cpu_precision: Precision
    hardware: Hardware

    @property
    def max_num_patches(self) -> int:
        """Maximum number of patches of a NaFlex image."""
        return self.config.siglip.max_num_patches

    @property
    def fixed_batch_size(self) -> int | None:
        """The explicit batch size; None where the plan chooses it."""
        return self.config.siglip.fixed_batch_size

    @property
    def image_flops(self) -> int:
        """Floating-point operations of one image."""
        return self.shape.image_flops(self.max_num_patches)

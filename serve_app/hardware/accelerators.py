"""The accelerators as data: memory, bandwidth, speed and dtypes, with a source for each row.

Names are Ray's (`ray.util.accelerators`), which are also the values of the node label
`ray.io/accelerator-type`. FLOP/s are dense tensor-core rates with float32 accumulation, without
sparsity, as the vendor's data sheet gives them.
"""

from dataclasses import dataclass

from serve_app.errors import ConfigError

GB = 10**9
TFLOPS = 10**12


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of GPU.

    Attributes:
        name: Ray's accelerator type.
        memory_bytes: Memory as marketed, in bytes; a driver leaves about 2 % less.
        bandwidth: Bandwidth of that memory in bytes per second.
        flops: Dense FLOP/s by dtype; a missing dtype is not computed natively.
        source: Source of the numbers.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: dict[str, float]
    source: str

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 is computed natively: Ampere and newer."""
        return "bfloat16" in self.flops


def _gpu(
    name: str,
    memory_gb: int,
    bandwidth_gb: int,
    half: float,
    float32: float,
    source: str,
    bfloat16: bool = True,
) -> Accelerator:
    flops = {"float32": float32 * TFLOPS, "float16": half * TFLOPS} | (
        {"bfloat16": half * TFLOPS} if bfloat16 else {}
    )
    return Accelerator(name, memory_gb * 2**30, bandwidth_gb * float(GB), flops, source)


ACCELERATORS: tuple[Accelerator, ...] = (
    _gpu(
        "T4", 16, 320, 65, 8.1, "NVIDIA T4 data sheet, 2019; Turing has no bfloat16", bfloat16=False
    ),
    _gpu(
        "V100",
        16,
        900,
        125,
        15.7,
        "NVIDIA V100 SXM2 data sheet, 2020; Volta has no bfloat16",
        bfloat16=False,
    ),
    _gpu(
        "A10G",
        24,
        600,
        70,
        35,
        "AWS G5 / NVIDIA A10G: half of the A10's tensor rate (A10 data sheet, 2021, 125)",
    ),
    _gpu("L4", 24, 300, 121, 30.3, "NVIDIA L4 data sheet, 2023; 242 with sparsity"),
    _gpu("L40S", 48, 864, 362, 91.6, "NVIDIA L40S data sheet, 2023; 733 with sparsity"),
    _gpu("A100-40G", 40, 1_555, 312, 19.5, "NVIDIA A100 40GB SXM data sheet, 2021"),
    _gpu("A100-80G", 80, 2_039, 312, 19.5, "NVIDIA A100 80GB SXM data sheet, 2021"),
    _gpu("H100", 80, 3_350, 989, 67, "NVIDIA H100 SXM data sheet, 2023; 1,979 with sparsity"),
    _gpu("H200", 141, 4_800, 989, 67, "NVIDIA H200 SXM data sheet, 2024"),
    _gpu("B200", 180, 8_000, 2_250, 80, "NVIDIA DGX B200 data sheet, 2024; 4,500 with sparsity"),
)
GENERIC = "GPU-"
"""Prefix of the name of an accelerator of which only the memory is known."""
ALIASES = {"A100": "A100-40G", "A10": "A10G"}
"""Ray labels every A100 `A100` besides its size; the smaller size is the safe reading."""


def find_accelerator(name: str, written: str | None = None) -> Accelerator:
    """Return the row of an accelerator, whatever the case of its name.

    Args:
        name: The name to look for.
        written: What a message quotes in place of the name.

    Raises:
        ConfigError: It is not in the table; the message lists those that are.
    """
    wanted = ALIASES.get(name.upper(), name.upper())
    for row in ACCELERATORS:
        if row.name == wanted:
            return row
    known = ", ".join(row.name.lower() for row in ACCELERATORS)
    raise ConfigError(
        f"accelerator {written or name!r} is not known; known are {known}. "
        "Any other is described by its memory, such as gpu24gb."
    )


def generic_accelerator(memory_gb: float, has_bfloat16: bool = True) -> Accelerator:
    """Return an accelerator of which only the memory is known.

    It has a T4's speed, so that plans are modest, and computes bfloat16 as Ampere does unless its
    compute capability says otherwise.
    """
    flops = {"float32": 8.1 * TFLOPS, "float16": 65 * TFLOPS}
    if has_bfloat16:
        flops["bfloat16"] = 65 * TFLOPS
    source = "assumed: only its memory was given"
    name = f"{GENERIC}{memory_gb:g}GB"
    return Accelerator(name, int(memory_gb * 2**30), 320.0 * GB, flops, source)

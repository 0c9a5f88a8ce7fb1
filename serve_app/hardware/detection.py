"""What there is to run on: this machine, a Ray cluster, or what a person writes, such as `l4x2`. No
torch.

CPU features are read where the system shows them (`/proc/cpuinfo`; Apple silicon by its name), GPUs
from `nvidia-smi`.
"""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import Accelerator, find_accelerator, generic_accelerator

CPUS_PER_GPU = 8
"""Assumed where only GPUs were named: what the common cloud machines with one GPU have (g6.2xlarge,
g2-standard-8)."""
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
CPU_FLOPS = {"float32": 40e9, "bfloat16": 80e9}
"""FLOP/s of one core, for estimates only: 35 to 85 were measured in float32 on two kinds of shared
EPYC cores, and 1.8 times that in bfloat16 where the core has it."""
NVIDIA_SMI_TIMEOUT_S = 10.0
ACCELERATOR_RESOURCE = "accelerator_type:"
ACCELERATOR_LABEL = "ray.io/accelerator-type"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a plan may use.

    Attributes:
        cpus: Logical CPUs of all nodes.
        has_cpu_bfloat16: Whether they compute bfloat16 natively (AVX512-BF16 or AMX); None where
            only a name was given.
        gpus: GPUs of all nodes, all of one kind; 0 for none.
        accelerator: That kind; None without GPUs.
        has_mps: Whether this is Apple silicon.
        source: Where this was learnt, in words.
        largest_node_cpus: Of the node that has most; None for all of them on one.
    """

    cpus: float
    has_cpu_bfloat16: bool | None
    gpus: int
    accelerator: Accelerator | None
    has_mps: bool
    source: str
    largest_node_cpus: float | None = None

    @property
    def node_cpus(self) -> float:
        """The most CPUs that one replica can have."""
        return self.cpus if self.largest_node_cpus is None else self.largest_node_cpus

    @property
    def written(self) -> str:
        """Return it as `parse_hardware` reads it."""
        if self.accelerator is None:
            return f"cpu{max(1, int(self.cpus))}"
        name = self.accelerator.name.lower()
        kind = name.replace("-", "") if name.startswith("gpu-") else name
        return f"{kind}x{self.gpus}+{max(1, int(self.cpus))}cpu"

    @property
    def described(self) -> str:
        """Return it in a few words."""
        gpus = f"{self.gpus} × {self.accelerator.name}, " if self.accelerator else ""
        return f"{gpus}{self.cpus:g} CPUs ({self.source})"


def parse_hardware(text: str) -> Hardware:
    """Read what a person writes: `l4`, `l4x2`, `l4x2+16cpu`, `gpu24gb`, `cpu8`.

    Raises:
        ConfigError: It is none of these.
    """
    if text.strip().lower() == "auto":
        return detect_machine()
    match = re.fullmatch(
        r"(?P<gpu>[a-z0-9.-]+?)(?:x(?P<count>\d+))?(?:\+(?P<cpus>\d+)cpus?)?", text.strip().lower()
    )
    only_cpus = re.fullmatch(r"(?:cpus?(?P<after>\d*)|(?P<before>\d+)cpus?)", text.strip().lower())
    if only_cpus:
        number = only_cpus["after"] or only_cpus["before"] or str(os.cpu_count() or 1)
        if int(number) < 1:
            raise ConfigError(f"hardware {text!r} has no CPU; write for example cpu8.")
        return Hardware(float(number), None, 0, None, False, text)
    if match is None:
        raise ConfigError(
            f"hardware {text!r} cannot be read; write for example l4, l4x2, a100-80gx8+96cpu, gpu24gb or cpu8."
        )
    memory = re.fullmatch(r"gpu(\d+(?:\.\d+)?)gb", match["gpu"])
    if memory and float(memory[1]) <= 0:
        raise ConfigError(f"hardware {text!r} has no memory; write for example gpu24gb.")
    accelerator = (
        generic_accelerator(float(memory[1])) if memory else find_accelerator(match["gpu"], text)
    )
    count = int(match["count"] or 1)
    if count < 1:
        raise ConfigError(
            f"hardware {text!r} has no GPU; write for example l4x2, or cpu8 for none."
        )
    return Hardware(
        float(match["cpus"] or CPUS_PER_GPU * count), None, count, accelerator, False, text
    )


def detect_machine(with_gpus: bool = True) -> Hardware:
    """Return what this machine has; `with_gpus` is False where the configuration says `device:
    cpu`.
    """
    names = _nvidia_gpus() if with_gpus else []
    accelerator = min(
        (_accelerator_of(*name) for name in names), key=lambda row: row.memory_bytes, default=None
    )
    return Hardware(
        float(os.cpu_count() or 1),
        cpu_has_bfloat16(),
        len(names),
        accelerator,
        is_apple_silicon(),
        "this machine",
    )


def is_apple_silicon() -> bool:
    """Whether this machine has Metal's device, `mps`."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def hardware_of_nodes(
    nodes: Iterable[Mapping[str, Any]], cpu_bfloat16: bool, source: str, with_gpus: bool = True
) -> Hardware:
    """Return what the living nodes of a Ray cluster have together, from their resources and labels.

    Args:
        nodes: Objects with `resources` and, where Ray shows them, `labels`.
        cpu_bfloat16: Whether their CPUs compute bfloat16; Ray does not know.
        source: Of the answer, in words.
        with_gpus: Whether GPUs are looked at; not where the configuration says `device: cpu`.

    Raises:
        ConfigError: The GPUs are of several kinds or of one that is not known.
    """
    cpus = 0.0
    gpus = 0.0
    largest = 0.0
    kinds = set[str]()
    for node in nodes:
        resources = node.get("resources", {})
        labels = node.get("labels", {})
        cpus += resources.get("CPU", 0)
        largest = max(largest, resources.get("CPU", 0))
        gpus += resources.get("GPU", 0)
        if resources.get("GPU", 0):
            named = {
                key.removeprefix(ACCELERATOR_RESOURCE)
                for key in resources
                if key.startswith(ACCELERATOR_RESOURCE)
            }
            # `A100` and `A100-80G` stand side by side: the longer one says more
            kinds.add(max(named | {labels.get(ACCELERATOR_LABEL, "")}, key=len))
    if gpus < 1 or not with_gpus:
        return Hardware(cpus, cpu_bfloat16, 0, None, is_apple_silicon(), source, largest)
    if len(kinds) > 1 or "" in kinds:
        found = ", ".join(sorted(kind or "unnamed" for kind in kinds))
        raise ConfigError(
            f"the cluster's GPUs are of these kinds: {found}; set hardware in the configuration, such as hardware: l4x2."
        )
    return Hardware(
        cpus, cpu_bfloat16, int(gpus), find_accelerator(kinds.pop()), False, source, largest
    )


def cpu_has_bfloat16() -> bool:
    """Whether this machine's CPU computes bfloat16 in hardware."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next(
        (line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")),
        [],
    )
    return any(flag in flags for flag in BFLOAT16_FLAGS)


def _nvidia_gpus() -> list[tuple[str, float]]:
    """Return name and memory in MiB of each GPU that `nvidia-smi` shows; none where it is not there
    or fails.
    """
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in shown.splitlines() if "," in line]
    return [
        (name.strip(), float(memory))
        for name, memory in rows
        if memory.strip().replace(".", "").isdigit()
    ]


def _accelerator_of(name: str, memory_mib: float) -> Accelerator:
    """Return the table's row for a name such as `NVIDIA A100-SXM4-80GB`, or one of which only the
    memory is known.
    """
    words = re.split(r"[\s-]+", name.upper())
    for word in words:
        try:
            row = find_accelerator(
                f"{word}-80G" if word == "A100" and memory_mib > 60_000 else word
            )
        except ConfigError:
            continue
        # a part of a card, as of a virtual machine, has less than the card
        return (
            row
            if memory_mib * 2**20 > 0.85 * row.memory_bytes
            else generic_accelerator(round(memory_mib / 1024))
        )
    return generic_accelerator(round(memory_mib / 1024))

"""The hardware to plan for: this machine, the nodes of a Ray cluster, or a name such as `l4x2`.

No torch: CPU features are read from `/proc/cpuinfo` (Apple silicon by its name), GPUs from
`nvidia-smi`, and whether flash-attn is installed from the import path.
"""

import dataclasses
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import Accelerator, find_accelerator, generic_accelerator

CPUS_PER_GPU = 8
"""CPUs for each GPU where only GPUs are named.

Source: common cloud machines with one GPU (g6.2xlarge, g2-standard-8).
"""
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
MIN_BFLOAT16_CAPABILITY = 8.0
"""CUDA compute capability of Ampere, the first generation that computes bfloat16."""
NVIDIA_SMI_TIMEOUT_S = 10.0
ACCELERATOR_RESOURCE = "accelerator_type:"
ACCELERATOR_LABEL = "ray.io/accelerator-type"
NO_DEVICES = ("", "-1", "NoDevFiles")
"""Values of `CUDA_VISIBLE_DEVICES` that hide every GPU."""


class NodeFeatures(NamedTuple):
    """What Ray does not know of a node, so it is probed there.

    Attributes:
        has_cpu_bfloat16: Whether the CPU computes bfloat16 natively (AVX512-BF16 or AMX).
        has_flash_attention: Whether the flash-attn package is installed.
    """

    has_cpu_bfloat16: bool
    has_flash_attention: bool


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a plan may use.

    Attributes:
        cpus: Logical CPUs of all nodes.
        has_cpu_bfloat16: Whether all CPUs compute bfloat16 natively; None if not probed.
        gpus: GPUs of all nodes, all of one kind; 0 for none.
        accelerator: That kind; None without GPUs.
        has_mps: Whether this is Apple silicon.
        source: Where this is known from, in words.
        largest_node_cpus: CPUs of the node with the most; None if all are on one node.
        has_flash_attention: Whether all GPU nodes have the flash-attn package; None if not probed.
    """

    cpus: float
    has_cpu_bfloat16: bool | None
    gpus: int
    accelerator: Accelerator | None
    has_mps: bool
    source: str
    largest_node_cpus: float | None = None
    has_flash_attention: bool | None = None

    @property
    def node_cpus(self) -> float:
        """Maximum number of CPUs of one replica."""
        return self.cpus if self.largest_node_cpus is None else self.largest_node_cpus

    @property
    def written(self) -> str:
        """The hardware as `parse_hardware` reads it."""
        if self.accelerator is None:
            return f"cpu{max(1, int(self.cpus))}"
        name = self.accelerator.name.lower()
        kind = name.replace("-", "") if name.startswith("gpu-") else name
        return f"{kind}x{self.gpus}+{max(1, int(self.cpus))}cpu"

    @property
    def described(self) -> str:
        """The hardware in a few words."""
        gpus = f"{self.gpus} × {self.accelerator.name}, " if self.accelerator else ""
        return f"{gpus}{self.cpus:g} CPUs ({self.source})"

    def with_features(self, features: NodeFeatures) -> "Hardware":
        """Return this hardware with probed features."""
        return dataclasses.replace(self, **features._asdict())


def parse_hardware(text: str) -> Hardware:
    """Read a name such as `l4`, `l4x2`, `l4x2+16cpu`, `gpu24gb` or `cpu8`; `auto` is this machine.

    Raises:
        ConfigError: The name cannot be read.
    """
    name = text.strip().lower()
    if name == "auto":
        return detect_machine()
    only_cpus = re.fullmatch(r"(?:cpus?(?P<after>\d*)|(?P<before>\d+)cpus?)", name)
    if only_cpus:
        number = only_cpus["after"] or only_cpus["before"] or str(os.cpu_count() or 1)
        if int(number) < 1:
            raise ConfigError(f"hardware {text!r} has no CPU; write for example cpu8.")
        return Hardware(float(number), None, 0, None, False, text)
    return _parse_gpus(name, text)


def _parse_gpus(name: str, text: str) -> Hardware:
    """Read the name of hardware with GPUs; `text` is what a message quotes."""
    pattern = r"(?P<gpu>[a-z0-9.-]+?)(?:x(?P<count>\d+))?(?:\+(?P<cpus>\d+)cpus?)?"
    match = re.fullmatch(pattern, name)
    if match is None:
        raise ConfigError(
            f"hardware {text!r} cannot be read; "
            "write for example l4, l4x2, a100-80gx8+96cpu, gpu24gb or cpu8."
        )
    count = int(match["count"] or 1)
    accelerator = _parse_accelerator(match["gpu"], text)
    if count < 1:
        raise ConfigError(
            f"hardware {text!r} has no GPU; write for example l4x2, or cpu8 for none."
        )
    cpus = float(match["cpus"] or CPUS_PER_GPU * count)
    return Hardware(cpus, None, count, accelerator, False, text)


def _parse_accelerator(name: str, text: str) -> Accelerator:
    memory = re.fullmatch(r"gpu(\d+(?:\.\d+)?)gb", name)
    if memory is None:
        return find_accelerator(name, text)
    if float(memory[1]) <= 0:
        raise ConfigError(f"hardware {text!r} has no memory; write for example gpu24gb.")
    return generic_accelerator(float(memory[1]))


def detect_machine(with_gpus: bool = True) -> Hardware:
    """Return what this machine has; GPUs are not looked for where the configuration wants none."""
    gpus = _nvidia_gpus() if with_gpus else []
    accelerator = min(gpus, key=lambda row: row.memory_bytes, default=None)
    machine = Hardware(
        float(os.cpu_count() or 1),
        None,
        len(gpus),
        accelerator,
        is_apple_silicon(),
        "this machine",
    )
    return machine.with_features(detect_features())


def detect_features() -> NodeFeatures:
    """Return what this machine's CPU and installation can do."""
    return NodeFeatures(cpu_has_bfloat16(), find_spec("flash_attn") is not None)


def is_apple_silicon() -> bool:
    """Whether this machine has Metal's device, `mps`."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def cpu_has_bfloat16() -> bool:
    """Whether this machine's CPU computes bfloat16 in hardware.

    It is 1.7 to 1.9 times as fast as float32 there, and slower than float32 elsewhere.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    flags = next(lines, "flags:").split(":", 1)[1].split()
    return any(flag in flags for flag in BFLOAT16_FLAGS)


def hardware_of_nodes(
    nodes: Iterable[Mapping[str, Any]], source: str, with_gpus: bool = True
) -> Hardware:
    """Return what the living nodes of a Ray cluster have together; their features are not probed.

    Args:
        nodes: Objects with `resources` and, where Ray shows them, `labels`.
        source: Where the nodes are known from, in words.
        with_gpus: Whether to look for GPUs; False where the configuration says `device: cpu`.

    Raises:
        ConfigError: The GPUs are of several kinds, or of a kind that is not known.
    """
    cpus: list[float] = []
    gpus = 0.0
    kinds = set[str]()
    for node in nodes:
        resources = node.get("resources", {})
        cpus.append(resources.get("CPU", 0))
        if resources.get("GPU", 0):
            gpus += resources["GPU"]
            kinds.add(_accelerator_name(resources, node.get("labels", {})))

    largest = max(cpus, default=0)
    if gpus < 1 or not with_gpus:
        return Hardware(sum(cpus), None, 0, None, is_apple_silicon(), source, largest)
    if len(kinds) > 1 or "" in kinds:
        found = ", ".join(sorted(kind or "unnamed" for kind in kinds))
        raise ConfigError(
            f"the cluster's GPUs are of these kinds: {found}; "
            "set hardware in the configuration, such as hardware: l4x2."
        )
    accelerator = find_accelerator(kinds.pop())
    return Hardware(sum(cpus), None, int(gpus), accelerator, False, source, largest)


def _accelerator_name(resources: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """Return the accelerator type of a node; empty if Ray does not know it."""
    named = {
        key.removeprefix(ACCELERATOR_RESOURCE)
        for key in resources
        if key.startswith(ACCELERATOR_RESOURCE)
    }
    # Ray lists `A100` next to `A100-80G`; the longer one is more precise
    return max(named | {labels.get(ACCELERATOR_LABEL, "")}, key=len)


def _nvidia_gpus() -> list[Accelerator]:
    """Return each GPU that `nvidia-smi` lists; none if it is missing or fails."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in NO_DEVICES:
        return []
    # drivers before 510 do not know compute_cap, and refuse the whole query
    for columns in ("name,memory.total,compute_cap", "name,memory.total"):
        if gpus := _queried_gpus(columns, visible):
            return gpus
    return []


def _queried_gpus(columns: str, visible: str | None) -> list[Accelerator]:
    chosen = [f"--id={visible}"] if visible is not None else []
    command = ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits", *chosen]
    try:
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in shown.splitlines()]
    return [_accelerator_of(*row) for row in rows if len(row) > 1 and _is_number(row[1])]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _accelerator_of(name: str, memory_mib: str, capability: str = "") -> Accelerator:
    """Return the table's row for a name such as `NVIDIA A100-SXM4-80GB`, else a generic card."""
    mib = float(memory_mib)
    for word in re.split(r"[\s-]+", name.upper()):
        try:
            row = find_accelerator(f"{word}-80G" if word == "A100" and mib > 60_000 else word)
        except ConfigError:
            continue
        # a part of a card, as in a virtual machine, has less memory than the card
        if mib * 2**20 > 0.85 * row.memory_bytes:
            return row
        break
    is_old = _is_number(capability) and float(capability) < MIN_BFLOAT16_CAPABILITY
    return generic_accelerator(round(mib / 1024), has_bfloat16=not is_old)

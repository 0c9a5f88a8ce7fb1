"""What people write, what nvidia-smi prints, and what Ray's nodes say."""

import os
from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.hardware import detection
from serve_app.hardware.detection import detect_machine, hardware_of_nodes, parse_hardware


@pytest.mark.parametrize(
    ("text", "gpus", "name", "cpus"),
    [
        ("l4", 1, "L4", 8),
        ("L4x2", 2, "L4", 16),
        ("a100-80gx8+96cpu", 8, "A100-80G", 96),
        ("a100", 1, "A100-40G", 8),
        ("h200x8+192cpus", 8, "H200", 192),
        ("gpu24gb", 1, "GPU-24GB", 8),
        ("gpu1.5gbx3", 3, "GPU-1.5GB", 24),
        ("cpu8", 0, None, 8),
        ("16cpus", 0, None, 16),
        ("cpu", 0, None, os.cpu_count()),
    ],
)
def test_what_people_write(text: str, gpus: int, name: str | None, cpus: int) -> None:
    """Kind, number and CPUs; what is left out is assumed."""
    found = parse_hardware(text)
    assert (found.gpus, found.accelerator.name if found.accelerator else None, found.cpus) == (
        gpus,
        name,
        cpus,
    )


@pytest.mark.parametrize(
    "text", ["", "l5", "l4x0", "x2", "l4 x2", "cpu0", "gpu0gb", "rtx4090", "l4x2+cpu", "🚀"]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    """One line that shows how it is written."""
    with pytest.raises(ConfigError, match=r"known are|write for example"):
        parse_hardware(text)


@pytest.mark.parametrize(
    ("printed", "gpus", "name", "memory_gib"),
    [
        ("Tesla T4, 15360\n", 1, "T4", 16),
        ("NVIDIA L4, 23034\nNVIDIA L4, 23034\n", 2, "L4", 24),
        ("NVIDIA A100-SXM4-80GB, 81920\n", 1, "A100-80G", 80),
        ("NVIDIA A100-SXM4-40GB, 40960\n", 1, "A100-40G", 40),
        ("NVIDIA H100 80GB HBM3, 81559\n", 1, "H100", 80),
        ("NVIDIA GeForce RTX 3060, 12288\n", 1, "GPU-12GB", 12),
        ("GRID A100-10C, 10240\n", 1, "GPU-10GB", 10),
        ("NVIDIA L4, 23034\nTesla T4, 15360\n", 2, "T4", 16),
        ("NVIDIA-SMI has failed\n", 0, None, 0),
    ],
)
def test_what_nvidia_smi_prints(
    printed: str,
    gpus: int,
    name: str | None,
    memory_gib: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program of that name on the path: cards of the table by name, others by their memory."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = detect_machine()
    assert found.gpus == gpus
    assert (found.accelerator.name if found.accelerator else None) == name
    assert not found.accelerator or found.accelerator.memory_bytes == memory_gib * 2**30


@pytest.mark.parametrize(("capability", "has_bfloat16"), [("7.5", False), ("8.6", True)])
def test_an_unknown_card_has_bfloat16_from_ampere_on(
    capability: str, has_bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compute capability says whether a card outside of the table computes bfloat16."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho 'NVIDIA GeForce RTX, 12288, {capability}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    accelerator = detect_machine().accelerator
    assert accelerator is not None
    assert accelerator.has_bfloat16 is has_bfloat16


@pytest.mark.parametrize(("visible", "gpus"), [("", 0), ("-1", 0), ("1", 1)])
def test_hidden_gpus_are_not_planned_for(
    visible: str, gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CUDA_VISIBLE_DEVICES` hides cards from this process, so the plan must not use them."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase \"$*\" in *--id=1*) ;; *) echo 'NVIDIA L4, 23034' ;; esac\n"
        "echo 'NVIDIA L4, 23034'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert detect_machine().gpus == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detect_machine().gpus == gpus


def test_a_broken_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails, as in a container without a driver."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert detect_machine().gpus == 0


def test_nodes_of_a_cluster() -> None:
    """GPUs and CPUs of all nodes; the kind from the label, or from Ray's accelerator resource."""
    nodes = [
        {"resources": {"CPU": 4.0}, "labels": {}},
        {
            "resources": {"CPU": 16.0, "GPU": 2.0, "accelerator_type:L4": 1.0},
            "labels": {"ray.io/accelerator-type": "L4"},
        },
        {"resources": {"CPU": 16.0, "GPU": 2.0, "accelerator_type:L4": 1.0}},
    ]
    found = hardware_of_nodes(nodes, "test")
    assert (found.cpus, found.gpus, found.has_cpu_bfloat16) == (36, 4, None)
    assert found.accelerator is not None
    assert found.accelerator.name == "L4"
    labels = {"ray.io/accelerator-type": "A100"}
    a100 = [
        {
            "resources": {
                "GPU": 1.0,
                "accelerator_type:A100": 1.0,
                "accelerator_type:A100-80G": 1.0,
            },
            "labels": labels,
        }
    ]
    assert hardware_of_nodes(a100, "test").accelerator.name == "A100-80G"  # type: ignore[union-attr]
    assert hardware_of_nodes(nodes[:1], "test").gpus == 0


@pytest.mark.parametrize(
    "second", [{"resources": {"GPU": 1.0, "accelerator_type:T4": 1.0}}, {"resources": {"GPU": 1.0}}]
)
def test_mixed_and_unnamed_gpus_are_refused(second: dict[str, object]) -> None:
    """One plan has one kind of GPU; the message says how to choose."""
    with pytest.raises(ConfigError, match="set hardware"):
        hardware_of_nodes([{"resources": {"GPU": 1.0, "accelerator_type:L4": 1.0}}, second], "test")


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags\t: fpu avx2\n", False),
        ("flags\t: fpu avx512_bf16\n", True),
        ("flags : amx_bf16 x\n", True),
        ("", False),
    ],
)
def test_cpu_flags(text: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel prints them."""
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(detection, "Path", lambda _: path)
    assert detection.cpu_has_bfloat16() is has


def test_this_machine_is_read_alike_with_and_without_torch() -> None:
    """The CPU's flags say what torch finds by asking the CPU itself."""
    import torch

    by_torch = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert detection.cpu_has_bfloat16() == by_torch


@pytest.mark.parametrize("text", ["l4x2+16cpu", "a100-80gx8+96cpu", "gpu24gbx1+8cpu", "cpu8"])
def test_hardware_is_written_as_it_is_read(text: str) -> None:
    """What was read is written as it was."""
    assert parse_hardware(text).written == text


def test_auto_is_this_machine() -> None:
    """Also where a person writes it."""
    assert parse_hardware("auto") == detect_machine()
    assert detect_machine(with_gpus=False).gpus == 0


def test_gpus_are_not_looked_at_where_the_device_is_the_cpu() -> None:
    """Cards of an unknown kind do not stand in the way of a service on the CPU."""
    nodes = [{"resources": {"CPU": 8.0, "GPU": 1.0, "accelerator_type:G": 1.0}}]
    assert hardware_of_nodes(nodes, "test", with_gpus=False).gpus == 0
    with pytest.raises(ConfigError):
        hardware_of_nodes(nodes, "test")

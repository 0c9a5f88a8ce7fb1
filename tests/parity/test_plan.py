"""The plan is what runs: towers that are started with a plan's precision report exactly that.

Every combination of device, dtype, attention and quantization that exists without a GPU.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import ConfigError
from serve_app.hardware.detection import parse_hardware
from serve_app.hardware.plan import Plan
from serve_app.hardware.planning import hardware_here, plan_service
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.siglip.hub import load_checkpoint
from serve_app.towers.loading import read_back
from serve_app.towers.starting import start_image_tower, start_text_tower

FAMILIES = ("siglip", "siglip2-naflex")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTIONS = ("auto", "sdpa", "eager")
QUANTIZATIONS = ("none", "8bit", "4bit")
BASE = "google/siglip-base-patch16-224"


def config_of(folder: Path, **plugin: str) -> ServiceConfig:
    siglip = {"model": str(folder), "batch_size": 2} | plugin
    return parse_config({"labels": ["cat", "dog"], "plugins": {"siglip": siglip}})


def check_runs(config: ServiceConfig, plan: Plan) -> None:
    """Start both towers as replicas do, and read from the models what they run as."""
    checkpoint = load_checkpoint(config.siglip.model_source)
    image = start_image_tower(checkpoint, plan.precision, num_threads=1, gpu_share=0.0)
    text = start_text_tower(checkpoint, plan.text_precision, num_threads=1, gpu_share=0.0)
    assert read_back(image._model) == image.runtime == plan.precision
    assert read_back(text._model) == text.runtime == plan.text_precision


@pytest.mark.parametrize(
    ("family", "dtype", "attention", "quantization"),
    list(itertools.product(FAMILIES, DTYPES, ATTENTIONS, QUANTIZATIONS)),
)
def test_towers_run_as_planned(
    tiny: Callable[[str], Path],
    family: str,
    dtype: str,
    attention: str,
    quantization: str,
) -> None:
    """Planned for this machine, both towers run as the plan says; explicit values are kept."""
    requested = {
        "dtype": dtype,
        "attention": attention,
        "quantization": quantization,
    }
    config = config_of(tiny(family), **requested)
    hardware = dataclasses.replace(
        hardware_here(config.hardware, config.siglip), gpus=0, accelerator=None
    )
    plan = plan_service(config, hardware)

    check_runs(config, plan)
    planned = dataclasses.asdict(plan.precision)
    assert "auto" not in planned.values()
    kept = {key: value for key, value in requested.items() if value != "auto"}
    assert kept.items() <= planned.items()


@pytest.mark.parametrize(
    ("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float32"), (None, "float32")]
)
def test_whatever_was_probed_is_what_runs(
    tiny: Callable[[str], Path], has_bfloat16: bool | None, dtype: str
) -> None:
    """The replica does not look at its own CPU again: it runs the dtype that was planned."""
    config = config_of(tiny("siglip"))
    hardware = dataclasses.replace(parse_hardware("cpu2"), has_cpu_bfloat16=has_bfloat16)
    plan = plan_service(config, hardware)
    assert plan.precision.dtype == dtype
    check_runs(config, plan)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_text_tower_on_the_cpu_of_a_gpu_plan_runs_as_planned(
    tiny: Callable[[str], Path], has_bfloat16: bool
) -> None:
    """It takes the CPU's dtype, whatever the GPU's explicit dtype and kernel are."""
    siglip = {"model": BASE, "dtype": "float16", "attention": "flash_attention_2"}
    serving = {"text_encoder": {"num_gpus": 0.0}}
    config = parse_config({"labels": ["cat"], "plugins": {"siglip": siglip}, "serving": serving})
    hardware = dataclasses.replace(parse_hardware("l4"), has_cpu_bfloat16=has_bfloat16)
    plan = plan_service(config, hardware)
    assert (plan.precision.device, plan.precision.dtype) == ("cuda", "float16")

    checkpoint = load_checkpoint(str(tiny("siglip")))
    text = start_text_tower(checkpoint, plan.text_precision, num_threads=1, gpu_share=0.0)
    assert read_back(text._model) == plan.text_precision
    assert plan.text_precision.dtype == ("bfloat16" if has_bfloat16 else "float32")


@pytest.mark.parametrize(
    "plugin",
    [{"device": "mps"}, {"attention": "flash_attention_2"}, {"device": "cuda", "dtype": "float16"}],
)
def test_what_cannot_run_is_refused_by_the_plan(
    tiny: Callable[[str], Path], plugin: dict[str, Any]
) -> None:
    """A CPU has no such device or kernel, so there is no plan that a replica could not run."""
    with pytest.raises(ConfigError, match="auto"):
        plan_service(config_of(tiny("siglip"), **plugin), parse_hardware("cpu2"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_process_resolves_as_a_plan_does(tiny: Callable[[str], Path], dtype: str) -> None:
    """`LocalTagger` runs as the service that is planned for the same machine."""
    config = config_of(tiny("siglip"), device="cpu", dtype=dtype)
    plan = plan_service(config, hardware_here(config.hardware, config.siglip))
    tagger = LocalTagger(config)
    assert tagger._tower.runtime == plan.precision
    assert tagger.scorer.precision == plan.text_precision

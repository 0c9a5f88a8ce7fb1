"""Plans of every checkpoint on every size of hardware, and what is refused."""

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config.plugin import MODEL_VARIANTS
from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import ACCELERATORS
from serve_app.hardware.detection import Hardware, parse_hardware
from serve_app.hardware.footprint import image_footprint, text_footprint
from serve_app.hardware.plan import Plan
from serve_app.hardware.planner import make_plan
from serve_app.siglip.architecture import Architecture
from serve_app.siglip.checkpoints import Family
from serve_app.siglip.released import RELEASED, Released, find_released

Scales = dict[str, dict[str, Any]]
SIZES = ("gpu4gb", "gpu8gb", "gpu16gb", "gpu24gb", "gpu40gb", "gpu80gb", "gpu141gb", "cpu8")
SO400M, GIANT, NAFLEX, BASE = (
    MODEL_VARIANTS[name] for name in ("so400m-v2", "giant-v2", "base-naflex", "base")
)


def shape_of(hub_id: str) -> Architecture:
    row = find_released(hub_id)
    assert row is not None
    return row.architecture


def config_of(hub_id: str, serving: Scales | None = None, **plugin: object) -> ServiceConfig:
    blocks = {"plugins": {"siglip": {"model": hub_id} | plugin}, "serving": serving or {}}
    return ServiceConfig.model_validate(blocks)


def scales(**blocks: dict[str, Any]) -> dict[str, Any]:
    return {"serving": blocks}


def plan_on(hub_id: str, hardware: Hardware, **options: Any) -> Plan:
    return make_plan(config_of(hub_id, **options), shape_of(hub_id), hardware)


def plan(hub_id: str, hardware: str, flash: bool | None = None, **options: Any) -> Plan:
    found = dataclasses.replace(parse_hardware(hardware), has_flash_attention=flash)
    return plan_on(hub_id, found, **options)


def plan_or_refusal(row: Released, hardware: Hardware, **options: Any) -> Plan | str:
    """Return a plan, or the sentence that refuses it; anything else fails the test."""
    try:
        return plan_on(row.hub_id, hardware, **options)
    except ConfigError as error:
        return str(error)


def check_fits(made: Plan, shape: Architecture) -> None:
    """Every GPU holds its encoders and the text tower, in fractions and in bytes."""
    image = made.deployments["image_encoder"]
    text = made.deployments["text_encoder"]
    accelerator = made.hardware.accelerator
    assert accelerator is not None
    per_gpu = image.max_replicas // made.hardware.gpus
    assert per_gpu * image.num_gpus + text.num_gpus <= 1 + 1e-9
    assert made.image.needed <= image.num_gpus * accelerator.memory_bytes
    assert text.num_gpus == 0 or made.text.needed <= text.num_gpus * accelerator.memory_bytes
    assert made.image == image_footprint(shape, made.precision, made.batch_size, 256)
    assert made.text.weights == text_footprint(shape, made.text_precision).weights


@pytest.mark.parametrize(("variant", "hardware"), list(itertools.product(MODEL_VARIANTS, SIZES)))
def test_the_plugin_documents_checkpoints_on_every_size(variant: str, hardware: str) -> None:
    """A plan that fits, or one sentence; these all fit."""
    hub_id = MODEL_VARIANTS[variant]
    made = plan(hub_id, hardware)
    if made.hardware.gpus:
        check_fits(made, shape_of(hub_id))
    assert all(
        planned.max_replicas >= planned.min_replicas >= 1 for planned in made.deployments.values()
    )
    assert made.images_per_second > 0


@given(
    row=st.sampled_from(RELEASED),
    memory_gb=st.floats(0.5, 200).map(lambda x: round(x, 1)),
    gpus=st.integers(1, 9),
    dtype=st.sampled_from(["auto", "float32", "float16", "bfloat16"]),
    quantization=st.sampled_from(["none", "8bit", "4bit"]),
    batch=st.one_of(st.none(), st.integers(1, 1024)),
)
def test_a_plan_fits_or_is_refused_in_one_sentence(
    row, memory_gb, gpus, dtype, quantization, batch
) -> None:  # type: ignore[no-untyped-def]
    """Whatever is asked on whatever card: it fits, or a ConfigError of one line that says what
    would.
    """
    plugin = {"dtype": dtype, "quantization": quantization, "batch_size": batch or "auto"}
    made = plan_or_refusal(row, parse_hardware(f"gpu{memory_gb}gbx{gpus}"), **plugin)
    if isinstance(made, str):
        assert "\n" not in made
        assert "fits" in made or "take a GPU with" in made
        return
    check_fits(made, row.architecture)
    assert made.batch_size == (batch or made.batch_size)
    assert made.precision.quantization == quantization
    assert made.precision.dtype == (dtype if dtype != "auto" else "bfloat16")


@given(cpus=st.floats(0.5, 256), row=st.sampled_from(RELEASED))
def test_cpu_plans_take_no_more_than_there_is(cpus: float, row: Released) -> None:
    """All replicas together need no more CPUs than the machine has."""
    hardware = Hardware(cpus, False, 0, None, False, "test")
    made = plan_on(row.hub_id, hardware)
    assert (
        sum(planned.num_cpus * planned.max_replicas for planned in made.deployments.values())
        <= max(cpus, 1.0) + 1e-9
    )
    assert made.deployments["image_encoder"].num_gpus == 0


@pytest.mark.parametrize("accelerator", ACCELERATORS, ids=lambda row: row.name)
def test_dtype_follows_the_accelerator(accelerator: object) -> None:
    """bfloat16 from Ampere on, float16 on Turing and Volta."""
    name = accelerator.name  # type: ignore[attr-defined]
    assert plan(BASE, name.lower()).precision.dtype == (
        "float16" if name in ("T4", "V100") else "bfloat16"
    )


def test_dtype_follows_the_cpu() -> None:
    """bfloat16 where the CPU has units for it, else float32."""
    for has, dtype in ((True, "bfloat16"), (False, "float32")):
        hardware = Hardware(8, has, 0, None, False, "test")
        assert plan_on(BASE, hardware).precision.dtype == dtype
    mac = Hardware(8, False, 0, None, True, "test")
    assert plan_on(BASE, mac).precision.device == "mps"


def test_attention() -> None:
    """Flash only where its package is and the family, the dtype and the card allow it; asked for
    otherwise it is refused.
    """
    assert plan(SO400M, "l4").precision.attention == "sdpa"
    assert plan(SO400M, "l4", flash=True).precision.attention == "flash_attention_2"
    assert plan(NAFLEX, "l4", flash=True).precision.attention == "sdpa"
    assert plan(SO400M, "t4", flash=True).precision.attention == "sdpa"
    assert plan(SO400M, "cpu8", flash=True).precision.attention == "sdpa"
    assert plan(SO400M, "l4", attention="eager").precision.attention == "eager"
    assert shape_of(NAFLEX).family is Family.NAFLEX
    for hub_id, hardware, options in (
        (NAFLEX, "l4", {}),
        (SO400M, "cpu8", {}),
        (SO400M, "t4", {}),
        (SO400M, "l4", {"dtype": "float32"}),
    ):
        with pytest.raises(ConfigError, match="flash_attention_2"):
            plan(hub_id, hardware, attention="flash_attention_2", **options)


def test_what_is_fixed_stays() -> None:
    """Explicit values are kept in the plan, with advice where another value is better."""
    serving = {
        "image_encoder": {"num_cpus": 3.0, "num_gpus": 0.25},
        "text_encoder": {"min_replicas": 0},
    }
    made = plan(BASE, "l4x2", dtype="float32", batch_size=5, serving=serving)
    image = made.deployments["image_encoder"]
    assert (image.num_cpus, image.num_gpus, image.max_replicas) == (3.0, 0.25, 6)
    assert (made.precision.dtype, made.batch_size) == ("float32", 5)
    assert made.deployments["text_encoder"].min_replicas == 0
    assert any("float32" in line for line in made.advice)
    assert any("eager" in line for line in plan(BASE, "cpu8", attention="eager").advice)


@pytest.mark.parametrize(
    ("hub_id", "hardware", "options", "said"),
    [
        (GIANT, "gpu2gb", {}, "quantization 4bit fits"),
        (GIANT, "gpu2gb", {}, "google/siglip2-so400m-patch16-512 fits"),
        (SO400M, "gpu8gb", {"batch_size": 1024}, "batch_size"),
        (BASE, "cpu8", {"device": "cuda"}, "use device auto or cpu"),
        (BASE, "l4", {"device": "mps"}, "use device auto or cpu"),
        (SO400M, "gpu4gb", {"device": "cuda"}, "beside"),
        (
            BASE,
            "l4",
            scales(image_encoder={"num_replicas": 9}),
            "ask for 2 or fewer",
        ),
        (
            BASE,
            "l4",
            scales(text_encoder={"num_gpus": 0.01}),
            "or auto",
        ),
        (
            SO400M,
            "l4",
            scales(image_encoder={"num_gpus": 0.05}),
            "num_gpus 0.08 fits",
        ),
        (
            BASE,
            "l4",
            scales(image_encoder={"num_gpus": 0.6}, text_encoder={"num_gpus": 0.5}),
            "than one GPU",
        ),
        (
            BASE,
            "l4",
            scales(text_encoder={"num_replicas": 2}),
            "ask for 1 or fewer",
        ),
        (
            BASE,
            "l4",
            scales(image_encoder={"min_replicas": 9}),
            "ask for 2 or fewer",
        ),
        (
            BASE,
            "cpu8",
            scales(image_encoder={"num_gpus": 0.5}),
            "leave it out",
        ),
        (
            BASE,
            "l4",
            scales(text_encoder={"num_gpus": 0.0}) | {"device": "cuda"},
            "set device to auto",
        ),
        (
            BASE,
            "l4",
            scales(image_encoder={"num_gpus": 1.0}) | {"device": "cuda"},
            "than one GPU",
        ),
    ],
)
def test_refusals_say_what_would_work(
    hub_id: str, hardware: str, options: dict[str, Any], said: str
) -> None:
    """One line with the number that does not fit and an alternative."""
    with pytest.raises(ConfigError, match=said) as refused:
        plan(hub_id, hardware, **options)
    assert "\n" not in str(refused.value)


def test_what_a_refusal_offers_does_fit() -> None:
    """The quantisation and the checkpoint that are offered can be planned on the same card."""
    assert plan(GIANT, "gpu2gb", quantization="4bit").precision.quantization == "4bit"
    assert plan("google/siglip2-so400m-patch16-512", "gpu2gb").batch_size >= 1


def test_small_models_share_a_gpu_and_decoding_limits_are_told() -> None:
    """Base runs several times on one GPU; where CPUs are too few to feed it, the plan says so."""
    made = plan(BASE, "l4x2")
    assert made.deployments["image_encoder"].max_replicas == 4
    reason = next(reason for reason in made.reasons if reason.name == "preprocessor")
    assert "decoding is what limits" in reason.why
    assert (
        made.deployments["preprocessor"].max_replicas
        < plan(BASE, "l4x2+96cpu").deployments["preprocessor"].max_replicas
    )


@pytest.mark.parametrize(
    ("hardware", "asked", "image", "text_gpus"),
    [
        ("l4", scales(image_encoder={"num_gpus": 0.1}), (0.1, 9), 0.05),
        ("l4", scales(image_encoder={"num_gpus": 1.0}), (1.0, 1), 0.0),
        ("l4x2", scales(text_encoder={"num_gpus": 1.0}), (0.5, 2), 1.0),
        ("l4", scales(image_encoder={"num_gpus": 0.0}), (0.0, 1), 0.0),
        ("l4x8+8cpu", {}, (0.47, 16), 0.05),
    ],
)
def test_odd_parts_of_a_gpu(
    hardware: str, asked: dict[str, Any], image: tuple[float, int], text_gpus: float
) -> None:
    """Many small parts, whole cards, none, and few CPUs beside many cards."""
    made = plan(BASE, hardware, **asked)
    planned = made.deployments["image_encoder"]
    assert (planned.num_gpus, planned.max_replicas) == image
    assert made.deployments["text_encoder"].num_gpus == text_gpus
    assert sum(p.num_cpus * p.min_replicas for p in made.deployments.values()) <= made.hardware.cpus


@given(
    gpus=st.integers(0, 8),
    cpus=st.integers(2, 200),
    row=st.sampled_from(RELEASED),
)
def test_what_is_left_to_the_plan_can_be_placed(gpus: int, cpus: int, row: Released) -> None:
    """The fewest replicas of an automatic plan find their CPUs, whatever the mix."""
    hardware = f"l4x{gpus}+{cpus}cpu" if gpus else f"cpu{cpus}"
    made = plan_or_refusal(row, parse_hardware(hardware))
    assert isinstance(made, Plan)
    assert not any("CPUs are needed" in line for line in made.advice)


def test_replicas_fit_the_largest_node() -> None:
    """Four nodes of four CPUs hold no encoder of six; explicit ones that no node holds are told."""
    hardware = Hardware(16, False, 0, None, False, "test", largest_node_cpus=4)
    made = plan_on(BASE, hardware)
    assert all(planned.num_cpus <= 4 for planned in made.deployments.values())
    advice = plan_on(BASE, hardware, **scales(image_encoder={"num_cpus": 6.0})).advice
    assert any("largest node has 4" in line for line in advice)


def test_a_text_tower_on_the_cpu_is_told() -> None:
    """A dtype that was asked for is the image tower's where the text tower has no part of a GPU."""
    on_cpu = scales(text_encoder={"num_gpus": 0.0})
    assert any(
        "text tower stands on the CPU" in line
        for line in plan(BASE, "l4", dtype="float16", **on_cpu).advice
    )
    assert plan(BASE, "l4", **on_cpu).advice == ()
    assert plan(BASE, "l4", dtype="float16").advice == ()


def test_a_cluster_without_cpus_is_refused() -> None:
    """As a head node that takes no work, before any worker came."""
    with pytest.raises(ConfigError, match="set hardware"):
        plan_on(BASE, Hardware(0, False, 0, None, False, "test"))


def test_fewer_encoders_need_less_to_feed_them() -> None:
    """One encoder on eight cards is fed as one."""
    one = plan(BASE, "h100x8+192cpu", **scales(image_encoder={"num_replicas": 1}))
    all_of_them = plan(BASE, "h100x8+192cpu")
    assert one.images_per_second < all_of_them.images_per_second / 20
    assert (
        one.deployments["postprocessor"].max_replicas
        < all_of_them.deployments["postprocessor"].max_replicas
    )

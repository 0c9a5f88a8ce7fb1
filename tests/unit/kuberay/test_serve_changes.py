"""What another Serve config does, against Ray's own functions: they decide which replicas restart,
and are asked about every option.
"""

from typing import Any

import pytest
from ray.serve._private.application_state import override_deployment_info
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve._private.version import DeploymentVersion
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from serve_app.kuberay.effects import Effect
from serve_app.kuberay.serve_changes import EVERYTHING, serve_changes

APPLICATION = {
    "name": "tags",
    "route_prefix": "/",
    "import_path": "serve_app.app:build_app",
    "args": {"config": {"name": "tags"}},
    "deployments": [
        {"name": "First", "max_ongoing_requests": 8},
        {"name": "Second", "max_ongoing_requests": 8},
    ],
}
POLICY = {"policy_function": "serve_app.graph.autoscaling:GraphScaling"}
OTHER_POLICY = {"policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy"}
ROUTER = {
    "request_router_class": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
}
BOUNDS = {"min_replicas": 1, "max_replicas": 3}

APPLICATION_OPTIONS: dict[str, list[tuple[Any, Any]]] = {
    "route_prefix": [("/", "/other")],
    "import_path": [("serve_app.app:build_app", "serve_app.app:other")],
    "runtime_env": [({}, {"env_vars": {"A": "1"}})],
    "autoscaling_policy": [
        (
            POLICY | {"policy_kwargs": {"scale_down_delay_s": 1}},
            POLICY | {"policy_kwargs": {"scale_down_delay_s": 2}},
        ),
        (None, POLICY),
    ],
    "args": [({"config": {}}, {"config": {"name": "x"}})],
    "logging_config": [
        (None, {"enable_access_log": False}),
        ({"log_level": "INFO"}, {"log_level": "DEBUG"}),
    ],
    "external_scaler_enabled": [(False, True)],
}
"""Of an application, values before and after.

Not here: its name, `deployments`, and `host` and `port`, which Serve refuses.
"""
DEPLOYMENT_OPTIONS: dict[str, list[tuple[Any, Any]]] = {
    "num_replicas": [(1, 2)],
    "max_ongoing_requests": [(8, 16)],
    "max_queued_requests": [(8, 16)],
    "backpressure_config": [({"status_code": 503}, {"status_code": 429})],
    "user_config": [({"a": 1}, {"a": 2}), (None, {"a": 1})],
    "autoscaling_config": [
        (BOUNDS, BOUNDS | {"max_replicas": 4}),
        (BOUNDS | {"look_back_period_s": 12.0}, BOUNDS | {"look_back_period_s": 6.0}),
        (BOUNDS | {"policy": POLICY}, BOUNDS | {"policy": OTHER_POLICY}),
        (..., BOUNDS),
        (BOUNDS, ...),
    ],
    "graceful_shutdown_wait_loop_s": [(1.0, 2.0)],
    "graceful_shutdown_timeout_s": [(5.0, 9.0)],
    "health_check_period_s": [(3.0, 5.0)],
    "health_check_timeout_s": [(30.0, 60.0)],
    "ray_actor_options": [
        ({"num_cpus": 1}, {"num_cpus": 2}),
        (..., {"label_selector": {"siglip-serve/pods": "cpu"}}),
    ],
    "placement_group_bundles": [([{"CPU": 1}], [{"CPU": 2}])],
    "placement_group_strategy": [("PACK", "SPREAD")],
    "placement_group_bundle_label_selector": [([{"a": "b"}], [{"a": "c"}])],
    "max_replicas_per_node": [(..., 1)],
    "logging_config": [(..., {"log_level": "DEBUG"})],
    "request_router_config": [(..., ROUTER), (ROUTER, ROUTER | {"initial_backoff_s": 0.1})],
    "gang_scheduling_config": [(..., {"gang_size": 1})],
    "deployment_actors": [
        (..., [{"name": "one", "actor_class": "serve_app.graph.autoscaling:GraphScaling"}])
    ],
    "rolling_update_percentage": [(0.2, 0.5)],
    "max_surge_percent": [(0, 50)],
}
"""Of a deployment, values before and after; `...` for none. Not here: its name."""


def flat(options: dict[str, list[tuple[Any, Any]]]) -> list[tuple[str, Any, Any]]:
    return [(key, before, after) for key, pairs in options.items() for before, after in pairs]


def placed(options: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {other: one for other, one in options.items() if other != key} | (
        {} if value is ... else {key: value}
    )


def versions(application: dict[str, Any]) -> dict[str, DeploymentVersion]:
    """What Serve compares, made as `ApplicationState` and `DeploymentState` make it: the code's
    options, then the config's.
    """
    schema = ServeApplicationSchema.model_validate(application)
    code_version = get_app_code_version(schema)
    built = {
        deployment.name: DeploymentInfo(
            deployment_config=DeploymentConfig(),
            replica_config=ReplicaConfig.create(object, ray_actor_options={"num_cpus": 1}),
            start_time_ms=0,
            deployer_job_id="",
            route_prefix="/" if deployment.name == "First" else None,
        )
        for deployment in schema.deployments
    }
    made = {}
    for name, info in override_deployment_info(built, schema).items():
        config = info.deployment_config
        if schema.logging_config and config.logging_config is None:
            config.logging_config = schema.logging_config.model_dump()
        replica = info.replica_config
        made[name] = DeploymentVersion(
            code_version,
            config,
            replica.ray_actor_options,
            replica.placement_group_bundles,
            replica.placement_group_strategy,
            replica.placement_group_bundle_label_selector,
            replica.placement_group_fallback_strategy,
            replica.max_replicas_per_node,
            info.route_prefix,
        )
    return made


def restarted_by_ray(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    old = versions(before)
    new = versions(after)
    return {name for name in new if old[name].requires_actor_restart(new[name])}


def restarted_by_us(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    rolling = [
        one
        for one in serve_changes({"applications": [before]}, {"applications": [after]})
        if one.effect is Effect.ROLLING
    ]
    if any(one.why == EVERYTHING for one in rolling):
        return {"First", "Second"}
    return {
        name
        for name in ("First", "Second")
        if any(one.where.startswith(f"tags: {name}.") for one in rolling)
    }


@pytest.mark.parametrize(("key", "old", "new"), flat(APPLICATION_OPTIONS))
def test_options_of_an_application(key: str, old: Any, new: Any) -> None:
    """Ray restarts every replica for those of its code version, and none for the others."""
    before, after = (placed(APPLICATION, key, value) for value in (old, new))
    assert restarted_by_us(before, after) == restarted_by_ray(before, after)
    assert len(list(serve_changes({"applications": [before]}, {"applications": [after]}))) > 0


@pytest.mark.parametrize(("key", "old", "new"), flat(DEPLOYMENT_OPTIONS))
def test_options_of_a_deployment(key: str, old: Any, new: Any) -> None:
    """Ray restarts this deployment, all of them or none."""
    first, second = APPLICATION["deployments"]
    needed = {"placement_group_bundles": [{"CPU": 1}]} if key.startswith("placement_group_") else {}
    before, after = (
        APPLICATION | {"deployments": [placed(first | needed, key, value), second]}
        for value in (old, new)
    )
    assert restarted_by_us(before, after) == restarted_by_ray(before, after)
    (change,) = serve_changes({"applications": [before]}, {"applications": [after]})
    assert change.where == f"tags: First.{key}"


def test_every_option_of_serve_is_asked_about() -> None:
    """The tables above hold every field of Serve's schemas, so that one that comes with another Ray
    is not missed.
    """
    assert {*APPLICATION_OPTIONS, "name", "deployments", "host", "port"} == set(
        ServeApplicationSchema.model_fields
    )
    assert {*DEPLOYMENT_OPTIONS, "name"} == set(DeploymentSchema.model_fields)


TRACING = {"enabled": True, "exporter_import_path": "", "sampling_ratio": 0.1}
CLUSTER_OPTIONS = {
    "proxy_location": ("EveryNode", "HeadOnly", Effect.NOT_TAKEN),
    "http_options": ({"port": 8000}, {"port": 9000}, Effect.NOT_TAKEN),
    "grpc_options": ({"port": 9000}, {"port": 9001}, Effect.NOT_TAKEN),
    "controller_options": (None, {"runtime_env": {"env_vars": {"A": "1"}}}, Effect.NOT_TAKEN),
    "logging_config": ({"log_level": "INFO"}, {"log_level": "DEBUG"}, Effect.IN_PLACE),
    "tracing_config": (None, TRACING, Effect.IN_PLACE),
    "target_capacity": (100, 50, Effect.IN_PLACE),
}
"""Of the whole. Source: `put_all_applications` of Ray's dashboard starts Serve with the first four,
which does nothing to one that runs, updates the logging and hands the rest to the controller;
`apply_config` there keeps tracing for what starts from then on."""


@pytest.mark.parametrize("key", CLUSTER_OPTIONS)
def test_options_of_the_whole(key: str) -> None:
    """One change for each, with what the dashboard and the controller do with it."""
    before, after, effect = CLUSTER_OPTIONS[key]
    assert [(one.where, one.effect) for one in serve_changes({key: before}, {key: after})] == [
        (key, effect)
    ]


def test_every_option_of_the_whole_is_asked_about() -> None:
    """As above, for the config around the applications."""
    assert {*CLUSTER_OPTIONS, "applications"} == set(ServeDeploySchema.model_fields)


def test_tracing_is_not_taken_away() -> None:
    """`apply_config` passes over a config without it, so Serve goes on with what it has."""
    (change,) = serve_changes({"tracing_config": TRACING}, {})
    assert (change.effect, change.why) == (
        Effect.NOT_TAKEN,
        "Serve keeps what it has; set enabled: false",
    )


def test_applications_come_and_go() -> None:
    """Those of the config are deployed beside each other, others are deleted (`apply_config`);
    their order says nothing.
    """
    one, two, three = (
        APPLICATION | {"name": name, "route_prefix": f"/{name}"} for name in ("one", "two", "three")
    )
    changes = list(serve_changes({"applications": [one, two]}, {"applications": [three, one]}))
    assert [(change.where, change.why) for change in changes] == [
        ("application three", "it starts beside the others"),
        ("application two", "it ends"),
    ]
    assert list(serve_changes({"applications": [one, two]}, {"applications": [two, one]})) == []


def test_a_deployment_that_is_left_out_goes_back_to_the_codes_options() -> None:
    """`override_deployment_info` starts from the code's options each time."""
    without = APPLICATION | {"deployments": APPLICATION["deployments"][:1]}
    (change,) = serve_changes({"applications": [APPLICATION]}, {"applications": [without]})
    assert (change.where, change.effect) == ("tags: Second.max_ongoing_requests", Effect.IN_PLACE)

"""Builds the Serve graph from a configuration and its plan.

This module is the only caller of `serve.deployment(...)(Class).bind(...)`. Deployments are named
after their classes, and their options have the names that Serve uses.
"""

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.api.statuses import RETRY_AFTER_S
from serve_app.config.live import live_batching
from serve_app.config.service import ServiceConfig
from serve_app.config.serving import DeploymentScale
from serve_app.graph.encoders import EncoderSpec, ImageEncoder, TextEncoder
from serve_app.graph.postprocessor import Postprocessor, ScoringSpec
from serve_app.graph.preprocessor import Preprocessor
from serve_app.hardware.plan import DeploymentPlan, Plan
from serve_app.siglip.precision import Precision

HEALTH_CHECK_PERIOD_S = 3.0
DRAIN_S = 5.0
LOOK_BACK_S = 12.0
"""Period over which Serve averages the metrics that replicas report for autoscaling."""
KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}
"""Makes the allocator keep up to this much freed memory in a replica.

By default, glibc returns the temporary buffers of every forward pass to the kernel, which zeroes
them for the next pass. This causes a quarter of the page faults, and takes 10 to 15 % of the time
of a small model on a CPU.
"""
WITHOUT_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Hides the node's GPUs: Ray leaves the variable unset for `num_gpus: 0`."""
DEPLOYMENT_NAMES = {
    "image_encoder": "ImageEncoder",
    "text_encoder": "TextEncoder",
    "preprocessor": "Preprocessor",
    "postprocessor": "Postprocessor",
}
"""Names of the deployments by their keys in the `serving` block, in the order of a Serve config."""


def build_graph(
    config: ServiceConfig, plan: Plan, image_encoder: type[Any] = ImageEncoder
) -> Application:
    """Bind the four deployments.

    Args:
        config: The whole configuration, or its frozen part if live values come with `user_config`.
        plan: Device, dtype, attention, batch size, resources and replicas.
        image_encoder: The class of the ImageEncoder deployment; benchmarks replace it with one
            that runs no model.
    """
    live = user_config(config)
    deploy = {
        name: _deployment(name, config.serving.scale(key), plan.deployments[key], live.get(name))
        for key, name in DEPLOYMENT_NAMES.items()
    }
    image_spec = _encoder_spec(config, plan, "image_encoder", plan.precision)
    text_spec = _encoder_spec(config, plan, "text_encoder", plan.text_precision)

    texts = deploy["TextEncoder"](TextEncoder).bind(text_spec)
    images = deploy["ImageEncoder"](image_encoder).bind(image_spec)
    scoring_spec = _scoring_spec(config, plan.text_precision)
    post = deploy["Postprocessor"](Postprocessor).bind(scoring_spec, texts)
    ingress = serve.ingress()(Preprocessor)
    application: Application = deploy["Preprocessor"](ingress).bind(config, plan, images, post)
    return application


def deployment_scales(config: ServiceConfig) -> dict[str, DeploymentScale]:
    """Return the scale of every deployment, by its name."""
    return {name: config.serving.scale(key) for key, name in DEPLOYMENT_NAMES.items()}


def user_config(config: ServiceConfig) -> dict[str, dict[str, Any]]:
    """Return the `user_config` of each deployment that has one.

    The frozen part of a configuration has no vocabularies, so its Postprocessor has none.
    """
    live: dict[str, dict[str, Any]] = {
        "Preprocessor": live_batching(config).model_dump(mode="json")
    }
    if config.vocabularies:
        live["Postprocessor"] = config.tag_settings().model_dump(mode="json")
    return live


def live_options(scale: DeploymentScale) -> dict[str, Any]:
    """Return the deployment options that Serve changes without restarting replicas.

    A fixed number of replicas is written as equal bounds. Every deployment has an
    `autoscaling_config`: adding or removing it would restart replicas, and our policy sees only
    deployments that have one.
    """
    options = _queue_options(scale)
    if scale.num_replicas == "auto":
        return options
    return options | {"autoscaling_config": _bounds(scale.num_replicas, scale.num_replicas)}


def _queue_options(scale: DeploymentScale) -> dict[str, Any]:
    return {
        "max_ongoing_requests": scale.max_ongoing_requests,
        "max_queued_requests": scale.max_queued_requests,
    }


def _bounds(min_replicas: int, max_replicas: int) -> dict[str, Any]:
    """Return an `autoscaling_config`; `graph/autoscaling.py` selects a number within its bounds."""
    return {
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "initial_replicas": max(1, min_replicas),
        "look_back_period_s": LOOK_BACK_S,
        "upscale_delay_s": 0.0,  # our own policy damps changes
        "downscale_delay_s": 0.0,
    }


def _encoder_spec(config: ServiceConfig, plan: Plan, key: str, precision: Precision) -> EncoderSpec:
    plugin = config.siglip
    planned = plan.deployments[key]
    return EncoderSpec(
        model=plugin.model_source,
        revision=config.revision,
        max_num_patches=plugin.max_num_patches,
        precision=precision,
        batch_size=plan.batch_size,
        num_threads=max(1, int(planned.num_cpus)),
        gpu_share=planned.num_gpus,
        model_shown=plugin.model_shown,
    )


def _scoring_spec(config: ServiceConfig, text: Precision) -> ScoringSpec:
    return ScoringSpec(
        model=config.siglip.model_source,
        revision=config.revision,
        dtype=text.dtype,
        quantization=text.quantization,
        max_labels=config.limits.max_labels_per_request,
        cache_bytes=config.limits.max_cached_label_bytes,
        tag_banks=config.tag_banks,
        timeout_s=config.serving.request_timeout_s,
    )


def _deployment(
    name: str, scale: DeploymentScale, planned: DeploymentPlan, live: dict[str, Any] | None
) -> Callable[[type[Any]], Any]:
    """Return a decorator that makes a class the deployment of this name."""
    options = _queue_options(scale) | {
        "autoscaling_config": _bounds(planned.min_replicas, planned.max_replicas),
        "ray_actor_options": _actor_options(scale, planned),
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "graceful_shutdown_timeout_s": DRAIN_S,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        "user_config": live,
    }
    decorator: Callable[[type[Any]], Any] = serve.deployment(name=name, **options)
    return decorator


def _actor_options(scale: DeploymentScale, planned: DeploymentPlan) -> dict[str, Any]:
    variables = KEEP_FREED_MEMORY | ({} if planned.num_gpus else WITHOUT_GPUS)
    options: dict[str, Any] = {
        "num_cpus": planned.num_cpus,
        "num_gpus": planned.num_gpus,
        "runtime_env": {"env_vars": variables},
    }
    if scale.label_selector:
        options["label_selector"] = scale.label_selector
    return options

"""From a configuration to the Serve graph. The only caller of
`serve.deployment(...)(Class).bind(...)`.

Deployments are named after their classes; their options are Serve's, spelled as Serve spells them.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.config.live import live_batching
from serve_app.config.service import ServiceConfig
from serve_app.config.serving import DeploymentScale
from serve_app.graph.encoders import EncoderSpec, ImageEncoder, TextEncoder
from serve_app.graph.postprocessor import Postprocessor, ScoringSpec
from serve_app.graph.preprocessor import Preprocessor
from serve_app.siglip.precision import Precision

RETRY_AFTER_S = 1
HEALTH_CHECK_PERIOD_S = 3.0
DRAIN_S = 5.0
LOOK_BACK_S = 12.0
"""Over which Serve averages what replicas report for autoscaling."""
KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}
"""glibc gives the temporaries of every forward pass back to the kernel and has them zeroed again
for the next one: a quarter of the page faults and 10 to 15 % of the time of a small model on a CPU.
A replica keeps at most this much."""
WITHOUT_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Ray leaves the variable unset for `num_gpus: 0`, which shows the replica every GPU of its
node."""


def build_graph(config: ServiceConfig, image_encoder: type[Any] = ImageEncoder) -> Application:
    """Bind the four deployments.

    Args:
        config: The whole configuration, or its frozen part: live values then come with
            `user_config`. Resolved by a plan (`planning.resolve_config`): no `auto` of the hardware
            is left in it.
        image_encoder: The class of the ImageEncoder deployment; another one stands in for the model
            in benchmarks.
    """
    serving = config.serving
    spec = {name: _spec(config, scale) for name, scale in encoder_scales(config).items()}
    texts = _deploy(TextEncoder, "TextEncoder", serving.text_encoder).bind(spec["TextEncoder"])
    images = _deploy(image_encoder, "ImageEncoder", serving.image_encoder).bind(
        spec["ImageEncoder"]
    )
    postprocessor = _deploy(
        Postprocessor,
        "Postprocessor",
        serving.postprocessor,
        user_config(config).get("Postprocessor"),
    )
    post = postprocessor.bind(_scoring_spec(config, spec["TextEncoder"].precision), texts)
    ingress = serve.ingress()(Preprocessor)
    preprocessor = _deploy(
        ingress, "Preprocessor", serving.preprocessor, user_config(config)["Preprocessor"]
    )
    application: Application = preprocessor.bind(config, images, post)
    return application


def encoder_scales(config: ServiceConfig) -> dict[str, DeploymentScale]:
    """Return the scale of the deployments that hold a tower."""
    return {
        "ImageEncoder": config.serving.image_encoder,
        "TextEncoder": config.serving.text_encoder,
    }


def scales(config: ServiceConfig) -> dict[str, DeploymentScale]:
    """Return the scale of every deployment, by its name."""
    return encoder_scales(config) | {
        "Preprocessor": config.serving.preprocessor,
        "Postprocessor": config.serving.postprocessor,
    }


def user_config(config: ServiceConfig) -> dict[str, dict[str, Any]]:
    """Return what each deployment gets as `user_config`; no Postprocessor for a frozen part, which
    has no vocabularies.
    """
    live: dict[str, dict[str, Any]] = {
        "Preprocessor": live_batching(config).model_dump(mode="json")
    }
    if config.vocabularies:
        live["Postprocessor"] = config.tag_settings().model_dump(mode="json")
    return live


def live_options(scale: DeploymentScale) -> dict[str, Any]:
    """Return the deployment options that Serve changes without restarting replicas.

    A fixed number of replicas is written as bounds that are equal: every deployment has an
    `autoscaling_config`, since adding or removing one restarts replicas, and since our policy sees
    only deployments that have one.
    """
    options = {
        "max_ongoing_requests": scale.max_ongoing_requests,
        "max_queued_requests": scale.max_queued_requests,
    }
    if scale.num_replicas == "auto":
        return options
    return options | {"autoscaling_config": _bounds(scale.num_replicas, scale.num_replicas)}


def _bounds(least: int, most: int) -> dict[str, Any]:
    """Return an `autoscaling_config`; how many replicas there are within it is decided by
    `graph/autoscaling.py`.
    """
    return {
        "min_replicas": least,
        "max_replicas": most,
        "initial_replicas": max(1, least),
        "look_back_period_s": LOOK_BACK_S,
        "upscale_delay_s": 0.0,  # damped by our own policy
        "downscale_delay_s": 0.0,
    }


def _spec(config: ServiceConfig, scale: DeploymentScale) -> EncoderSpec:
    plugin = config.siglip
    num_cpus, num_gpus = _resources(scale)
    precision = plugin.precision
    if (
        not num_gpus and config.serving.image_encoder.num_gpus
    ):  # the text tower alone is on the CPU: the GPU's choices are not its own
        precision = Precision("cpu", "auto", "sdpa", plugin.quantization)
    return EncoderSpec(
        model=plugin.model_source,
        revision=config.revision,
        max_num_patches=plugin.max_num_patches,
        precision=precision,
        batch_size=plugin.resolved_batch_size,
        num_threads=max(1, int(num_cpus)),
        gpu_share=num_gpus,
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


def _resources(scale: DeploymentScale) -> tuple[float, float]:
    """Return a replica's CPUs and part of a GPU; the plan has resolved both."""
    assert scale.num_cpus != "auto", "resolve_config comes before build_graph"
    assert scale.num_gpus != "auto", "resolve_config comes before build_graph"
    return scale.num_cpus, scale.num_gpus


def _autoscaling(scale: DeploymentScale) -> dict[str, Any]:
    if scale.num_replicas != "auto":
        return {}  # in `live_options`
    assert scale.max_replicas != "auto", "resolve_config comes before build_graph"
    return {"autoscaling_config": _bounds(scale.min_replicas, scale.max_replicas)}


def _deploy(
    cls: type[Any], name: str, scale: DeploymentScale, live: dict[str, Any] | None = None
) -> Any:
    num_cpus, num_gpus = _resources(scale)
    options = (
        live_options(scale)
        | _autoscaling(scale)
        | {
            "ray_actor_options": {
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
                "runtime_env": {"env_vars": KEEP_FREED_MEMORY | ({} if num_gpus else WITHOUT_GPUS)},
            }
            | ({"label_selector": scale.label_selector} if scale.label_selector else {}),
            "health_check_period_s": HEALTH_CHECK_PERIOD_S,
            "graceful_shutdown_timeout_s": DRAIN_S,
            "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
            "user_config": live,
        }
    )
    return serve.deployment(name=name, **options)(cls)

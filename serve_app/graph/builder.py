"""From a configuration to the Serve graph. The only caller of `serve.deployment(...)(Class).bind(...)`.

Deployments are named after their classes; their options are Serve's, spelled as Serve spells them.
"""

from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.config import DeploymentScale, ServiceConfig
from serve_app.graph.encoders import EncoderSpec, ImageEncoder, TextEncoder
from serve_app.graph.postprocessor import Postprocessor
from serve_app.graph.preprocessor import Preprocessor
from serve_app.live import live_batching, live_tagging

AUTO_GPU_SHARE = {"ImageEncoder": 0.5, "TextEncoder": 0.25}
"""Part of a GPU for `num_gpus: auto` where the cluster has any: both towers fit on one card, with room for an upgrade."""
RETRY_AFTER_S = 1
HEALTH_CHECK_PERIOD_S = 3.0
DRAIN_S = 5.0


def build_graph(config: ServiceConfig, has_gpus: bool, image_encoder: type[Any] = ImageEncoder) -> Application:
    """Bind the four deployments.

    Args:
        config: The whole configuration, or its frozen part: live values then come with `user_config`.
        has_gpus: Whether `num_gpus: auto` may ask for GPUs.
        image_encoder: The class of the ImageEncoder deployment; another one stands in for the model in benchmarks.
    """
    plugin, serving, limits = config.siglip, config.serving, config.limits
    spec = {name: _spec(config, scale) for name, scale in encoder_scales(config).items()}
    texts = _deploy(TextEncoder, "TextEncoder", serving.text_encoder, has_gpus).bind(spec["TextEncoder"])
    images = _deploy(image_encoder, "ImageEncoder", serving.image_encoder, has_gpus).bind(spec["ImageEncoder"])
    postprocessor = _deploy(Postprocessor, "Postprocessor", serving.postprocessor, has_gpus, user_config(config).get("Postprocessor"))
    post = postprocessor.bind(
        plugin.model_source, config.revision, limits.max_labels_per_request, limits.max_cached_label_bytes, serving.request_timeout_s, texts
    )
    ingress = serve.ingress()(Preprocessor)
    preprocessor = _deploy(ingress, "Preprocessor", serving.preprocessor, has_gpus, user_config(config)["Preprocessor"])
    application: Application = preprocessor.bind(config, images, post)
    return application


def encoder_scales(config: ServiceConfig) -> dict[str, DeploymentScale]:
    """Return the scale of the deployments that hold a tower."""
    return {"ImageEncoder": config.serving.image_encoder, "TextEncoder": config.serving.text_encoder}


def scales(config: ServiceConfig) -> dict[str, DeploymentScale]:
    """Return the scale of every deployment, by its name."""
    return encoder_scales(config) | {"Preprocessor": config.serving.preprocessor, "Postprocessor": config.serving.postprocessor}


def user_config(config: ServiceConfig) -> dict[str, dict[str, Any]]:
    """Return what each deployment gets as `user_config`; no Postprocessor for a frozen part, which has no labels."""
    live: dict[str, dict[str, Any]] = {"Preprocessor": live_batching(config).model_dump(mode="json")}
    if config.labels or config.siglip.custom_vocabulary:
        live["Postprocessor"] = live_tagging(config).model_dump(mode="json")
    return live


def live_options(scale: DeploymentScale) -> dict[str, Any]:
    """Return the deployment options that Serve changes without restarting replicas."""
    return {
        "num_replicas": scale.num_replicas,
        "max_ongoing_requests": scale.max_ongoing_requests,
        "max_queued_requests": scale.max_queued_requests,
    }


def _spec(config: ServiceConfig, scale: DeploymentScale) -> EncoderSpec:
    plugin = config.siglip
    threads = max(1, int(scale.num_cpus))
    return EncoderSpec(plugin.model_source, config.revision, plugin.max_num_patches, plugin.precision, plugin.resolved_batch_size, threads)


def _deploy(cls: type[Any], name: str, scale: DeploymentScale, has_gpus: bool, live: dict[str, Any] | None = None) -> Any:
    num_gpus = (AUTO_GPU_SHARE[name] if has_gpus else 0) if scale.num_gpus == "auto" else scale.num_gpus
    options = live_options(scale) | {
        "ray_actor_options": {"num_cpus": scale.num_cpus, "num_gpus": num_gpus} | ({} if num_gpus else _without_gpus()),
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "graceful_shutdown_timeout_s": DRAIN_S,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        "user_config": live,
    }
    return serve.deployment(name=name, **options)(cls)


def _without_gpus() -> dict[str, Any]:
    """Ray leaves CUDA_VISIBLE_DEVICES unset for `num_gpus: 0`, which shows the replica every GPU of its node."""
    return {"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}}

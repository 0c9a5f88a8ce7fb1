"""What `GET /v1/config` shows: the running configuration without paths, addresses and keys.

Every setting that is shown is listed here, so that a new setting is not shown by accident.
"""

from typing import Any, NamedTuple

from serve_app.config.service import ServiceConfig
from serve_app.config.serving import DEPLOYMENTS
from serve_app.tagging.settings import TagSettings

_SCALE = {"num_replicas", "min_replicas", "max_replicas", "num_cpus", "num_gpus"}
_PLUGIN = {"batch_size", "attention", "dtype", "quantization", "device", "max_num_patches"}
_LIVE_PLUGIN = {"confidence_threshold", "max_tags", "sort_by", "include_raw_scores"}
"""Live keys of `plugins.siglip`."""
_LIMITS = {
    "max_body_bytes",
    "max_image_bytes",
    "max_image_pixels",
    "max_images_per_request",
    "max_embeddings_per_request",
    "max_labels_per_request",
    "body_timeout_s",
    "image_formats",
}


class PlanShown(NamedTuple):
    """What a plan puts in place of `auto`.

    Attributes:
        plugin: Keys of `plugins.siglip`.
        serving: Keys of each deployment of `serving`, by its name.
    """

    plugin: dict[str, Any]
    serving: dict[str, dict[str, Any]]


def show_live(settings: TagSettings) -> dict[str, Any]:
    """Return what is shown of the live settings, by their keys in `user_config`."""
    return settings.model_dump(
        mode="json", include=_LIVE_PLUGIN | {"default_vocabulary", "selection"}
    )


def show_config(
    config: ServiceConfig, live: dict[str, Any], planned: PlanShown = PlanShown({}, {})
) -> dict[str, Any]:
    """Return what is shown of a configuration.

    Args:
        config: The configuration.
        live: What `show_live` returns for the live settings.
        planned: What a plan puts in place of `auto`; nothing where no plan was made.
    """
    plugin = {
        "model": config.siglip.model_shown,
        **config.siglip.model_dump(mode="json", include=_PLUGIN),
        **planned.plugin,
        **{key: value for key, value in live.items() if key in _LIVE_PLUGIN},
    }
    scales = {
        name: _shown_scale(config.serving.scale(name).model_dump(mode="json", include=_SCALE))
        for name in DEPLOYMENTS
    }
    scales |= planned.serving
    return {
        "name": config.name,
        "revision": config.revision,
        "hardware": config.hardware,
        "plugins": {"siglip": plugin},
        "default_vocabulary": live["default_vocabulary"],
        "selection": live["selection"],
        "limits": config.limits.model_dump(mode="json", include=_LIMITS),
        "serving": {"request_timeout_s": config.serving.request_timeout_s, **scales},
        "access": {
            "api_keys": config.access.api_keys is not None,
            "cors": bool(config.access.cors_origins),
        },
        "fetch": {"enabled": config.fetch.enabled},
    }


def _shown_scale(scale: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of one deployment.

    A fixed number of replicas may have been changed live, so only the fact that it is fixed is
    shown.
    """
    if scale["num_replicas"] == "auto":
        return {key: value for key, value in scale.items() if key != "num_replicas"}
    return {"num_cpus": scale["num_cpus"], "num_gpus": scale["num_gpus"], "num_replicas": "fixed"}

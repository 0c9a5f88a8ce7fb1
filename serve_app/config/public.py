"""What `GET /v1/config` shows: the configuration as it runs, without a path, an address or a key.

What is shown is named here one by one, so that a setting that comes later is not shown by accident.
"""

from typing import Any, NamedTuple

from serve_app.config.service import ServiceConfig
from serve_app.config.serving import DEPLOYMENTS
from serve_app.tagging.settings import TagSettings

_SCALE = {"num_replicas", "min_replicas", "max_replicas", "num_cpus", "num_gpus"}
_PLUGIN = {"batch_size", "attention", "dtype", "quantization", "device", "max_num_patches"}
_LIMITS = {
    *(
        "max_body_bytes",
        "max_image_bytes",
        "max_image_pixels",
        "max_images_per_request",
        "max_embeddings_per_request",
    ),
    *("max_labels_per_request", "body_timeout_s", "image_formats"),
}


class LiveShown(NamedTuple):
    """What may have changed since the service was deployed.

    Attributes:
        default_vocabulary: Its name.
        plugin: Keys of `plugins.siglip` that are live.
        selection: The `selection` block.
    """

    default_vocabulary: str
    plugin: dict[str, Any]
    selection: dict[str, Any]


def show_live(settings: TagSettings) -> LiveShown:
    """Return what is shown of the live settings."""
    plugin = {
        key: getattr(settings, key)
        for key in ("confidence_threshold", "max_tags", "sort_by", "include_raw_scores")
    }
    return LiveShown(settings.default, plugin, settings.selection.model_dump(mode="json"))


def show_config(config: ServiceConfig, live: LiveShown) -> dict[str, Any]:
    """Return what is shown of a configuration whose `auto` a plan has resolved, as far as it
    has.
    """
    plugin = (
        {"model": config.siglip.model_shown}
        | config.siglip.model_dump(mode="json", include=_PLUGIN)
        | live.plugin
    )
    return {
        "name": config.name,
        "revision": config.revision,
        "hardware": config.hardware,
        "plugins": {"siglip": plugin},
        "default_vocabulary": live.default_vocabulary,
        "selection": live.selection,
        "limits": config.limits.model_dump(mode="json", include=_LIMITS),
        "serving": {
            "request_timeout_s": config.serving.request_timeout_s,
            **{
                name: _shown_scale(
                    getattr(config.serving, name).model_dump(mode="json", include=_SCALE)
                )
                for name in DEPLOYMENTS
            },
        },
        "access": {
            "api_keys": config.access.api_keys is not None,
            "cors": bool(config.access.cors_origins),
        },
        "fetch": {"enabled": config.fetch.enabled},
    }


def _shown_scale(scale: dict[str, Any]) -> dict[str, Any]:
    """Return a deployment's plan; a fixed number of replicas may be changed live, so only that it
    is fixed is told.
    """
    if scale["num_replicas"] == "auto":
        return {key: value for key, value in scale.items() if key != "num_replicas"}
    return {"num_cpus": scale["num_cpus"], "num_gpus": scale["num_gpus"], "num_replicas": "fixed"}

"""Which part of the configuration changes while the service runs.

The live part travels in Serve's `user_config`: `TagSettings` for the Postprocessor and
`LiveBatching` for the Preprocessor. Everything else restarts replicas when it changes.
"""

import json
from typing import Any, Self

from pydantic import Field

from serve_app.config.service import ServiceConfig
from serve_app.config.settings import Settings
from serve_app.tagging.settings import TagSettings

SCALE_KEYS = ("max_ongoing_requests", "max_queued_requests")
"""Deployment options that Serve changes in place, so they stay out of `args` too."""
LIVE_SERVING_KEYS = (
    "batch_wait_timeout_s",
    "scale_down_delay_s",
    "host",
    "port",
    "route_prefix",
    "ingress",
)
"""Keys of `serving` that no replica is built from."""
FIXED = 1
"""Value in `args` for every fixed `num_replicas`. Replicas restart when the number becomes fixed or
`auto`, and not when it changes."""


class LiveBatching(Settings):
    """How long a micro-batch fills while the encoder is idle: the Preprocessor's `user_config`."""

    batch_wait_timeout_s: float = Field(ge=0, le=10)

    @classmethod
    def from_user_config(cls, user_config: dict[str, Any]) -> Self:
        """Read what Serve passes to `reconfigure`; raises `ValueError` if it is not valid."""
        return cls.model_validate_json(json.dumps(user_config))


def live_batching(config: ServiceConfig) -> LiveBatching:
    """Return the Preprocessor's live part."""
    return LiveBatching(batch_wait_timeout_s=config.serving.batch_wait_timeout_s)


def frozen_part(config: ServiceConfig) -> dict[str, Any]:
    """Return a configuration without the live part and the scale, every other key spelled out.

    A change of the live part alone leaves it as it is. It becomes the application's `args`, so no
    replica restarts.
    """
    data = config.model_dump(
        mode="json", exclude={"vocabularies", "default_vocabulary", "prompt_templates", "selection"}
    )
    for key in TagSettings.model_fields:
        data["plugins"]["siglip"].pop(key, None)
    for key in LIVE_SERVING_KEYS:
        del data["serving"][key]
    for block in data["serving"].values():
        if isinstance(block, dict):
            _freeze_scale(block)
    return data


def _freeze_scale(scale: dict[str, Any]) -> None:
    for key in SCALE_KEYS:
        del scale[key]
    if scale["num_replicas"] != "auto":
        scale["num_replicas"] = FIXED

"""The demo's configuration without a file: what `siglip-serve tag` uses unless told otherwise."""

from serve_app.config.plugin import DEMO_MODEL
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.demo import scenes

CONFIDENCE_THRESHOLD = 0.5
"""The demo checkpoint is calibrated on its own scenes, so a tag is more likely true than not from
here on."""


def demo_labels() -> list[str]:
    """Return what the demo checkpoint knows: colours, shapes, and every colour with every shape."""
    return [*scenes.attribute_labels(), *scenes.combination_labels(scenes.COMBINATIONS)]


def demo_config() -> ServiceConfig:
    """Return the configuration that `configs/demo.yaml` spells out."""
    plugin = {"model": DEMO_MODEL, "confidence_threshold": CONFIDENCE_THRESHOLD, "max_tags": 20}
    return parse_config({"labels": demo_labels(), "plugins": {"siglip": plugin}})

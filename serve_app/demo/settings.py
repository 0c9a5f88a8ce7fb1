"""The configuration of the demo, which `siglip-serve tag` uses by default."""

from serve_app.config.plugin import DEMO_MODEL
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.demo import scenes

CONFIDENCE_THRESHOLD = 0.5
"""The demo checkpoint is calibrated on its own scenes, so above this threshold a tag is more likely
true than false."""


def demo_labels() -> list[str]:
    """Return the labels of the demo checkpoint: colours, shapes, and all their combinations."""
    return [*scenes.attribute_labels(), *scenes.combination_labels(scenes.COMBINATIONS)]


def demo_config() -> ServiceConfig:
    """Return the same configuration as `configs/demo.yaml`."""
    plugin = {"model": DEMO_MODEL, "confidence_threshold": CONFIDENCE_THRESHOLD, "max_tags": 20}
    return parse_config({"labels": demo_labels(), "plugins": {"siglip": plugin}})

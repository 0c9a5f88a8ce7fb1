"""What `GET /v1/config` shows is named one by one: no path, address, key or host gets in by
accident.
"""

import json

from serve_app.config.public import show_config, show_live
from serve_app.config.service import parse_config
from serve_app.hardware.detection import parse_hardware
from serve_app.hardware.planning import plan_service
from serve_app.siglip.precision import Precision

HIDDEN = {
    "model": "/srv/secret-folder/checkpoint",
    "api_keys": "/run/secrets/keys",
    "tag_banks": "s3://private-bucket/banks",
    "host": "10.1.2.3",
    "network": "10.20.0.0/16",
}


def test_nothing_internal_is_shown() -> None:
    """Folders, buckets, addresses and networks of the configuration are in no part of what is
    shown.
    """
    config = parse_config(
        {
            "labels": ["cat"],
            "tag_banks": HIDDEN["tag_banks"],
            "plugins": {"siglip": {"model": HIDDEN["model"]}},
            "access": {"api_keys": HIDDEN["api_keys"]},
            "fetch": {
                "enabled": True,
                "networks": [HIDDEN["network"]],
                "hosts": ["internal.example"],
            },
            "serving": {"host": HIDDEN["host"]},
        }
    )
    shown = show_config(config, show_live(config.tag_settings()))
    text = json.dumps(shown)
    for hidden in (*HIDDEN.values(), "internal.example", "/srv", "/run"):
        assert hidden not in text
    assert shown["plugins"]["siglip"]["model"] == "checkpoint"
    assert shown["access"] == {"api_keys": True, "cors": False}
    assert shown["fetch"] == {"enabled": True}


def test_the_plan_is_what_is_shown() -> None:
    """Resolved for two L4, the shown part of a GPU, batch size and replicas are the plan's."""
    config = parse_config({"labels": ["cat"], "hardware": "l4x2"})
    plan = plan_service(config, parse_hardware("l4x2"))
    shown = show_config(config, show_live(config.tag_settings()), plan.shown())
    encoder = shown["serving"]["image_encoder"]
    planned = plan.deployments["image_encoder"]
    assert (encoder["num_gpus"], encoder["max_replicas"]) == (
        planned.num_gpus,
        planned.max_replicas,
    )
    plugin = shown["plugins"]["siglip"]
    assert plugin["batch_size"] == plan.batch_size
    assert Precision(*(plugin[key] for key in Precision.__slots__)) == plan.precision
    assert "auto" not in json.dumps(plugin)


def test_a_fixed_number_of_replicas_is_not_guessed() -> None:
    """It may have been changed live since, so only that it is fixed is told."""
    config = parse_config({"labels": ["cat"], "serving": {"image_encoder": {"num_replicas": 3}}})
    assert (
        show_config(config, show_live(config.tag_settings()))["serving"]["image_encoder"][
            "num_replicas"
        ]
        == "fixed"
    )

"""What a GPU cluster builds from a rendered Serve config, on pods whose GPUs are pretended: the
demo checkpoint takes the model's place.

Everything else is the plan of the model that the configuration names: fractions, batch size,
bounds, where each deployment may stand.
"""

import json
from typing import Any

from ray.serve import Application

from serve_app.config.plugin import DEMO_MODEL
from serve_app.config.service import ServiceConfig
from serve_app.graph.builder import build_graph
from serve_app.hardware.planning import resolve_config
from serve_app.kuberay.groups import plan_for


def build_app(args: dict[str, Any]) -> Application:
    """Build the graph as `serve_app.app.build_app` does, then put the demo checkpoint in it."""
    config = ServiceConfig.model_validate_json(json.dumps(args["config"]))
    resolved = resolve_config(config, plan_for(config))
    plugin = resolved.siglip.model_copy(
        update={"model": DEMO_MODEL, "device": "cpu", "dtype": "float32"}
    )
    return build_graph(
        resolved.model_copy(
            update={"plugins": resolved.plugins.model_copy(update={"siglip": plugin})}
        )
    )

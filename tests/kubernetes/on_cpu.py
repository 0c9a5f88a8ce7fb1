"""What a GPU cluster builds from a rendered Serve config, on pods whose GPUs are pretended: the
demo checkpoint takes the model's place.

Everything else is the plan of the model that the configuration names: fractions, batch size,
bounds, where each deployment may stand.
"""

import dataclasses
import json
from typing import Any

from ray.serve import Application

from serve_app.config.plugin import DEMO_MODEL, Plugins
from serve_app.config.service import ServiceConfig
from serve_app.graph.builder import build_graph
from serve_app.kuberay.groups import plan_for
from serve_app.siglip.precision import Precision


def build_app(args: dict[str, Any]) -> Application:
    """Build the graph as `serve_app.app.build_app` does, then put the demo checkpoint in it."""
    config = ServiceConfig.model_validate_json(json.dumps(args["config"]))
    plan = dataclasses.replace(plan_for(config), precision=Precision(), text_precision=Precision())
    plugins = Plugins(siglip=config.siglip.model_copy(update={"model": DEMO_MODEL}))
    return build_graph(config.model_copy(update={"plugins": plugins}), plan)

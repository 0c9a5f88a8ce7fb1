"""A service whose Ray is told that there are two GPUs: planned for two L4 and a base checkpoint,
run on the CPU.

`python -m tests.pretend_gpus CONFIG` serves until standard input ends. Everything is what a GPU
cluster gets, fractions, bounds and policy, but for the device and for the ImageEncoder, which takes
its time as a larger model would.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from serve_app.config.plugin import Plugins
from serve_app.config.service import ServiceConfig, load_config
from serve_app.graph.encoders import EncoderSpec, ImageEncoder
from serve_app.graph.local_node import local_node, serve_config_here
from serve_app.hardware.detection import parse_hardware
from serve_app.hardware.plan import Plan
from serve_app.hardware.planning import plan_service
from serve_app.siglip.inputs import ImageBatch
from serve_app.towers.tower import ImageTower
from serve_app.towers.transfer import Fetch

PLANNED_MODEL = "google/siglip-base-patch16-224"
HARDWARE = "l4x2+16cpu"
BATCH_S = 0.5


class SlowTower(ImageTower):
    """The vision tower with a forward pass that takes half a second more."""

    def encode_later(self, batch: ImageBatch) -> Fetch:
        time.sleep(BATCH_S)
        return super().encode_later(batch)


class SlowImageEncoder(ImageEncoder):
    """The ImageEncoder deployment on a `SlowTower`."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        self._tower.__class__ = SlowTower


def plan_for_pretend_gpus(config: ServiceConfig) -> Plan:
    """Return the plan of a base checkpoint in the place of the demo's."""
    plugin = config.siglip.model_copy(update={"model": PLANNED_MODEL})
    larger = config.model_copy(update={"plugins": Plugins(siglip=plugin)})
    return plan_service(larger, parse_hardware(HARDWARE))


def build_app(args: dict[str, Any]) -> Any:
    """Build the graph as `serve_app.app.build_app` does, then move it to the CPU."""
    from serve_app.graph.builder import build_graph

    config = ServiceConfig.model_validate_json(json.dumps(args["config"]))
    plan = plan_for_pretend_gpus(config)
    on_cpu = dataclasses.replace(plan.precision, device="cpu", dtype="float32")
    moved = dataclasses.replace(plan, precision=on_cpu, text_precision=on_cpu)
    return build_graph(config, moved, image_encoder=SlowImageEncoder)


def serve(path: Path) -> None:
    """Serve until standard input ends."""
    config = load_config(path)
    with local_node(config, {"num_cpus": 16, "num_gpus": 2}) as node:
        rendered = serve_config_here(config)
        rendered["applications"][0]["import_path"] = "tests.pretend_gpus:build_app"
        node.cluster.deploy(rendered)
        node.cluster.wait_until_running(config.name, 180.0, lambda state: None)
        print(f"Ready {node.cluster.address}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

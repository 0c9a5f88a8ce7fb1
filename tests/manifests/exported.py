"""Which metrics there are, and with which labels, as Prometheus gets them: read from what defines
them, ours and the installed Ray's.

Ray puts `ray_` before a name and `_total` behind a counter's that has none. The autoscaler exports
its own without a prefix.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ray
from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics

ROOT = Path(__file__).parents[2]
RAY = Path(ray.__file__).parent
OURS = ("serve_app/graph/metrics.py", "serve_app/batch/progress.py")
OF_A_REPLICA = {"application", "deployment", "replica"}
"""Labels that Serve adds to what a replica counts."""
ARGUMENTS = {
    "Counter": ("name", "description", "tag_keys"),
    "Gauge": ("name", "description", "tag_keys"),
    "Histogram": ("name", "description", "boundaries", "tag_keys"),
}


@cache
def exported() -> dict[str, set[str]]:
    """Return the labels of each metric, without those that Ray and Prometheus add to all."""
    graph, batch = ((ROOT / path).read_text() for path in OURS)
    found = {name: labels | OF_A_REPLICA for name, labels in _defined(graph)} | dict(
        _defined(batch)
    )
    for module in (RAY / "serve/_private").glob("*.py"):
        found |= dict(_defined(module.read_text()))
    return (
        {f"ray_{name}": labels for name, labels in (found | _of_the_raylet()).items()}
        | _of_the_autoscaler()
        | {"up": set()}
    )


def _defined(source: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the names and labels of the metrics that a module makes; of names with the protocol in
    them, those of HTTP.
    """
    tree = ast.parse(source)
    assigned = {
        at.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for at in node.targets
        if isinstance(at, ast.Name)
    }
    for call in ast.walk(tree):
        kind = (
            getattr(call.func, "attr", getattr(call.func, "id", ""))
            if isinstance(call, ast.Call)
            else ""
        )
        if not isinstance(call, ast.Call) or kind not in ARGUMENTS:
            continue
        given = dict(zip(ARGUMENTS[kind], call.args, strict=False)) | {
            one.arg: one.value for one in call.keywords
        }
        labels = given.get("tag_keys")
        labels = assigned.get(labels.id, labels) if isinstance(labels, ast.Name) else labels
        for name in _exported_names(kind, "".join(_strings(given.get("name")))):
            yield name, set(_strings(labels)) | ({"le"} if name.endswith("_bucket") else set())


def _exported_names(kind: str, name: str) -> list[str]:
    if kind == "Histogram":
        return [f"{name}_{part}" for part in ("bucket", "count", "sum")]
    return [name if kind == "Gauge" or name.endswith("_total") else f"{name}_total"]


def _strings(node: ast.AST | None) -> Iterator[str]:
    """Yield the strings of an expression in their order; what an f-string puts in is the
    protocol.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.FormattedValue):
        yield "http"
    elif node is not None:
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


def _of_the_raylet() -> dict[str, set[str]]:
    """Return counters of the raylet, a compiled program: it has the name, and Ray's own dashboard
    has it as it is exported.
    """
    panels = (RAY / "dashboard/modules/metrics/dashboards/default_dashboard_panels.py").read_text()
    program = (RAY / "core/src/ray/raylet/raylet").read_bytes()
    names = re.findall(r"\bray_(\w+)_total\b", panels)
    return {
        f"{name}_total": {"Type", "Name"}
        for name in names
        if b"\0" + name.encode() + b"\0" in program
    }


def _of_the_autoscaler() -> dict[str, set[str]]:
    metrics = AutoscalerPrometheusMetrics(session_name="session")
    metrics.pending_nodes.labels(NodeType="group", SessionName="session").set(1)
    return {
        sample.name: set(sample.labels)
        for family in metrics.registry.collect()
        for sample in family.samples
    }

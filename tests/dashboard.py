"""The Grafana dashboard and the examples of docs/monitoring.md as tests read them."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "k8s/monitoring/dashboard.json").read_text(encoding="utf-8")
)
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES: list[tuple[str, str]] = [
    (panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]
]
"""A panel's title and an expression of it."""
RATE_INTERVAL = "1m"
"""What Grafana puts for `$__rate_interval` where a data source says that it scrapes every 15 s, as
it does unless set."""


def substituted(expr: str, application: str) -> str:
    """Return an expression as Grafana sends it."""
    return expr.replace("$__rate_interval", RATE_INTERVAL).replace("$application", application)


def examples(page: str) -> list[str]:
    """Return the PromQL of a page: the lines of its code blocks that name our metrics."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if "ray_siglip_" in line]

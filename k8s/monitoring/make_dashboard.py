"""Writes dashboard.json, the Grafana dashboard, from the panels below.

Rows and panels are in the order of an operator's questions. To write the file, run
`python k8s/monitoring/make_dashboard.py`. To add a panel, add a `Panel` to a `Row`; its position is
computed. docs/monitoring.md describes the metrics.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("dashboard.json")
SCHEMA_VERSION = 39
"""The schema of Grafana 11.0, which later versions convert to theirs."""
COLUMNS = 24
STAT_HEIGHT = 4
GRAPH_HEIGHT = 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
APPLICATION = 'application=~"$application"'
WORK = 'route!~"/healthz|/readyz|/v2.*|/docs|/openapi.json|other"'
"""Matches requests for work, because many quick probes would lower every quantile."""


def of(metric: str, *matchers: str) -> str:
    """Return the series of a metric for the selected applications."""
    return f"{metric}{{{', '.join([APPLICATION, *matchers])}}}"


def rate(metric: str, *matchers: str) -> str:
    """Return the increase of a counter per second."""
    return f"rate({of(metric, *matchers)}[$__rate_interval])"


def quantile(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Return a quantile of a histogram over all replicas."""
    labels = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({share}, sum by ({labels}) ({rate(f'{histogram}_bucket', *matchers)}))"
    )


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard.

    Attributes:
        title: A short title.
        description: The meaning of the panel, and what to do if it looks bad.
        unit: Grafana's id of the unit.
        queries: PromQL by legend, which may contain `{{label}}` for a label's value.
        kind: `timeseries`, `stat`, or `table` for current labels.
        width: Width in columns, of which a row has 24.
        limits: The values from which the panel is orange and red.
        is_stacked: Whether the sum of the series has a meaning.
        when_empty: Text that is shown without data.
    """

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    limits: tuple[float, float] | None = None
    is_stacked: bool = False
    when_empty: str = "no data"


@dataclass(frozen=True)
class Row:
    """A question of an operator, and the panels that answer it."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


REQUESTS = "ray_siglip_http_requests_total"
REQUEST_SECONDS = "ray_siglip_http_request_duration_seconds"
STAGE_SECONDS = "ray_siglip_stage_duration_seconds"
IMAGES = "ray_siglip_images_total"
REFUSALS = "ray_siglip_refusals_total"
TEXT_ROWS = "ray_siglip_text_cache_rows_total"
GPU_MEMORY = "ray_siglip_gpu_memory_bytes"
OK = 'outcome="ok"'
HIT = 'result="hit"'
RESERVED = 'kind="reserved"'
LIMIT = 'kind="limit"'
BUSY_SECONDS = "ray_siglip_encoder_busy_seconds_total"
ENCODED_ITEMS = "ray_siglip_encoder_items_total"
ENCODED_BATCHES = "ray_siglip_encoder_batches_total"
HEALTHY = "ray_serve_deployment_replica_healthy"
PROCESSED_CALLS = "ray_serve_replica_processing_queries"
QUEUED_CALLS = "ray_serve_deployment_queued_queries"
REPLICA_STARTS = "ray_serve_deployment_replica_starts_total"
TARGET_REPLICAS = "ray_serve_autoscaling_target_replicas"


def _share_of_requests(status: str) -> str:
    matcher = f'status=~"{status}"'
    return f"(sum({rate(REQUESTS, matcher)}) or vector(0)) / (sum({rate(REQUESTS)}) > 0)"


def _since_start(counter: str) -> str:
    """Return the value of a counter that does not exist before its first increase.

    A rate would miss that increase.
    """
    return f"sum({of(counter)}) or vector(0)"


FINE = Row(
    "Is it fine?",
    (
        Panel(
            "Requests",
            "Requests answered each second, probes included; if it falls to nothing while clients "
            "send, look at the ingress and at the replicas below.",
            "reqps",
            {"requests": f"sum({rate(REQUESTS)})"},
            kind="stat",
            width=4,
        ),
        Panel(
            "Server errors",
            "Share of requests answered with 5xx; if it is not 0, read the codes under “What is "
            "refused?” and the replicas' standard error.",
            "percentunit",
            {"5xx": _share_of_requests("5..")},
            kind="stat",
            width=4,
            limits=(0.001, 0.01),
            when_empty="no requests",
        ),
        Panel(
            "Median latency",
            "Half of the requests for work were quicker; if it is high, the row below says in "
            "which stage the time goes.",
            "s",
            {"p50": quantile(0.5, REQUEST_SECONDS, WORK)},
            kind="stat",
            width=4,
            when_empty="no requests",
        ),
        Panel(
            "p99 latency",
            "One request in a hundred took longer; if it is far above the median, look for "
            "waiting images and for large pictures.",
            "s",
            {"p99": quantile(0.99, REQUEST_SECONDS, WORK)},
            kind="stat",
            width=4,
            limits=(1, 5),
            when_empty="no requests",
        ),
        Panel(
            "Images",
            "Images tagged or embedded each second; if it is flat while images wait, the service "
            "is full: add replicas or hardware.",
            "cps",
            {"images": f"sum({rate(IMAGES, OK)})"},
            kind="stat",
            width=4,
        ),
        Panel(
            "Healthy replicas",
            "Replicas that pass their health check, of all deployments; if one is missing for "
            "minutes, read `siglip-serve env` and the log of Serve's controller.",
            "short",
            {"replicas": f"sum({of(HEALTHY)})"},
            kind="stat",
            width=4,
        ),
        Panel(
            "Latency",
            "Time of requests for work, their bodies' arrival included; if it grows with the "
            "load, the service is full, and if it grows without, look at the stages.",
            "s",
            {
                "p50": quantile(0.5, REQUEST_SECONDS, WORK),
                "p99": quantile(0.99, REQUEST_SECONDS, WORK),
            },
            width=12,
        ),
        Panel(
            "Errors",
            "Share of requests that failed; 5xx is ours to mend, 4xx is the client's, and many "
            "429 mean that the service is full.",
            "percentunit",
            {"4xx": _share_of_requests("4.."), "5xx": _share_of_requests("5..")},
            width=12,
            when_empty="no requests",
        ),
    ),
)

TIME = Row(
    "Where does the time go?",
    (
        Panel(
            "Median of each stage",
            "Typical time of an image in each stage, one on the other; a thick decode or "
            "preprocess wants processors for the Preprocessor, a thick queue or encode wants "
            "ImageEncoders.",
            "s",
            {"{{stage}}": quantile(0.5, STAGE_SECONDS, by="stage")},
            width=12,
            is_stacked=True,
        ),
        Panel(
            "p99 of each stage",
            "Slow images in each stage, not to be added up; a slow queue means bursts, a slow "
            "decode very large pictures, a slow encode a busy or throttled device.",
            "s",
            {"{{stage}}": quantile(0.99, STAGE_SECONDS, by="stage")},
            width=12,
        ),
    ),
)

FULL = Row(
    "Is it full?",
    (
        Panel(
            "Waiting images",
            "Images that wait in Preprocessors; if those before decode pile up, add processors, "
            "and if those before encode do, add ImageEncoders.",
            "short",
            {"to {{stage}}": f"sum by (stage) ({of('ray_siglip_waiting_images')})"},
            is_stacked=True,
        ),
        Panel(
            "Encoder busy",
            "Share of time that an encoder spends in forward passes; near 1 it is full, so add a "
            "replica, and if it is low while images wait, look at the Preprocessors' processors.",
            "percentunit",
            {
                "{{deployment}}": f"sum by (deployment) ({rate(BUSY_SECONDS)})"
                f" / sum by (deployment) ({of(HEALTHY)})"
            },
            limits=(0.8, 0.95),
        ),
        Panel(
            "Queued calls",
            "Calls that Serve holds back because every replica has its `max_ongoing_requests`; if "
            "they stay, that deployment needs another replica.",
            "short",
            {"{{deployment}}": f"sum by (deployment) ({of(QUEUED_CALLS)})"},
        ),
        Panel(
            "Batch size",
            "Images or prompts in a forward pass; if it stays at `batch_size` the encoder is "
            "full, and if it stays near 1 under load, raise `batch_wait_timeout_s`.",
            "short",
            {
                "{{deployment}} mean": f"sum by (deployment) ({rate(ENCODED_ITEMS)})"
                f" / (sum by (deployment) ({rate(ENCODED_BATCHES)}) > 0)",
                "{{deployment}} p90": quantile(
                    0.9, "ray_siglip_encoder_batch_size", by="deployment"
                ),
            },
        ),
        Panel(
            "Forward pass",
            "Time of one forward pass, transfers included; if it grows while the batch size does "
            "not, the device is shared, hot or out of processors.",
            "s",
            {
                "{{deployment}} p50": quantile(
                    0.5, "ray_siglip_encoder_batch_duration_seconds", by="deployment"
                ),
                "{{deployment}} p99": quantile(
                    0.99, "ray_siglip_encoder_batch_duration_seconds", by="deployment"
                ),
            },
        ),
        Panel(
            "Calls in work",
            "Calls that replicas are working on, mean of a deployment's replicas; if one "
            "deployment alone is at its `max_ongoing_requests`, it is the narrow place.",
            "short",
            {"{{deployment}}": f"avg by (deployment) ({of(PROCESSED_CALLS)})"},
        ),
    ),
)

COMES_IN = Row(
    "What comes in?",
    (
        Panel(
            "Requests by route",
            "Requests each second by documented route; `other` are paths that do not exist: if "
            "they are many, a client has a wrong URL.",
            "reqps",
            {"{{method}} {{route}}": f"sum by (method, route) ({rate(REQUESTS)})"},
            width=12,
            is_stacked=True,
        ),
        Panel(
            "Requests by status",
            "Requests each second by status; many 499 are clients that leave early, so compare "
            "their time-out with the p99 above.",
            "reqps",
            {"{{status}}": f"sum by (status) ({rate(REQUESTS)})"},
            width=12,
            is_stacked=True,
        ),
        Panel(
            "Images by format",
            "Images each second by what their first bytes look like; if `other` grows, a client "
            "sends what is no picture or a format that is not read.",
            "cps",
            {"{{format}}": f"sum by (format) ({rate(IMAGES)})"},
            width=12,
            is_stacked=True,
        ),
        Panel(
            "Images by outcome",
            "Images each second by how they ended, `ok` or an error's code; docs/api.md says of "
            "each code what a client can do.",
            "cps",
            {"{{outcome}}": f"sum by (outcome) ({rate(IMAGES)})"},
            width=12,
            is_stacked=True,
        ),
    ),
)

REFUSED = Row(
    "What is refused?",
    (
        Panel(
            "Refusals by code",
            "Requests answered with an error each second; `overloaded` wants replicas, "
            "`deadline_exceeded` a look at the stages, and the rest is for the clients' owners.",
            "reqps",
            {"{{code}}": f"sum by (code) ({rate(REFUSALS)})"},
            width=12,
            is_stacked=True,
        ),
        Panel(
            "Refusals since the start",
            "Every refusal by route and code, the first of each too, which a rate does not see; "
            "look a code up in docs/api.md.",
            "short",
            {"refusals": f"sum by (route, code) ({of(REFUSALS)})"},
            kind="table",
            width=12,
            when_empty="none",
        ),
    ),
)

CACHES = Row(
    "Are texts encoded again and again?",
    (
        Panel(
            "Text rows known",
            "Share of text embeddings that were known when they were looked up, half where every "
            "request brings new labels; if it is low, register the labels as a vocabulary or give "
            "more `max_cached_label_bytes`.",
            "percentunit",
            {"known": f"(sum({rate(TEXT_ROWS, HIT)}) or vector(0)) / (sum({rate(TEXT_ROWS)}) > 0)"},
            width=12,
            when_empty="no requests with own labels",
        ),
        Panel(
            "Text rows",
            "Text embeddings looked up each second for labels and texts of requests; misses are "
            "work for the TextEncoder, so add one if they wait.",
            "cps",
            {"{{result}}": f"sum by (result) ({rate(TEXT_ROWS)})"},
            width=12,
            is_stacked=True,
        ),
    ),
)

MODEL_LABELS = "model, revision, family, dtype, attention, device, quantization, version"
MODEL = Row(
    "What runs?",
    (
        Panel(
            "Models",
            "What the replicas run, and how many of them; two lines for one deployment are a "
            "change under way, and if it stays, a replica did not restart.",
            "short",
            {"replicas": f"sum by (deployment, {MODEL_LABELS}) ({of('ray_siglip_model_info')})"},
            kind="table",
            width=24,
        ),
        Panel(
            "Towers loaded",
            "Towers loaded since the Ray nodes started; if it climbs without a deployment or "
            "scaling, replicas die: read their standard error.",
            "short",
            {"{{deployment}}": f"sum by (deployment) ({of('ray_siglip_model_loads_total')})"},
        ),
        Panel(
            "Configurations refused",
            "Live configurations that could not work and left the last good one in place; `GET "
            "/v1/config` and the replicas' standard error say why.",
            "short",
            {"refused": _since_start("ray_siglip_config_refusals_total")},
            limits=(1, 10),
        ),
        Panel(
            "Calls made again",
            "Calls between deployments that were made again because a replica died; no request is "
            "lost by one, but look for the reason of the death.",
            "short",
            {"retries": _since_start("ray_siglip_inner_retries_total")},
            limits=(1, 100),
        ),
    ),
)

GPU = Row(
    "Is there room on the GPUs?",
    (
        Panel(
            "GPU memory",
            "Memory of each replica on its GPU, and its limit; if reserved comes to the limit, "
            "lower `batch_size`; without a GPU there is no data.",
            "bytes",
            {
                "{{deployment}} {{replica}} {{kind}}": (
                    f"max by (deployment, replica, kind) ({of(GPU_MEMORY)})"
                )
            },
            width=12,
            when_empty="no GPU",
        ),
        Panel(
            "GPU memory used of its limit",
            "What a replica has reserved of what it may; above 0.95 the next larger batch may "
            "fail, so lower `batch_size` or give a larger share.",
            "percentunit",
            {
                "{{deployment}} {{replica}}": (
                    f"max by (deployment, replica) ({of(GPU_MEMORY, RESERVED)})"
                    f" / max by (deployment, replica) ({of(GPU_MEMORY, LIMIT)})"
                )
            },
            width=12,
            limits=(0.9, 0.95),
            when_empty="no GPU",
        ),
    ),
)

MACHINES = Row(
    "Replicas and machines",
    (
        Panel(
            "Replicas",
            "Healthy replicas of each deployment beside how many there should be; if fewer are "
            "healthy for minutes, the cluster has no room or replicas fail to start.",
            "short",
            {
                "{{deployment}} healthy": f"sum by (deployment) ({of(HEALTHY)})",
                "{{deployment}} wanted": f"max by (deployment) ({of(TARGET_REPLICAS)})",
            },
        ),
        Panel(
            "Replica starts",
            "Replicas started since the Ray nodes did; steps that are no deployment and no "
            "scaling are replicas that died and were replaced.",
            "short",
            {"{{deployment}}": f"sum by (deployment) ({of(REPLICA_STARTS)})"},
        ),
        Panel(
            "Memory of replicas",
            "Resident memory of each deployment's processes on each node; if it climbs for hours, "
            "lower the caches or report it.",
            "bytes",
            {
                "{{Component}} {{ip}}": (
                    "sum by (Component, ip) (ray_component_rss_bytes"
                    '{Component=~"ray::ServeReplica:$application:.+"})'
                )
            },
        ),
        Panel(
            "Processors of nodes",
            "Share of each node's processors in use; near 1 everything on it is slow, so add a "
            "node or give the Preprocessor fewer replicas.",
            "percent",
            {"{{ip}}": "max by (ip) (ray_node_cpu_utilization)"},
            width=12,
            limits=(85, 95),
        ),
        Panel(
            "Memory of nodes",
            "Share of each node's memory in use; near 1 Ray ends processes, so give the node more "
            "or the caches less.",
            "percentunit",
            {"{{ip}}": "max by (ip) (ray_node_mem_used) / max by (ip) (ray_node_mem_total)"},
            width=12,
            limits=(0.85, 0.95),
        ),
    ),
)

ROWS = (FINE, TIME, FULL, COMES_IN, REFUSED, CACHES, MODEL, GPU, MACHINES)


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's format."""
    return {
        "uid": "siglip-serve",
        "title": "siglip-serve",
        "description": "Is it fine, where does the time go, is it full, what comes in. "
        "Made by make_dashboard.py.",
        "tags": ["siglip-serve", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource_variable(), _application_variable()]},
        "annotations": {"list": []},
        "links": [],
        "panels": _laid_out(ROWS),
    }


def _datasource_variable() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
    }


def _application_variable() -> dict[str, Any]:
    query = "label_values(ray_siglip_model_loads_total, application)"
    return {
        "name": "application",
        "label": "Application",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "application"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "options": [],
    }


def _laid_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return Grafana's panels, from left to right and from top to bottom."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        head = {"type": "row", "title": row.title, "collapsed": False, "panels": []}
        panels.append(_placed(head, len(panels), 0, y, COLUMNS, 1))
        y += 1
        x = 0
        height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x = 0
                y += height
            height = STAT_HEIGHT if panel.kind == "stat" else GRAPH_HEIGHT
            panels.append(_placed(_panel(panel), len(panels), x, y, panel.width, height))
            x += panel.width
        y += height
    return panels


def _placed(
    panel: dict[str, Any], number: int, x: int, y: int, width: int, height: int
) -> dict[str, Any]:
    return {"id": number + 1, "gridPos": {"x": x, "y": y, "w": width, "h": height}, **panel}


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        _target(panel, number, legend, expr)
        for number, (legend, expr) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        **_OPTIONS[panel.kind],
    }


def _target(panel: Panel, number: int, legend: str, expr: str) -> dict[str, Any]:
    is_table = panel.kind == "table"
    return {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": expr,
        "legendFormat": legend,
        "instant": is_table,
        "range": not is_table,
        "format": "table" if is_table else "time_series",
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limits:
        steps += [
            {"color": color, "value": limit}
            for color, limit in zip(("orange", "red"), panel.limits, strict=True)
        ]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "noValue": panel.when_empty,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.kind == "stat":
        return defaults | {"color": {"mode": "thresholds"}}
    if panel.kind == "table":
        return defaults
    drawn = {
        "drawStyle": "line",
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": 30_000,
        "fillOpacity": 40 if panel.is_stacked else 5,
    }
    drawn |= {"stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"}}
    drawn |= {"thresholdsStyle": {"mode": "dashed" if panel.limits else "off"}}
    return defaults | {"color": {"mode": "palette-classic"}, "custom": drawn}


_LEGEND = {
    "showLegend": True,
    "displayMode": "table",
    "placement": "bottom",
    "calcs": ["lastNotNull", "max"],
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {"options": {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}}},
    "stat": {
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "graphMode": "area",
            "colorMode": "value",
            "textMode": "auto",
        }
    },
    "table": {
        "options": {"showHeader": True, "cellHeight": "sm"},
        "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}],
    },
}


def text() -> str:
    """Return the content of dashboard.json."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")

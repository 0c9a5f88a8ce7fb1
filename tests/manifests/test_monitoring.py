"""The component k8s/monitoring: what the operators of Prometheus and Grafana get, and that every
alert fires when it should.
"""

import copy
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.monitoring import make_dashboard
from tests.manifests.exported import exported
from tests.manifests.kube import ROOT, kustomized, problems

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)

MONITORING = ROOT / "k8s/monitoring"
GROUPS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"][
    "groups"
]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED: dict[str, str] = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
CASES: dict[str, Any] = yaml.safe_load((ROOT / "tests/manifests/alerts_test.yaml").read_text())

ALL_TARGETS = {"namespace", "pod", "container", "endpoint", "instance", "job"}
"""Labels that the operator gives to every pod's series."""
WORDS = {"and", "or", "unless", "offset", "bool"}
APPLY_LIMIT_BYTES = 262_144
"""Of all annotations of an object; `kubectl apply` keeps the whole object in one.

Source: https://kubernetes.io/docs/reference/labels-annotations-taints/ and
TotalAnnotationSizeLimitB of Kubernetes' API machinery.
"""


def overlaid(overlay: Path, written: dict[str, Any]) -> dict[str, Any]:
    """Return what an overlay gives that has the component and no more, by kind."""
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    component = {"components": [os.path.relpath(MONITORING, overlay.resolve())]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(head | written | component))
    manifests = kustomized(str(overlay))
    assert len(manifests) == len({one["kind"] for one in manifests})
    return {one["kind"]: one for one in manifests}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the component gives to an overlay, by kind."""
    return overlaid(tmp_path_factory.mktemp("overlay"), {"namespace": "tags"})


def metrics_in(expr: str) -> set[str]:
    """Return the metrics of an expression, those of the rules that it goes by among them."""
    bare = re.sub(r'"[^"]*"', "", expr)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    names = set(re.findall(r"(?<![\w.:])[A-Za-z_][\w:]*\b(?!\s*\()", bare)) - WORDS
    return {
        found
        for name in names
        for found in (metrics_in(RECORDED[name]) if name in RECORDED else {name})
    }


def name_of(series: str) -> str:
    return series.partition("{")[0]


def labels_of(series: str) -> set[str]:
    return set(re.findall(r'(\w+)="', series))


def cases_of(alert: str) -> list[dict[str, Any]]:
    """Return the cases of an alert, each with the checks of it alone."""
    checked = (
        (case, [one for one in case["alert_rule_test"] if one["alertname"] == alert])
        for case in CASES["tests"]
    )
    return [case | {"alert_rule_test": checks} for case, checks in checked if checks]


def fires(case: dict[str, Any]) -> bool:
    return any(check["exp_alerts"] for check in case["alert_rule_test"])


def promtool(*arguments: str) -> str:
    """Return what promtool has against it, nothing if all is well."""
    assert PROMTOOL is not None
    ran = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True)
    return ran.stdout + ran.stderr if ran.returncode else ""


def test_an_overlay_gives_its_namespace(made: dict[str, Any]) -> None:
    """The component is a PodMonitor, a PrometheusRule and a ConfigMap, and none of them says where
    it lives.
    """
    assert set(made) == {"PodMonitor", "PrometheusRule", "ConfigMap"}
    assert {one["metadata"]["namespace"] for one in made.values()} == {"tags"}
    for file in MONITORING.glob("*.yaml"):
        assert not re.search(r"^\s*namespace:", file.read_text(), re.MULTILINE), file


def test_the_operators_schemas_take_them_strictly(made: dict[str, Any]) -> None:
    """And refuse fields that are misspelt."""
    monitor = made["PodMonitor"]
    rules = made["PrometheusRule"]
    assert problems(monitor, "monitoring.coreos.com_podmonitors") == []
    assert problems(rules, "monitoring.coreos.com_prometheusrules") == []
    assert problems(made["ConfigMap"]) == []
    wrong_monitor = copy.deepcopy(monitor)
    wrong_rules = copy.deepcopy(rules)
    wrong_monitor["spec"]["podMetricsEndpoints"][0]["scrapeTimeOut"] = "10s"
    wrong_rules["spec"]["groups"][0]["rules"][-1]["fo"] = "5m"
    assert len(problems(wrong_monitor, "monitoring.coreos.com_podmonitors")) == 1
    assert len(problems(wrong_rules, "monitoring.coreos.com_prometheusrules")) == 1


def test_every_metrics_port_of_the_service_is_scraped(made: dict[str, Any]) -> None:
    """The PodMonitor names the ports that k8s/base opens for metrics, and takes its pods by a label
    that they all have.
    """
    spec = made["PodMonitor"]["spec"]
    service = yaml.safe_load((ROOT / "k8s/base/rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    pods = [
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]
    ports = [
        {
            port["name"]
            for port in pod["spec"]["containers"][0]["ports"]
            if "metrics" in port["name"]
        }
        for pod in pods
    ]
    assert ports == [
        {"metrics", "as-metrics", "dash-metrics"},
        *[{"metrics"}] * len(cluster["workerGroupSpecs"]),
    ]
    assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} == set.union(*ports)
    (selected,) = spec["selector"]["matchExpressions"]
    assert selected["operator"] == "In"
    assert selected["values"] == ["siglip-serve", "siglip-batch"]
    assert {pod["metadata"]["labels"][selected["key"]] for pod in pods} == {"siglip-serve"}
    assert spec["jobLabel"] == selected["key"]


def test_the_dashboard_is_the_one_that_is_there(made: dict[str, Any]) -> None:
    """The ConfigMap has dashboard.json as it is, the label that Grafana's sidecar looks for, and a
    size that can be applied.
    """
    configmap = made["ConfigMap"]
    assert list(configmap["data"].values()) == [
        (MONITORING / "dashboard.json").read_text(encoding="utf-8")
    ]
    assert configmap["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert configmap["metadata"]["name"] == "siglip-serve-dashboard"
    assert len(json.dumps(configmap)) < APPLY_LIMIT_BYTES


def test_the_readmes_overlay_works(tmp_path: Path) -> None:
    """The blocks of README.md, put together, rename the release, change a number and take an alert
    away.
    """
    blocks = re.findall(
        r"^```yaml\n(.*?)^```", (MONITORING / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    written = yaml.safe_load("".join(blocks))
    assert written["components"] == ["../../monitoring"]
    patched = overlaid(tmp_path, written)
    assert patched["ConfigMap"]["metadata"]["namespace"] == "siglip"
    assert {
        patched[kind]["metadata"]["labels"]["release"] for kind in ("PodMonitor", "PrometheusRule")
    } == {"monitoring"}
    rules = [
        rule
        for group in patched["PrometheusRule"]["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert [rule["alert"] for rule in rules] == [
        alert for alert in ALERTS if alert != "SiglipFewWorkers"
    ]
    assert {rule["alert"]: rule.get("for") for rule in rules}["SiglipReplicasMissing"] == "60m"


@needs_promtool
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    """Every expression parses, and so does every template of an annotation; a wrong one does
    not.
    """
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": GROUPS}))
    assert promtool("check", "rules", str(tmp_path / "rules.yaml")) == ""
    wrong = copy.deepcopy(GROUPS)
    wrong[-1]["rules"][-1]["annotations"]["summary"] = "{{ $value | humanise }}"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"groups": wrong}))
    assert "humanise" in promtool("check", "rules", str(tmp_path / "wrong.yaml"))


@needs_promtool
@pytest.mark.parametrize("alert", ALERTS)
def test_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    """Prometheus' own rule tester has each case of the alert as expected."""
    recorded = [rule for rule in RULES if "record" in rule]
    bare = {key: value for key, value in ALERTS[alert].items() if key != "annotations"}
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "rules", "rules": [*recorded, bare]}]})
    )
    (tmp_path / "alerts_test.yaml").write_text(yaml.safe_dump(CASES | {"tests": cases_of(alert)}))
    assert promtool("test", "rules", str(tmp_path / "alerts_test.yaml")) == ""


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_has_cases_that_mean_something(alert: str) -> None:
    """One fires, and not at once; one does not although there are series of every metric that the
    alert looks at.
    """
    cases = cases_of(alert)
    firing = [case for case in cases if fires(case)]
    quiet = [case for case in cases if not fires(case)]
    assert firing
    for case in firing:
        assert case["alert_rule_test"][0]["exp_alerts"] == [], case["name"]
    asked = metrics_in(ALERTS[alert]["expr"])
    assert any(asked <= {name_of(one["series"]) for one in case["input_series"]} for case in quiet)


def test_cases_are_of_alerts_that_there_are() -> None:
    """No case is left of an alert that was renamed or taken away."""
    assert {
        check["alertname"] for case in CASES["tests"] for check in case["alert_rule_test"]
    } == set(ALERTS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert", rule.get("record")))
def test_every_metric_of_a_rule_exists(rule: dict[str, Any]) -> None:
    """Each is one that our code, Ray Serve, the raylet, the autoscaler or Prometheus itself
    defines.
    """
    asked = metrics_in(rule["expr"])
    assert asked
    assert asked <= set(exported())


def test_series_of_the_cases_have_labels_that_they_have_in_truth(made: dict[str, Any]) -> None:
    """Else an alert could pass by a label that Ray does not export."""
    spec = made["PodMonitor"]["spec"]
    of_pods = ALL_TARGETS | {re.sub(r"\W", "_", label) for label in spec["podTargetLabels"]}
    for series in {one["series"] for case in CASES["tests"] for one in case["input_series"]}:
        assert labels_of(series) <= exported()[name_of(series)] | of_pods, series


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_says_how_bad_it_is_and_what_to_do(alert: str) -> None:
    """A severity, a line, sentences, and a heading that exists; and no label is put in that the
    alert does not have.
    """
    rule = ALERTS[alert]
    annotations = rule["annotations"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(annotations) == {"summary", "description", "runbook"}
    assert not annotations["summary"].endswith(".")
    assert annotations["description"].endswith(".")
    assert len(annotations["description"].split()) >= 10
    assert not re.search(r"[{}]", re.sub(r"\{\{.*?\}\}", "", " ".join(annotations.values()))), (
        "a template that is none"
    )
    page, _, heading = annotations["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert heading in {
        re.sub(r"[^\w -]", "", found).lower().replace(" ", "-") for found in headings
    }
    found = [
        one["exp_labels"]
        for case in cases_of(alert)
        for check in case["alert_rule_test"]
        for one in check["exp_alerts"]
    ]
    for labels in found:
        assert set(re.findall(r"\$labels\.(\w+)", " ".join(annotations.values()))) <= set(labels)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert", rule.get("record")))
def test_what_is_counted_is_this_service(rule: dict[str, Any]) -> None:
    """Requests are counted without probes, as on the dashboard, and metrics that other Ray services
    have too are those of our pods.
    """
    for metric, selector in re.findall(
        r"\b((?:ray|autoscaler)_(?!io_)\w+|up\b)(\{[^}]*\})?", rule["expr"]
    ):
        if metric.startswith("ray_siglip_http_request"):
            assert make_dashboard.WORK in selector, metric
        if not metric.startswith("ray_siglip_"):
            assert re.search(r'job=~?"siglip-', selector), metric


def test_every_alert_is_documented_and_no_other() -> None:
    """The table of docs/monitoring.md has each alert once with its severity."""
    page = (ROOT / "docs/monitoring.md").read_text()
    (section,) = re.findall(r"^## Alerts\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(
        (name, rule["labels"]["severity"]) for name, rule in ALERTS.items()
    )

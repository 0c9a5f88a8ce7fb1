"""The dashboard is the one its module makes, has every metric of ours and no other, and tells an
operator what to do.
"""

import re

import pytest

from k8s.monitoring import make_dashboard
from tests.dashboard import DASHBOARD, PANELS, QUERIES, ROOT

HISTOGRAM_PARTS = ("_bucket", "_count", "_sum")


def metrics_in(text: str) -> set[str]:
    """Return our metrics in some PromQL, histograms by their own name."""
    return {
        re.sub("|".join(f"{part}$" for part in HISTOGRAM_PARTS), "", name)
        for name in re.findall(r"ray_(siglip_\w+)", text)
    }


def test_file_is_what_its_module_makes() -> None:
    """dashboard.json was written by make_dashboard.py as it is now."""
    assert make_dashboard.PATH.read_text(encoding="utf-8") == make_dashboard.text(), (
        "run: python k8s/monitoring/make_dashboard.py"
    )


def test_every_metric_is_on_the_dashboard_and_no_other() -> None:
    """The metrics of graph/metrics.py are those that the panels ask for."""
    defined = set(re.findall(r'"(siglip_\w+)"', (ROOT / "serve_app/graph/metrics.py").read_text()))
    assert metrics_in(" ".join(expr for _, expr in QUERIES)) == defined


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_says_what_to_do(panel: dict) -> None:
    """Each panel has a title, a unit, a legend for each query, and one sentence that ends what it
    starts.
    """
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert all(target["legendFormat"] for target in panel["targets"])
    assert re.fullmatch(r"[A-Z“][^.]*(?:\.\w[^.]*)*\.", panel["description"])
    assert len(panel["description"].split()) >= 10


@pytest.mark.parametrize(("title", "expr"), QUERIES)
def test_queries_ask_for_the_chosen_application(title: str, expr: str) -> None:
    """Every series of ours and of Serve is filtered by the variable; Ray's own, of processes and
    nodes, have no such label.
    """
    for found in re.finditer(r"\bray_(?:siglip|serve)_\w+(\S*)", expr):
        assert found[1].startswith('{application=~"$application"'), title


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    """No two panels lie on the same cell of the 24 columns."""
    taken: set[tuple[int, int]] = set()
    for at in (panel["gridPos"] for panel in DASHBOARD["panels"]):
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

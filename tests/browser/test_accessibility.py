"""axe-core finds nothing against WCAG 2.2 AA or its best practices, in both themes, wide and
narrow, in every state of the page.
"""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Gate
from tests.browser.test_page import SIX, add


def found(page: Page) -> list[str]:
    """Return each violation with its places."""
    result = Axe().run(page, options={"resultTypes": ["violations"]}).response
    assert len(result["passes"]) >= 15, "axe has looked at nothing"
    return [f"{v['id']}: {[node['html'] for node in v['nodes']]}" for v in result["violations"]]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_nothing(page: Page, gate: Gate, theme: str, width: int, tmp_path: Path) -> None:
    """Empty, with tags and a failed picture, and asking for a key."""
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    expect(page.locator("html")).to_have_attribute("data-theme", theme)
    assert found(page) == []
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    add(page, *SIX[:2], tmp_path / "x.gif")
    page.locator("#threshold").fill("0")
    page.locator("#settings").evaluate("(settings) => (settings.open = true)")
    assert found(page) == []
    gate.key = "k"
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()
    assert found(page) == []


def test_landmarks_and_names(page: Page) -> None:
    """What a screen reader's list of regions and headings shows."""
    add(page, SIX[0])
    for role, name in (
        ("banner", None),
        ("main", None),
        ("navigation", "This service"),
        ("region", "Results"),
        ("region", "Settings"),
    ):
        expect(page.get_by_role(role, name=name)).to_have_count(1)  # type: ignore[arg-type]
    assert page.get_by_role("heading").all_text_contents() == [
        "siglip-serve",
        "Drop images here",
        "Equivalent curl command",
        "Results",
        SIX[0].name,
    ]
    for label in ("Your own labels", "Vocabulary", "Score"):
        expect(page.get_by_label(label, exact=True)).to_be_visible()

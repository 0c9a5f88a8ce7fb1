"""What a person does with the page, and sees: in a real browser, against the real service."""

import base64
import io
import json
import re
import subprocess
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Gate

SAMPLES = Path(__file__).parents[2] / "serve_app" / "demo" / "samples"
RED_CIRCLE = SAMPLES / "red-circle.jpg"
SIX = sorted(SAMPLES.glob("*.jpg"))
IN_RED_CIRCLE = {"red", "circle", "red circle"}
HOSTILE = "<img src=x onerror=document.title='owned'>"
TRANSFER = """([name, type, data]) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type }));
  return transfer;
}"""


def add(page: Page, *files: Path) -> None:
    """Choose files as a person does, and wait until all are answered."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose images").click()
    chooser.value.set_files(files)
    settled(page)


def settled(page: Page) -> None:
    expect(page.locator("[aria-busy]")).to_have_count(0)


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def shown(card: Locator) -> dict[str, str]:
    """Return what a card says: labels and their scores as text."""
    return dict(
        zip(
            card.locator(".tags .label").all_text_contents(),
            card.locator(".tags .value").all_text_contents(),
            strict=True,
        )
    )


def asked(gate: Gate) -> dict[str, str]:
    """Return the parameters of the last request to tag."""
    return {name: value for name, (value,) in parse_qs(gate.queries[-1]).items()}


def answer(address: str, picture: Path, **parameters: object) -> dict[str, float]:
    """Return what the service gives to a client that is not the page."""
    response = httpx.post(f"{address}/v1/tag", params=parameters, content=picture.read_bytes())  # type: ignore[arg-type]
    return {tag["label"]: tag["confidence"] for tag in response.json()["tags"]}


def test_two_actions_give_the_tags(page: Page, gate: Gate) -> None:
    """Open, choose: no more than the service itself would give, at its own threshold; one request,
    with every tag.
    """
    add(page, RED_CIRCLE)
    expect(page.get_by_role("status")).to_have_text("1 image, 3 tags")
    assert set(shown(card(page, "red-circle.jpg"))) == IN_RED_CIRCLE
    expect(page.locator("#threshold-text")).to_have_text("0.5")
    assert asked(gate) == {"confidence_threshold": "0", "max_tags": "200"}
    assert len(gate.queries) == 1


def test_dropped_pictures_are_tagged(page: Page) -> None:
    """Dragged over the page it says where to, dropped it tags, wherever on the page that is."""
    data = base64.b64encode(RED_CIRCLE.read_bytes()).decode()
    transfer = page.evaluate_handle(TRANSFER, ["dropped.jpg", "image/jpeg", data])
    page.dispatch_event("footer, body", "dragover", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop to tag")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop to tag")).to_be_hidden()
    settled(page)
    assert set(shown(card(page, "dropped.jpg"))) == IN_RED_CIRCLE


def test_a_pasted_picture_is_tagged(page: Page) -> None:
    """Ctrl+V with a picture in the real clipboard, also while the cursor is in a text field, whose
    text stays.
    """
    buffer = io.BytesIO()
    Image.open(RED_CIRCLE).save(buffer, "PNG")
    write = """async (data) => {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const blob = new Blob([bytes], { type: "image/png" });
      await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    }"""
    page.evaluate(write, base64.b64encode(buffer.getvalue()).decode())
    page.keyboard.press("Control+V")
    expect(card(page, "pasted-1.png")).to_be_visible()
    page.locator("#labels").focus()
    page.keyboard.press("Control+V")
    expect(card(page, "pasted-2.png")).to_be_visible()
    settled(page)
    assert set(shown(card(page, "pasted-1.png"))) == IN_RED_CIRCLE
    expect(page.locator("#labels")).to_have_value("")


def test_the_slider_hides_and_shows_without_a_request(page: Page, gate: Gate, address: str) -> None:
    """At every threshold exactly what the service would give at it; at its left end all."""
    add(page, RED_CIRCLE)
    slider = page.get_by_role("slider", name="Show tags from")
    before = len(gate.queries)
    for step, threshold in ((20, 0.0001), (60, 0.01), (67, 0.022), (100, 1)):
        slider.fill(str(step))
        expect(page.locator("#threshold-text")).to_have_text(str(threshold))
        assert slider.get_attribute("aria-valuetext") == str(threshold)
        assert set(shown(card(page, "red-circle.jpg"))) == set(
            answer(address, RED_CIRCLE, confidence_threshold=threshold, max_tags=200)
        )
        before += 1  # this test's own
    expect(
        card(page, "red-circle.jpg").get_by_text(
            re.compile("No tag reaches 1. The best is “circle” with 0.9997")
        )
    ).to_be_visible()
    slider.fill("0")
    assert len(shown(card(page, "red-circle.jpg"))) == 62
    assert len(gate.queries) == before


def test_bars_are_logarithmic_and_have_their_values_as_text(page: Page, address: str) -> None:
    """A score of 0.018 fills 65 % of the axis from 0.00001 to 1, and a reader hears it as a
    number.
    """
    add(page, RED_CIRCLE)
    page.locator("#threshold").fill("60")
    row = card(page, "red-circle.jpg").get_by_role("listitem").filter(has_text="orange circle")
    confidence = answer(address, RED_CIRCLE, confidence_threshold=0.01)["orange circle"]
    assert confidence == pytest.approx(0.0176, abs=0.0005)
    expect(row.locator(".value")).to_have_text(f"{confidence:.3f}")
    whole = row.locator(".bar").bounding_box()
    filled = row.locator(".bar").evaluate(
        "(bar) => parseFloat(getComputedStyle(bar, '::before').width)"
    )
    assert whole is not None
    assert filled / whole["width"] == pytest.approx(0.65, abs=0.01)  # 1 + log10(0.0176) / 5


def test_long_lists_open(page: Page) -> None:
    """Eight tags, the others by a button that says how many and whether it is open."""
    add(page, RED_CIRCLE)
    page.locator("#threshold").fill("0")
    rows = card(page, "red-circle.jpg").get_by_role("listitem")
    expect(rows.filter(visible=True)).to_have_count(8)
    page.get_by_role("button", name="Show 54 more", expanded=False).click()
    expect(rows.filter(visible=True)).to_have_count(62)
    page.get_by_role("button", name="Show fewer", expanded=True).click()
    expect(rows.filter(visible=True)).to_have_count(8)


def test_own_labels_take_the_vocabularys_place(page: Page, gate: Gate) -> None:
    """Typed with commas or lines, what is there is tagged again; taken away, the vocabulary is
    back.
    """
    add(page, RED_CIRCLE)
    page.locator("#threshold").fill("0")
    page.get_by_label("Your own labels").fill("red, blue\n green,,red ")
    expect(card(page, "red-circle.jpg").get_by_role("listitem")).to_have_count(3)
    assert asked(gate)["labels"] == "red,blue,green"
    assert next(iter(shown(card(page, "red-circle.jpg")))) == "red"
    expect(page.get_by_label("Vocabulary", exact=True)).to_be_disabled()
    page.get_by_label("Your own labels").fill("")
    expect(card(page, "red-circle.jpg").locator(".tags li")).to_have_count(62)
    assert "labels" not in asked(gate)


def test_vocabulary_score_and_quality_reach_the_request(
    page: Page, gate: Gate, address: str
) -> None:
    """What is chosen is asked for and shown; calibrated is offered where there is a calibration,
    whose threshold then holds.
    """
    score = page.get_by_label("Score", exact=True)
    calibrated = page.locator("option[value=calibrated]")
    add(page, RED_CIRCLE)
    expect(calibrated).to_be_disabled()
    page.get_by_label("Vocabulary", exact=True).select_option("colours (4 tags)")
    expect(calibrated).to_be_enabled()
    expect(page.locator("#threshold-text")).to_have_text("0.2")
    expect(card(page, "red-circle.jpg").locator(".took")).to_contain_text("calibrated")
    page.locator("#threshold").fill("0")
    everything = {
        "confidence_threshold": 0,
        "max_tags": 200,
        "vocabulary": "colours",
        "quality": "high",
    }
    page.get_by_role("radio", name="High").check()
    for name in ("sigmoid", "margin", "softmax", "calibrated", "logit"):
        score.select_option(name)
        expect(card(page, "red-circle.jpg").locator(".took")).to_contain_text(
            re.compile(rf"{name} · \d+ views")
        )
        assert asked(gate) == {
            key: str(value) for key, value in (everything | {"score": name}).items()
        }
        expected = answer(address, RED_CIRCLE, **everything, score=name)
        assert list(shown(card(page, "red-circle.jpg"))) == list(expected)
    texts = shown(card(page, "red-circle.jpg")).values()
    assert [float(text.replace("−", "-")) for text in texts] == pytest.approx(
        list(expected.values()), abs=0.006
    )
    assert min(expected.values()) < 0 < max(expected.values())


@pytest.mark.parametrize(
    ("labels", "step"),
    [
        ("", 60),
        ("it's [red], a {blue} 50% & $HOME, `x`; \\ #1?", 0),
        (
            ", ".join(
                [
                    "@a;type=b",
                    "red",
                    "circle",
                    "red circle",
                    *(f"label {n} of many" for n in range(300)),
                ]
            ),
            60,
        ),
    ],
)
def test_the_curl_shown_gives_what_is_shown(page: Page, labels: str, step: int) -> None:
    """Run by a shell beside the picture: the same tags in the same order, with odd labels and with
    many.
    """
    add(page, RED_CIRCLE)
    if labels:
        page.get_by_label("Your own labels").fill(labels)
        page.get_by_label("Your own labels").blur()
        settled(page)
    page.locator("#threshold").fill(str(step))
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")
    assert command == page.locator("#curl").text_content()
    ran = subprocess.run(
        ["sh", "-c", command], cwd=SAMPLES, capture_output=True, text=True, timeout=30
    )
    tags = json.loads(ran.stdout)["tags"]
    assert 3 <= len(tags) < 62
    assert [tag["label"] for tag in tags] == list(shown(card(page, "red-circle.jpg")))


def test_a_file_that_fails_shows_its_own_error(page: Page, tmp_path: Path) -> None:
    """In the service's words with its code, beside others that are tagged; to try again would not
    help.
    """
    broken = tmp_path / "broken.jpg"
    other = tmp_path / "notes.txt"
    broken.write_bytes(RED_CIRCLE.read_bytes()[:500])
    other.write_text("not a picture")
    add(page, broken, other, RED_CIRCLE)
    expect(card(page, "broken.jpg")).to_contain_text("Check that the whole file was sent.")
    expect(card(page, "broken.jpg")).to_contain_text("invalid_image")
    expect(card(page, "notes.txt")).to_contain_text("unsupported_image")
    expect(card(page, "notes.txt").get_by_role("button", name="Retry")).to_be_hidden()
    assert set(shown(card(page, "red-circle.jpg"))) == IN_RED_CIRCLE
    expect(page.get_by_role("status")).to_have_text("3 images, 3 tags, 2 failed")


def test_a_picture_that_the_browser_cannot_show_is_tagged(page: Page, tmp_path: Path) -> None:
    """TIFF has a placeholder and its tags."""
    Image.open(RED_CIRCLE).save(tmp_path / "scan.tiff")
    add(page, tmp_path / "scan.tiff")
    expect(card(page, "scan.tiff")).to_contain_text("TIFF – no preview in this browser")
    assert set(shown(card(page, "scan.tiff"))) == IN_RED_CIRCLE


def test_markup_in_labels_and_names_stays_text(page: Page, tmp_path: Path) -> None:
    """Neither a label nor a file's name becomes an element."""
    picture = tmp_path / "<b onclick=x>bold<b>.jpg"
    picture.write_bytes(RED_CIRCLE.read_bytes())
    add(page, picture)
    page.locator("#threshold").fill("0")
    page.get_by_label("Your own labels").fill(HOSTILE)
    expect(page.locator(".tags .label")).to_have_text([HOSTILE])
    page.locator("#threshold").fill("100")
    expect(page.locator(".none")).to_contain_text(HOSTILE)
    expect(page.get_by_role("heading", name="<b onclick=x>bold<b>.jpg")).to_be_visible()
    assert page.locator(".card b").count() == 0
    assert page.locator("img[src=x]").count() == 0
    assert "owned" not in page.title()


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    """Tab and Enter from opening to a changed threshold and an empty page; focus is always seen,
    and never lost.
    """

    def tab_to(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                break
        expect(page.locator(selector).first).to_be_focused()
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    tab_to("#pick")
    with page.expect_file_chooser() as chooser:
        page.evaluate(
            "0"
        )  # a round trip, so that the chooser is waited for before the key is pressed
        page.keyboard.press("Enter")
    chooser.value.set_files([RED_CIRCLE, SAMPLES / "white-cross.jpg"])
    settled(page)
    tab_to("#threshold")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#threshold-text")).to_have_text("0.45")
    page.keyboard.press("Home")
    expect(page.locator("#threshold-text")).to_have_text("0")
    tab_to(".more")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Show fewer")).to_be_visible()
    page.get_by_role("button", name="Remove red-circle.jpg").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove white-cross.jpg")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#pick")).to_be_focused()
    expect(page.get_by_role("region", name="Results")).to_be_hidden()


def test_several_pictures_stand_in_a_grid(page: Page) -> None:
    """Six in three columns with room, each with what it shows; below each other at 360 pixels,
    where nothing is cut off.
    """
    add(page, *SIX)
    page.locator("#threshold").fill("94")
    for picture in SIX:
        scene = [thing for thing in picture.stem.split("-and-") if thing != "blue-circle"]
        assert {thing.replace("-", " ") for thing in scene} <= set(shown(card(page, picture.name)))
    columns = (
        "() => new Set([...document.querySelectorAll('.card')]"
        ".map((card) => Math.round(card.getBoundingClientRect().x))).size"
    )
    assert page.evaluate(columns) == 3
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate(columns) == 1
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_at_most_four_requests_at_once(page: Page, gate: Gate) -> None:
    """Twelve pictures, four on their way at any time."""
    gate.delay_s = 0.05
    add(page, *SIX, *SIX)
    assert (len(gate.queries), gate.most_at_once) == (12, 4)


def test_changed_settings_win_over_answers_on_their_way(page: Page, gate: Gate) -> None:
    """Labels typed while pictures are being tagged: the answers to the old question, which come
    later, are not shown.
    """
    gate.delay_s = 0.5
    page.locator("#threshold").evaluate(
        "(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }"
    )
    page.locator("#files").set_input_files(SIX[:2])
    while gate.running < 2:
        page.wait_for_timeout(10)
    gate.delay_s = 0
    page.get_by_label("Your own labels").fill("red")
    page.get_by_label("Your own labels").blur()
    expect(page.locator(".tags .label")).to_have_text(["red"] * 2)
    while gate.running:
        page.wait_for_timeout(10)
    page.wait_for_timeout(100)
    expect(page.locator(".tags .label")).to_have_text(["red"] * 2)


def test_a_key_is_asked_for_and_kept_for_this_tab_only(page: Page, gate: Gate) -> None:
    """401 shows the field; a wrong key asks again, the right one tags what is there; it is stored
    nowhere but in the session.
    """
    gate.key = "s3cret"
    page.reload()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    add(page, RED_CIRCLE)
    expect(card(page, "red-circle.jpg")).to_contain_text("This service needs a key.")
    field.fill("wrong")
    field.press("Enter")
    expect(card(page, "red-circle.jpg").get_by_text("This service needs a key.")).to_be_visible()
    field.fill("s3cret")
    page.get_by_role("button", name="Use this key").click()
    expect(card(page, "red-circle.jpg").get_by_role("listitem")).to_have_count(3)
    expect(field).to_be_hidden()
    expect(page.locator("#model")).to_contain_text("demo")
    expect(page.locator("#curl")).to_contain_text('-H "Authorization: Bearer $SIGLIP_API_KEY"')
    assert page.evaluate("Object.values(sessionStorage)") == ["s3cret"]
    assert page.evaluate("localStorage.length") == 0
    assert page.context.cookies() == []
    assert "s3cret" not in page.content()
    page.reload()
    expect(page.locator("#model")).to_contain_text("demo")


def test_a_busy_service_is_asked_again_and_not_for_ever(page: Page, gate: Gate) -> None:
    """After Retry-After the picture is tagged; after four refusals its card says so, with a button
    to try again.
    """
    gate.refusals = [(429, "0"), (503, "0")]
    add(page, RED_CIRCLE)
    assert set(shown(card(page, "red-circle.jpg"))) == IN_RED_CIRCLE
    assert len(gate.queries) == 3
    page.get_by_role("button", name="Clear all").click()
    gate.refusals = [(429, "0")] * 4
    add(page, RED_CIRCLE)
    expect(card(page, "red-circle.jpg")).to_contain_text("Every queue is full.")
    assert len(gate.queries) == 7
    card(page, "red-circle.jpg").get_by_role("button", name="Retry").click()
    expect(card(page, "red-circle.jpg").get_by_role("listitem")).to_have_count(3)


def test_a_wait_is_told(page: Page, gate: Gate) -> None:
    """The card says when the next try is, as the service asked; removed, nothing is asked any
    more.
    """
    gate.refusals = [(503, "17")]
    page.locator("#files").set_input_files(RED_CIRCLE)
    expect(card(page, "red-circle.jpg")).to_contain_text("The service is busy. Retrying in 17 s")
    page.get_by_role("button", name="Remove red-circle.jpg").click()
    add(page, SAMPLES / "white-cross.jpg")
    expect(page.get_by_role("article")).to_have_count(1)


def test_object_urls_are_given_back(page: Page, tmp_path: Path) -> None:
    """None is left when the pictures are shown, nor of one that cannot be."""
    (tmp_path / "x.tiff").write_bytes(b"")
    add(page, *SIX, tmp_path / "x.tiff")
    expect(card(page, "x.tiff")).to_contain_text("no preview")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.objectUrls.size") == 0
    for image in page.locator(".thumb img").all():
        assert image.evaluate("(image) => image.complete && image.naturalWidth") == 640


def test_results_can_be_kept(page: Page, tmp_path: Path) -> None:
    """A JSON file with the tags that are shown, the errors, and by what they were scored."""
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    add(page, RED_CIRCLE, tmp_path / "x.gif")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    kept = json.loads(Path(download.value.path()).read_text())
    assert (kept["model"], kept["confidence_threshold"]) == ("demo", 0.5)
    assert {tag["label"] for tag in kept["results"][0]["tags"]} == IN_RED_CIRCLE
    assert (kept["results"][0]["file"], kept["results"][0]["score"]) == (
        "red-circle.jpg",
        "sigmoid",
    )
    assert kept["results"][1]["error"]["code"] in ("invalid_image", "unsupported_image")


def test_the_theme_is_the_systems_until_one_is_chosen(page: Page) -> None:
    """Chosen by hand it stays over a reload, whatever the system asks for."""

    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.emulate_media(color_scheme="dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert ground() != light
    page.get_by_role("button", name="Dark theme", pressed=True).click()
    assert ground() == light
    page.reload()
    expect(page.get_by_role("button", name="Dark theme", pressed=False)).to_be_visible()
    assert ground() == light

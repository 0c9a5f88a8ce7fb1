"""Text from outside reaches no terminal, log, page or file in a form that could do harm there."""

import ast
import io
import json
import logging
import sys
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import pytest
from rich.console import Console

import serve_app
from serve_app.api.request_log import console_line, json_line
from serve_app.batch.report import _shown
from serve_app.batch.xmp import xmp_packet
from serve_app.cli import main
from serve_app.commands.report import _markdown
from serve_app.errors import ConfigError, InvalidRequest
from serve_app.tagging.prompts import DEFAULT_TEMPLATE, check_templates
from serve_app.tagging.registered import read_registered
from serve_app.tagging.vocabulary import checked_labels
from serve_app.telemetry.logs import FORMAT, SafeFormatter
from serve_app.telemetry.record import FinishedRequest
from serve_app.terminal.console import SafeTable, output_console, styled
from serve_app.terminal.printable import HIDDEN, json_text, printable
from tests.conftest import encoded, random_picture
from tests.hostile.servers import answering, whole

PACKAGE = Path(serve_app.__file__).parent
HARMFUL = {
    "an escape sequence": "\x1b[2J",
    "a bell": "\x07",
    "a newline": "\n",
    "an 8-bit escape": "\x9b",
    "a bidirectional override": "\u202e",
    "an isolate": "\u2066",
    "a zero-width space": "\u200b",
    "a line separator": "\u2028",
    "an invisible tag": "\U000e0041",
}
VISIBLE_FORMAT = {
    "\u200c",
    "\u200d",
    *"\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd",
}
"""Format characters that are kept: joiners of Persian, Hindi and emoji, and signs that have a
shape."""


def is_harmless(text: str) -> bool:
    """Whether text holds nothing but printable characters and line breaks."""
    return HIDDEN.search(text.replace("\n", "")) is None


def test_every_control_and_format_character_of_unicode_is_hidden() -> None:
    """The table of characters agrees with Unicode's own categories, but for those that people write
    with.
    """
    for code_point in range(sys.maxunicode + 1):
        character = chr(code_point)
        category = unicodedata.category(character)
        hidden = HIDDEN.match(character) is not None
        if category in ("Cc", "Cs", "Zl", "Zp") or (
            category == "Cf" and character not in VISIBLE_FORMAT
        ):
            assert hidden, hex(code_point)
        elif category != "Cn":
            assert not hidden, hex(code_point)


def test_printed_text_is_one_line_of_visible_characters() -> None:
    """Hidden characters become escapes that say which they were; other text stays as it is."""
    assert printable("Zürich 猫 👩‍🚀") == "Zürich 猫 👩‍🚀"
    assert printable("a\x1b[31m\n\r\t\u202e\udc80\x9b") == "a\\x1b[31m\\n\\r\\t\\u202e\\udc80\\x9b"


def test_json_is_strict_and_holds_no_character_that_a_terminal_interprets() -> None:
    """It reads back as what it was, except that numbers that are not finite become null."""
    value = {"a": "".join(HARMFUL.values()) + "\x7f é", "b": [float("nan"), float("-inf"), 0.5]}
    text = json_text(value, indent=2)
    assert is_harmless(text)
    assert "é" in text
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"a": value["a"], "b": [None, None, 0.5]}


def test_nothing_prints_but_the_two_modules_that_escape() -> None:
    """A new `print` or console elsewhere in the package would be a way around them."""
    found: list[str] = []
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name in ("terminal/printable.py", "terminal/console.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in (
                "print",
                "Console",
                "SafeConsole",
                "Table",
                "Progress",
            ):
                found.append(f"{name}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("harm", HARMFUL.values(), ids=HARMFUL)
@pytest.mark.parametrize(
    "value",
    [
        ["cat", "d{}og"],
        [{"label": "dog", "aliases": ["d{}og"]}],
        [{"label": "dog", "prompt": "d{}og"}],
        [{"label": "dog", "category": "pe{}ts"}],
        {"labels": ["dog"], "prompt_templates": ["a ph{}oto of {{label}}"]},
        {"labels": ["dog"], "background_prompts": ["a ph{}oto"]},
    ],
    ids=["label", "alias", "prompt", "category", "template", "background"],
)
def test_no_vocabulary_holds_a_hidden_character(value: object, harm: str) -> None:
    """Whatever of it people may be shown is refused, in a sentence that names the character and is
    safe itself.
    """
    written = json.loads(
        json.dumps(value)
        .replace("{}", json.dumps(harm)[1:-1])
        .replace("{{", "{")
        .replace("}}", "}")
    )
    with pytest.raises(
        ConfigError, match=r"control or invisible character U\+[0-9A-F]{4,}; remove it"
    ) as refused:
        read_registered(written, Path(), "labels", (DEFAULT_TEMPLATE,))
    assert is_harmless(str(refused.value))


@pytest.mark.parametrize("harm", HARMFUL.values(), ids=HARMFUL)
def test_no_request_holds_a_hidden_character(harm: str) -> None:
    """Neither among its labels nor in its templates."""
    with pytest.raises(InvalidRequest, match="control or invisible"):
        checked_labels([f"ca{harm}t"])
    with pytest.raises(InvalidRequest, match="control or invisible"):
        check_templates([f"a{harm}photo of {{label}}"])


def test_labels_in_every_script_are_taken() -> None:
    """Joiners of Persian and of emoji are hidden characters that people need."""
    labels = ["می‌خواهم", "👩‍🚀 astronaut", "naïve", "猫", "हिन्दी"]
    assert checked_labels(labels) == tuple(labels)


@pytest.mark.parametrize("suffix", ["txt", "csv", "yaml"])
def test_a_vocabulary_file_with_an_escape_sequence_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    """In every form of the file, and the terminal is shown nothing of it raw."""
    text = {
        "txt": "cat\nd\x1b[2Jog\n",
        "csv": "label\nd\x1b[2Jog\n",
        "yaml": 'tags:\n- "d\\e[2Jog"\n',
    }[suffix]
    path = tmp_path / f"v.{suffix}"
    path.write_text(text, encoding="utf-8")
    assert main(["vocab", "show", str(path)]) == 1
    said = capsys.readouterr().err
    assert f"v.{suffix}:2" in said
    assert is_harmless(said)


def test_a_file_name_with_escape_sequences_is_shown_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a command's error, and in the error of its arguments."""
    assert main(["check", str(tmp_path / "\x1b]0;owned\x07\u202e.yaml")]) == 1
    with pytest.raises(SystemExit):
        main(["check", "a.yaml", "\x1b[2J"])
    said = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07\\u202e.yaml does not exist" in said
    assert is_harmless(said)


def tagged(label: str, confidence: object = 0.5) -> bytes:
    """Return what a service answers for one image."""
    about = {
        "vocabulary_fingerprint": "f",
        "score": "sigmoid",
        "model": "m",
        "version": "1",
        "inference_time_ms": 1,
    }
    return json.dumps({"tags": [{"label": label, "confidence": confidence}], **about}).encode()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(random_picture(8, 8)))
    return path


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["table", "json"])
def test_labels_of_a_hostile_server_reach_the_terminal_escaped(
    photo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Escape sequences, overrides and rich's markup alike."""
    with answering(whole(tagged("[red]cat[/red]" + "".join(HARMFUL.values())))) as url:
        assert main(["tag", str(photo), "--server", url, *arguments]) == 0
    shown = capsys.readouterr().out
    assert is_harmless(shown)
    assert "[red]cat[/red]" in shown.replace("\n", "")


def test_an_error_of_a_hostile_server_is_one_escaped_line(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A newline in it cannot imitate this program's own output."""
    body = json.dumps(
        {"error": {"code": "x\x1b", "message": "no\nsiglip-serve: all is well\x1b[8m"}}
    ).encode()
    with answering(whole(body, 400)) as url:
        assert main(["tag", str(photo), "--server", url]) == 1
    said = capsys.readouterr()
    assert is_harmless(said.out + said.err)
    assert not any(
        line.startswith("siglip-serve: all is well") for line in (said.out + said.err).splitlines()
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e999])
def test_a_number_that_is_not_finite_is_refused_in_a_response(
    photo: Path, capsys: pytest.CaptureFixture[str], number: float
) -> None:
    """JSON has none, and what reads our output would fail at it."""
    with answering(whole(tagged("cat", number))) as url:
        assert main(["tag", str(photo), "--server", url, "--json"]) == 1
    line = json.loads(capsys.readouterr().out)
    assert line["error"]["code"] == "service_error"


def test_what_ray_says_reaches_the_terminal_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message of a cluster that refuses a configuration may repeat anything."""
    config = tmp_path / "c.yaml"
    config.write_text("labels: [cat]\nplugins: {siglip: {model: demo}}\nhardware: cpu2\n")
    with answering(whole(b"Traceback\n\x1b]0;owned\x07 \xe2\x80\xae", 500)) as url:
        assert main(["deploy", str(config), "--address", url]) == 1
    said = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07 \\u202e" in said
    assert is_harmless(said)


def test_tables_read_no_markup_and_pass_no_escape_sequence_on() -> None:
    """Neither in a cell nor in a line, also with colours on."""
    console = output_console()
    console.file = io.StringIO()
    table = SafeTable("label")
    table.add_row("[bold]a[/bold]\x1b[2J")
    table.add_row(styled("[link=http://evil]b[/link]\x1b[2J", "red"))
    Console.print(console, table)
    console.print("[blink]c[/blink]\x1b[2J")
    shown = console.file.getvalue()
    assert is_harmless(shown)
    for text in (
        "[bold]a[/bold]\\x1b[2J",
        "[link=http://evil]b[/link]\\x1b[2J",
        "[blink]c[/blink]\\x1b[2J",
    ):
        assert text in shown


def test_an_event_is_one_line_of_the_log_and_its_traceback_looks_like_no_event() -> None:
    """Whoever chooses a file name or a label must not write log lines with it."""
    forged = "2026-01-01 00:00:00 ERROR serve_app: forged"
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(SafeFormatter(FORMAT))
    logger = logging.Logger("serve_app.test")
    logger.addHandler(handler)
    logger.warning("left out: %s", f"a\n{forged}\x1b[2J")
    try:
        raise ValueError(f"b\n{forged}\u202e")
    except ValueError:
        logger.exception("failed")
    assert is_harmless(stream.getvalue())
    assert not any(line.startswith(forged) for line in stream.getvalue().splitlines())


@pytest.mark.parametrize("line", [console_line, json_line])
def test_a_request_is_one_line_of_the_request_log(line: object) -> None:
    """Whatever a client could get into a field."""
    harm = "".join(HARMFUL.values())
    answered = FinishedRequest(
        harm, harm, f"GET{harm}", f"/{harm}", 200, harm, 0.1, 0, 1, {harm: 0.1}
    )
    written = line(answered, datetime.now(UTC))  # type: ignore[operator]
    assert HIDDEN.search(written) is None


def test_a_sidecar_is_xml_whatever_a_label_holds() -> None:
    """Characters that XML forbids and those that nobody sees are left out; markup is text."""
    label = "".join(HARMFUL.values()) + "\x00\ufffe</rdf:li><x>&cat"
    packet = xmp_packet([label])
    item = ElementTree.fromstring(packet).find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
    assert item is not None
    assert item.text == "[2J</rdf:li><x>&cat"


def test_a_page_shows_text_as_text() -> None:
    """As the contact sheet is rendered: no markup of a label or file name, and no override."""
    page = jinja2.Environment(autoescape=True, finalize=_shown).from_string(
        "{{ text }} {{ number }}"
    )
    shown = page.render(text="<script>\u202e\x1b", number=7)
    assert shown == "&lt;script&gt;\\u202e\\x1b 7"


def test_a_markdown_report_shows_a_label_as_text() -> None:
    """No cell ends in it, no link and no HTML begins in it."""
    assert _markdown("a|b\n[x](y)<img>*&\x1b") == "a\\|b\\\\n\\[x\\](y)&lt;img\\>\\*&amp;\\\\x1b"

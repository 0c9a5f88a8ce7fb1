"""The documentation is complete: every setting, error code, metric and command stands in it, and
links lead somewhere.
"""

import inspect
import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from serve_app import errors
from serve_app.api.parameters import TagParameters, validated
from serve_app.api.text_fields import text_fields
from serve_app.cli import COMMANDS
from serve_app.config.plugin import PLUGIN_ALIASES
from serve_app.config.service import ServiceConfig
from tools.demo_training.release import SAMPLES

ROOT = Path(__file__).parents[2]
PAGES = (
    "docs/configuration.md",
    "docs/api.md",
    "docs/operations.md",
    "docs/monitoring.md",
    "README.md",
)
CONFIGURATION, API, OPERATIONS, MONITORING, README = ((ROOT / p).read_text() for p in PAGES)


def setting_names(block: type[BaseModel]) -> set[str]:
    """Return every key of a block and of the blocks in it."""
    names = set(block.model_fields)
    for field in block.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= setting_names(field.annotation)
    return names


@pytest.mark.parametrize(
    "name", sorted(setting_names(ServiceConfig) - {"plugins", "siglip"} | set(PLUGIN_ALIASES))
)
def test_every_setting_is_documented(name: str) -> None:
    """Each key of the YAML, and each other spelling of it, stands in docs/configuration.md."""
    assert f"`{name}`" in CONFIGURATION or f"`plugins.siglip.{name}`" in CONFIGURATION


@pytest.mark.parametrize(
    "code",
    sorted(
        {
            c.code
            for _, c in inspect.getmembers(errors, inspect.isclass)
            if issubclass(c, errors.TaggerError)
        }
    ),
)
def test_every_error_code_is_documented(code: str) -> None:
    """Each stable code stands in the table of docs/api.md."""
    assert f"`{code}`" in API


@pytest.mark.parametrize(
    "name", sorted({field.alias or name for name, field in TagParameters.model_fields.items()})
)
def test_every_parameter_is_documented(name: str) -> None:
    """Each parameter of a request has its place in docs/api.md."""
    assert f"`{name}`" in API


def test_every_way_of_sending_a_list_is_documented_as_it_is_read() -> None:
    """The examples of docs/api.md, one after the other: a JSON body, a repeated field, an array in
    one text, and commas.
    """
    rows = dict(
        re.findall(
            r"^\| (a list|a repeated|one text that|one text with)[^|]* \| `(.*)` \|$",
            API,
            re.MULTILINE,
        )
    )
    shell = {name: re.findall(r"labels=([^']+)(?:'|$|(?= -F))", row) for name, row in rows.items()}
    expected = ("red, dark", "blue")
    read = {
        name: text_fields([("labels", value.strip()) for value in values], TagParameters)
        for name, values in shell.items()
        if values
    }
    assert validated(TagParameters, json.loads("{" + rows["a list"] + "}")).labels == expected
    assert validated(TagParameters, read["a repeated"]).labels == expected
    assert validated(TagParameters, read["one text that"]).labels == expected
    assert validated(TagParameters, read["one text with"]).labels == ("red", "blue")


def test_every_metric_is_documented_and_no_other() -> None:
    """The metrics of graph/metrics.py are those of docs/monitoring.md."""
    defined = set(re.findall(r'"(siglip_\w+)"', (ROOT / "serve_app/graph/metrics.py").read_text()))
    assert defined == set(re.findall(r"`(siglip_\w+)", MONITORING))


def test_every_command_is_in_the_changelog_or_a_page() -> None:
    """Each command of siglip-serve is named where a reader may look."""
    pages = OPERATIONS + README + CONFIGURATION + (ROOT / "CHANGELOG.md").read_text()
    for command in COMMANDS:
        assert f"siglip-serve {command}" in pages or f"`{command}`" in pages


def test_readme_names_the_two_commands_and_a_sample_that_is_there() -> None:
    """`make serve`, `make test`, and a curl of a picture that exists."""
    assert "\nmake serve\n" in README
    assert "\nmake test\n" in README
    for sample in re.findall(r"@(serve_app/\S+\.jpg)", README):
        assert (ROOT / sample).is_file()
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_samples_are_named_by_what_they_show() -> None:
    """Every sample picture has the name of its scene."""
    names = {path.stem for path in (ROOT / "serve_app/demo/samples").glob("*.jpg")}
    assert names == {scene.name for scene in SAMPLES}


@pytest.mark.parametrize(
    "page",
    sorted(
        [
            *ROOT.glob("*.md"),
            *ROOT.glob("docs/**/*.md"),
            *ROOT.glob("bench/*.md"),
            *ROOT.glob("k8s/**/*.md"),
        ]
    ),
    ids=lambda p: p.name,
)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links of every page name files that exist."""
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [ROOT / "docs/architecture.md", *sorted(ROOT.glob("docs/decisions/*.md"))],
    ids=lambda p: p.name,
)
def test_files_that_the_architecture_names_exist(page: Path) -> None:
    """Every path of a file in the architecture and in the decisions is one of this repository."""
    named = set(re.findall(r"`([\w./-]+/[\w.-]*\.(?:py|md|yaml|txt))`", page.read_text()))
    for path in named:
        assert (ROOT / "serve_app" / path).is_file() or (ROOT / path).is_file(), path

"""The YAML: strict, with the plugin's other spellings, one line a problem."""

from pathlib import Path

import pytest
import yaml

from serve_app.config.live import frozen_part
from serve_app.config.plugin import MODEL_VARIANTS
from serve_app.config.service import load_config, parse_config
from serve_app.demo.settings import demo_config, demo_labels
from serve_app.errors import ConfigError
from serve_app.tagging.settings import TagSettings

ROOT = Path(__file__).parents[3]


def siglip(**block: object) -> dict[str, object]:
    return {"labels": ["cat"], "plugins": {"siglip": block}}


def problems(data: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_config(data)
    return str(refused.value).splitlines()


def test_defaults_are_those_of_the_plugin_schema() -> None:
    """An empty block is the documented schema's defaults."""
    plugin = parse_config(siglip()).siglip
    assert plugin.model == "google/siglip2-so400m-patch14-384"
    assert (
        plugin.batch_size,
        plugin.attention,
        plugin.dtype,
        plugin.quantization,
        plugin.device,
    ) == (
        "auto",
        "auto",
        "auto",
        "none",
        "auto",
    )
    assert (plugin.confidence_threshold, plugin.max_tags, plugin.max_num_patches) == (0.01, 50, 256)


@pytest.mark.parametrize(
    ("block", "field", "value"),
    [
        ({"variant": "base-v2"}, "model", "google/siglip2-base-patch16-224"),
        ({"model_variant": "v2-so400m"}, "model", "google/siglip2-so400m-patch14-384"),
        ({"model": "base-naflex"}, "model", "google/siglip2-base-patch16-naflex"),
        ({"threshold": 0.3}, "confidence_threshold", 0.3),
        ({"limit": 5}, "max_tags", 5),
        ({"include_raw_scores": True}, "include_raw_scores", True),
        ({"sort_by": "alphabetical"}, "sort_by", "alphabetical"),
        ({"confidence_threshold": 1}, "confidence_threshold", 1.0),
    ],
)
def test_other_spellings_of_the_plugin_are_accepted(
    block: dict[str, object], field: str, value: object
) -> None:
    """What the plugin's shipped code calls otherwise means the same here."""
    assert getattr(parse_config(siglip(**block)).siglip, field) == value


@pytest.mark.parametrize("variant", MODEL_VARIANTS)
def test_every_variant_names_a_hub_id(variant: str) -> None:
    """Short names lead to Google's repositories."""
    assert parse_config(siglip(variant=variant)).siglip.model.startswith("google/siglip")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            siglip(confidence_treshold=0.1),
            "plugins.siglip.confidence_treshold: unknown key; did you mean confidence_threshold?",
        ),
        ({"labels": ["a"], "servng": {}}, "servng: unknown key; did you mean serving?"),
        ({"labels": ["a"], "serving": {"image_encoder": {"num_gpu": 1}}}, "did you mean num_gpus?"),
        (siglip(dtype="int8"), "plugins.siglip.dtype"),
        (siglip(max_tags=0), "plugins.siglip.max_tags"),
        (siglip(max_tags="5"), "plugins.siglip.max_tags"),
        (siglip(max_num_patches=2048), "plugins.siglip.max_num_patches"),
        (siglip(confidence_threshold=1.01), "plugins.siglip.confidence_threshold"),
        (siglip(enabled=False), "nothing to serve"),
        (siglip(threshold=0.1, confidence_threshold=0.2), "keep one of them"),
        ({"plugins": {"siglip": {}}}, "there are none"),
        ({"labels": ["a"], "prompt_templates": ["no place"]}, "{label}"),
        ({"labels": ["a"], "name": "No Spaces"}, "name"),
    ],
)
def test_a_problem_is_one_line_that_names_its_key(data: dict[str, object], said: str) -> None:
    """The line says where, what and, for an unknown key, the nearest known one."""
    (line,) = problems(data)
    assert said in line


def test_all_problems_are_told_at_once() -> None:
    """Three mistakes, three lines."""
    assert len(problems(siglip(dtype="x", attention="y", nonsense=1))) == 3


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "labels: 2024-01-01"])
def test_what_is_not_a_configuration_is_refused(tmp_path: Path, text: str) -> None:
    """Empty files, lists, broken YAML and dates are errors and not tracebacks."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "c.yaml")


def test_missing_file_and_missing_labels_are_named(tmp_path: Path) -> None:
    """A path that is not there is in the message."""
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "c.yaml").write_text("labels: words.txt")
    with pytest.raises(ConfigError, match=r"words\.txt"):
        load_config(tmp_path / "c.yaml")


def test_labels_are_read_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    """One label a line, comments and empty lines left out, for both ways to name the file."""
    (tmp_path / "words.txt").write_text("# animals\ncat\n\n dog \n")
    for text in ("labels: words.txt", "plugins: {siglip: {custom_vocabulary: words.txt}}"):
        (tmp_path / "c.yaml").write_text(text)
        assert load_config(tmp_path / "c.yaml").tag_settings().vocabulary.labels == ("cat", "dog")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    """What is in configs/ is valid."""
    assert load_config(path).tag_settings().vocabulary.labels


@pytest.mark.parametrize(
    "change",
    [
        {"confidence_threshold": 7.0},
        {"max_tags": 0},
        {"vocabularies": 3},
        {"vocabularies": {}},
        {"default_vocabulary": "x"},
        {"nonsense": 1},
    ],
)
def test_live_settings_are_checked_again_where_they_arrive(change: dict[str, object]) -> None:
    """What reaches a replica past our own check is refused there, by the same bounds."""
    good = parse_config(siglip()).tag_settings().model_dump(mode="json")
    assert TagSettings.from_user_config(good).vocabulary.labels == ("cat",)
    with pytest.raises(ValueError, match=next(iter(change))):
        TagSettings.from_user_config(good | change)


def test_demo_vocabulary_file_is_what_the_demo_knows() -> None:
    """configs/demo.yaml and the demo without a file say the same."""
    config = load_config(ROOT / "configs" / "demo.yaml")
    assert list(config.tag_settings().vocabulary.labels) == demo_labels()
    assert config.siglip.confidence_threshold == demo_config().siglip.confidence_threshold


def test_live_settings_are_no_part_of_the_frozen_ones() -> None:
    """Labels, templates, thresholds and counts may change while `args`, and so every replica,
    stay.
    """
    data = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    one = parse_config(
        data
        | {"labels": ["dog"], "serving": data["serving"] | {"image_encoder": {"num_replicas": 2}}}
    )
    changed = data | {"labels": ["cat"], "prompt_templates": ["a {label}"]}
    changed["plugins"] = {
        "siglip": data["plugins"]["siglip"]
        | {"confidence_threshold": 0.9, "max_tags": 1, "sort_by": "alphabetical"}
    }
    changed["serving"] = (
        {"batch_wait_timeout_s": 0.1}
        | data["serving"]
        | {"image_encoder": {"num_replicas": 4, "max_queued_requests": 1}}
    )
    two = parse_config(changed)
    assert frozen_part(one) == frozen_part(two)
    assert one.tag_settings() != two.tag_settings()
    assert frozen_part(parse_config(siglip())) == frozen_part(
        parse_config(siglip(confidence_threshold=0.5))
    )  # from nothing but defaults
    assert frozen_part(parse_config(siglip(dtype="float16"))) != frozen_part(parse_config(siglip()))

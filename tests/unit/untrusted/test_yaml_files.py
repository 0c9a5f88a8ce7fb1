"""YAML of this package's own: keys are text and set once, words that are not text are refused where
text is needed.
"""

import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.config.service import load_config
from serve_app.errors import ConfigError
from serve_app.tagging.registered import read_registered
from serve_app.untrusted.yaml_files import SettingsLoader, parse_documents, parse_nodes

NOT_TEXT = (
    "no", "No", "on", "off", "yes", "true", "FALSE", "~", "null",
    "007", "1_000", "0x10", "0b11", ".5", "1e3", "1E-3", "+1.5e3", "12:30", "1:30.5",
    "2024-01-01", "2024-01-01 10:00:00", "3.14", "-7",
)  # fmt: skip
"""Words that YAML 1.1 or 1.2 reads as something else than text."""
PLACES = {
    "a label": "labels:\n  - cat\n  - {}\n",
    "a label in a block": "labels:\n  - cat\n  - label: {}\n",
    "an alias": "labels:\n  - label: cat\n    aliases: [{}]\n",
    "a prompt in the list": "labels:\n  - label: cat\n    aliases:\n    - x\n    - {}\n",
    "a parent": "labels:\n  - label: cat\n    parents:\n      - {}\n",
    "a label of a vocabulary": "vocabularies:\n  x:\n    - {}\n",
    "a label of a block": "vocabularies:\n  x:\n    labels:\n      - {}\n",
    "the plugin's word for labels": "plugins:\n  siglip:\n    custom_vocabulary: [cat, {}]\n",
    "the name of a vocabulary": "vocabularies:\n  {}: [cat]\n",
    "a filter": "labels: [cat]\nselection:\n  include_labels: [{}]\n",
    "a template": "labels: [cat]\nprompt_templates:\n  - {}\n",
}
"""Places in a configuration that need text; the word stands in the last line."""


@pytest.mark.parametrize("place", PLACES)
def test_a_word_that_is_not_text_is_refused_with_its_line(tmp_path: Path, place: str) -> None:
    """The message has the file, the line, the word as it is written, and says to quote it."""
    for word in NOT_TEXT:
        text = PLACES[place].format(word)
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError) as refused:
            load_config(tmp_path / "c.yaml")
        line = text.rstrip("\n").count("\n") + 1
        (message,) = str(refused.value).splitlines()
        assert message.startswith(f"{tmp_path}/c.yaml:{line}: ")
        assert f"{word} is not text in YAML" in message
        assert f'quote it: "{word}"' in message


@pytest.mark.parametrize("word", NOT_TEXT)
def test_a_word_in_quotes_is_text(tmp_path: Path, word: str) -> None:
    """Exactly as it is written, in a configuration and in a vocabulary's file."""
    (tmp_path / "c.yaml").write_text(
        f"vocabularies:\n  x:\n    - '{word}'\n    - {{label: y, aliases: [\"a {word}\"]}}\n"
    )
    (tmp_path / "v.yaml").write_text(f"- '{word}'\n- label: y\n  parents: ['{word}']\n")
    if any(c.isalnum() for c in word):
        assert load_config(tmp_path / "c.yaml").tag_settings().vocabulary.labels == (word, "y")
        assert read_registered("v.yaml", tmp_path, "labels", ("{label}",)).vocabulary.tags[
            1
        ].parents == (word,)


@pytest.mark.parametrize("word", NOT_TEXT)
@pytest.mark.parametrize(
    "line",
    [
        "- {}",
        "- label: {}",
        "- {{label: x, aliases: [{}]}}",
        "- {{label: x, parents: [{}]}}",
        "- {{label: x, prompt: {}}}",
    ],
)
def test_vocabulary_files_refuse_them_too(tmp_path: Path, line: str, word: str) -> None:
    """In a list and in a block with tags; null as a prompt is no prompt."""
    if "prompt" in line and word in ("~", "null"):
        pytest.skip("null means the default")
    for name, text in (
        ("list.yaml", f"- cat\n{line.format(word)}\n"),
        ("block.yaml", f"tags:\n- cat\n{line.format(word)}\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError) as refused:
            read_registered(name, tmp_path, "labels", ("{label}",))
        (message,) = str(refused.value).splitlines()
        assert message.startswith(f"{tmp_path}/{name}:{text.count(chr(10))}: ")
        assert f'quote it: "{word}"' in message


@settings(max_examples=300, deadline=None)
@given(
    st.from_regex(r"[A-Za-z0-9.~<=é犬_+-]([A-Za-z0-9.~<=é犬_+:/-]| (?=[a-z])){0,9}", fullmatch=True)
)
@example("1e3")
@example("<<")
def test_a_label_is_kept_as_written_or_refused(word: str) -> None:
    """Whatever a plain word is to YAML: what is read as text is the word itself, and a key is text
    or refused.
    """
    try:
        ((_, data),) = parse_nodes(f"[{word}]", "f", SettingsLoader)
    except ConfigError:
        return
    if not isinstance(data, list) or len(data) != 1 or not isinstance(data[0], str):
        return
    if word[0] not in "<=>":
        assert data[0] == " ".join(word.split(" ")).strip()
    with_key = yaml.safe_dump({data[0]: 1}, allow_unicode=True)
    assert parse_documents(with_key, "f") == [{data[0]: 1}]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", 3),
        ("a: 1\n'a': 3", 2),
        ("x:\n  - {b: 1}\n  - c: 1\n    d: {e: 1,\n      e: 2}", 5),
        ("a: &x {b: 1,\n  b: 2}\nc: *x", 2),
        ("a: &x {b: 1}\nc: {<<: *x, <<: {d: 1}}", 2),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  d: 1\n  d: 2", 5),
        ("a: 1\n? a\n: 2", 2),
        ("a: 1\n!!str a: 2", 2),
        ("&k a: 1\n*k : 2", 1),
    ],
)
def test_a_key_that_is_set_twice_is_refused_with_its_line(text: str, line: int) -> None:
    """Nested, in lists, in anchors, in other spellings, and the merge key itself."""
    with pytest.raises(ConfigError, match=rf"^f:{line}: .* is set twice"):
        parse_documents(text, "f")


def test_merged_keys_may_be_set_anew() -> None:
    """That is what merging is for: the block's own keys win, then the first of the merged
    blocks.
    """
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 3}"
    assert parse_documents(text, "f")[0]["c"] == {"x": 3, "y": 1, "z": 2}


WORDS = st.text("ab: -#'\"10.é犬", max_size=3)
DOCUMENTS = st.recursive(
    st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, st.data())
def test_what_yaml_writes_is_read_and_a_doubled_key_is_refused(
    value: object, data: st.DataObject
) -> None:
    """Random documents come back as they were; one of a block's keys written again anywhere is
    refused.
    """
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=False)
    assert parse_documents(text, "f") == [value]
    root = yaml.compose(text, yaml.SafeLoader)
    blocks = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            blocks += [node] if node.value else []
            waiting += [child for _, child in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    if blocks:
        block = data.draw(st.sampled_from(blocks))
        block.value.append(
            (
                data.draw(st.sampled_from(block.value))[0],
                yaml.ScalarNode("tag:yaml.org,2002:int", "1"),
            )
        )
        with pytest.raises(ConfigError, match="set twice"):
            parse_documents(yaml.serialize(root, allow_unicode=True), "f")


@pytest.mark.parametrize("text", ["a: 2024-13-45", "a: 0x_", "x:\n- 0b_", "a: =", "? [a]\n: 1"])
def test_what_yaml_recognises_and_cannot_build_is_refused_with_its_line(text: str) -> None:
    """Dates that do not exist and numbers without digits."""
    with pytest.raises(ConfigError, match=r"^f:\d: "):
        parse_documents(text, "f")


def test_numbers_with_exponents_are_numbers_in_settings(tmp_path: Path) -> None:
    """PyYAML reads `1e-3` as text, YAML 1.2 and people as a number."""
    (tmp_path / "c.yaml").write_text(
        "labels: [cat]\nplugins: {siglip: {confidence_threshold: 1e-3}}\n"
    )
    assert load_config(tmp_path / "c.yaml").siglip.confidence_threshold == 0.001


def test_a_date_among_settings_is_refused_with_its_line(tmp_path: Path) -> None:
    """And not with a message of the JSON library."""
    (tmp_path / "c.yaml").write_text("labels: [cat]\nrevision: 2024-01-01\n")
    with pytest.raises(
        ConfigError,
        match=r"c\.yaml:2: revision: 2024-01-01 is not text in YAML but a date; quote it",
    ):
        load_config(tmp_path / "c.yaml")
    assert parse_documents("a: 2024-01-01", "f") == [{"a": datetime.date(2024, 1, 1)}]


NULLS = """\
name: ~
revision: ~
plugins: {siglip: {model: ~, dtype: ~, max_tags: ~, confidence_threshold: ~, sort_by: ~, \
include_raw_scores: ~}}
labels: ~
calibration: ~
vocabularies:
  x:
    file: ~
    labels: [{label: cat, prompt: ~, aliases: ~, parents: ~, category: ~, threshold: ~, bias: ~}]
    prompt_templates: ~
    background_prompts: ~
    calibration: ~
default_vocabulary: ~
prompt_templates: ~
selection: {score: ~, min_tags: ~, parents: ~, include_labels: ~, exclude_labels: ~, \
include_categories: ~, exclude_categories: ~}
limits: {max_image_bytes: ~, image_formats: ~}
hardware: ~
serving: {port: ~, host: ~, image_encoder: {num_replicas: ~, num_gpus: ~}, text_encoder: ~}
access: ~
fetch: ~
telemetry: ~
"""


def test_null_is_the_default_everywhere(tmp_path: Path) -> None:
    """A file of nulls says the same as one without these keys."""
    (tmp_path / "nulls.yaml").write_text(NULLS)
    (tmp_path / "bare.yaml").write_text("vocabularies: {x: [cat]}\n")
    bare = load_config(tmp_path / "bare.yaml").model_dump()
    assert load_config(tmp_path / "nulls.yaml").model_dump() == bare
    (tmp_path / "blocks.yaml").write_text(
        "plugins: ~\nselection: ~\nserving: ~\nlimits: ~\nvocabularies: {x: [cat]}\n"
    )
    assert load_config(tmp_path / "blocks.yaml").model_dump() == bare


def test_null_is_kept_where_it_is_a_value_and_unknown_keys_stay_unknown(tmp_path: Path) -> None:
    """`tag_banks: null` stores nowhere; a slip of the pen is refused although it is null."""
    (tmp_path / "c.yaml").write_text("labels: [cat]\ntag_banks: ~\n")
    assert load_config(tmp_path / "c.yaml").tag_banks is None
    (tmp_path / "c.yaml").write_text("labels: [cat]\nselection: {min_tag: ~}\n")
    with pytest.raises(ConfigError, match="did you mean min_tags"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("labels: no", "labels"),
        ("labels: 0", "labels"),
        ("labels: []", "no labels"),
        ("vocabularies: no", "vocabularies"),
    ],
)
def test_nothing_else_is_taken_for_null(tmp_path: Path, text: str, said: str) -> None:
    """False, 0 and an empty list are not "not given"."""
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "c.yaml")

"""Label files of every format, as editors, spreadsheets and programs leave them."""

import json
from pathlib import Path

import pytest

from serve_app.config.service import load_config
from serve_app.errors import ConfigError
from serve_app.tagging.registered import read_registered
from serve_app.tagging.vocabulary import TagVocabulary

TEMPLATES = ("{label}",)


def read(tmp_path: Path, name: str, content: str | bytes) -> TagVocabulary:
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(data)
    return read_registered(name, tmp_path, "labels", TEMPLATES).vocabulary


def problem(tmp_path: Path, name: str, content: str | bytes) -> str:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, name, content)
    return str(refused.value).replace(f"{tmp_path}/", "")


GOOD = [
    ("l.json", '["cat","dog"]'),
    ("l.JSON", '[\n "cat",\n "dog"\n]\n'),
    ("l.json", '{"tags": ["cat", {"label": "dog", "aliases": null}]}'),
    ("l.json", '\ufeff["cat","dog"]\r\n'),
    ("l.json", '["cat","dog"]'.encode("utf-16")),
    ("l.txt", '["cat","dog"]'),
    ("labels", '[\n "cat",\n "dog"\n]\n'),
    ("l.jsonl", '"cat"\n{"label": "dog"}\n'),
    ("l.ndjson", '{"label": "cat"}\r\n\r\n# a comment\r\n{"label": "dog"}'),
    ("l.txt", '{"label": "cat"}\n{"label": "dog"}\n'),
    ("l.txt", "\ufeffcat\r\ndog\r\n"),
    ("l.txt", "cat\rdog\r"),
    ("l.txt", "# pets\n\ncat\n  # more\ndog"),
    ("l.txt", "cat\r\ndog".encode("utf-16")),
    ("l.txt", b"\xfe\xff" + "cat\ndog".encode("utf-16-be")),
    ("l.csv", "label\ncat\ndog\n"),
    ("l.csv", "\ufefflabel,category,,\r\ncat,,,\r\ndog,,,\r\n,,,\r\n"),
    ("l.csv", "# pets\n\nlabel\ncat\ndog\n"),
    ("l.csv", '"label"\r\n"cat"\r\n"dog"\r\n'.encode("utf-16")),
    ("l.yaml", "\ufeff- cat\r\n- dog # a pet\r\n"),
    ("l.yaml", '["cat","dog",]'),
    ("l.yml", "tags: [cat, dog]\n".encode("utf-16")),
]


@pytest.mark.parametrize(("name", "content"), GOOD, ids=range(len(GOOD)))
def test_every_format_gives_the_same_labels(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    """Byte order marks, Windows' line ends, UTF-16, comments, and columns without content."""
    assert read(tmp_path, name, content).labels == ("cat", "dog")


def test_below_the_header_of_a_table_a_hash_begins_a_label(tmp_path: Path) -> None:
    """No row is lost without a word: `#1 dad` and hashtags are labels, and a quote inside a cell is
    a character.
    """
    content = '# mugs\nlabel,threshold\n#1 dad,0.5\n5" disk,\n#sunset,\n'
    assert read(tmp_path, "l.csv", content).labels == ("#1 dad", '5" disk', "#sunset")


BAD = [
    ("l.json", '["cat","dog",]', "l.json:1: not JSON"),
    ("l.json", '[\n "cat",\n // no\n "dog"]', "l.json:3: not JSON"),
    ("l.json", '["cat", 7]', "l.json: [2]: 7 is neither a label"),
    (
        "l.json",
        '[{"label": "cat", "treshold": 1}]',
        "unknown key treshold; did you mean threshold?",
    ),
    ("l.json", '[{"label": "cat", "label": "dog"}]', "'label' is set twice"),
    ("l.json", '[{"label": "cat", "bias": NaN}]', "NaN is not a JSON number"),
    ("l.json", '"cat"', "holds neither a list of labels nor a block"),
    ("l.json", "[" * 100_000, "not JSON"),
    ("l.jsonl", '"cat"\ndog\n', "l.jsonl:2: not JSON"),
    ("l.jsonl", '"cat"\n7\n', "l.jsonl:2: 7 is neither a label"),
    ("l.txt", "[cat, dog]", "If it is a list, name the file .json or .yaml"),
    ("l.txt", "cat,\ndog\n", "l.txt:1: 'cat,' ends with a comma"),
    ("l.txt", "cat\ndo\u2028g\n", "l.txt:2: "),
    ("l.txt", "cat\n".encode("utf-16-le"), "l.txt:1: "),
    ("l.csv", "label,prompt\ncat,x,y\n", "l.csv:2: there are more fields than columns"),
    (
        "l.csv",
        "# a comment\nlabel,prompt\ncat,x,y\n",
        "l.csv:3: there are more fields than columns",
    ),
    ("l.csv", "label;prompt\ncat;x\n", "l.csv:1: the first line must name columns"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_reported_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    """And not read as a label that nobody meant."""
    assert said in problem(tmp_path, name, content)


def test_lines_that_only_look_like_json_are_labels(tmp_path: Path) -> None:
    """Brackets at the first line's start and the last one's end."""
    assert read(tmp_path, "l.txt", "[old] car\nhouse [new]\n").labels == (
        "[old] car",
        "house [new]",
    )


def test_a_configuration_names_a_json_file(tmp_path: Path) -> None:
    """With everything that a tag can have."""
    tags = [
        "bird",
        {"label": "crane (bird)", "prompt": "a crane", "parents": ["bird"], "threshold": 0.2},
    ]
    (tmp_path / "tags.json").write_text(
        json.dumps({"tags": tags, "prompt_templates": ["the {label}"]})
    )
    (tmp_path / "c.yaml").write_text("labels: tags.json\n")
    own = load_config(tmp_path / "c.yaml").tag_settings().vocabulary
    assert (own.names, own.prompt_templates, own.tags[1].threshold) == (
        ("bird", "a crane"),
        ("the {label}",),
        0.2,
    )

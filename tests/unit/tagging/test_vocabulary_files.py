"""Vocabularies in files: three formats that mean the same, and every problem told with its line."""

from pathlib import Path

import pytest

from serve_app.config.service import parse_config
from serve_app.errors import ConfigError
from serve_app.tagging.registered import read_registered
from serve_app.tagging.vocabulary import DEFAULT_BACKGROUND, TagVocabulary, canonical_name

CONFIGS = Path(__file__).parents[3] / "configs" / "vocabularies"
TEMPLATES = ("this is a photo of {label}.",)

YAML = """\
# animals
tags:
  - dog
  - {label: crane (bird), prompt: "a crane, a bird", category: animals, aliases: [grus], \
parents: [bird], threshold: 0.2, bias: -0.5}
  - label: bird
"""
CSV = """\
label,prompt,aliases,category,parents,threshold,bias
dog,,,,,,
crane (bird),"a crane, a bird",grus,animals,bird,0.2,-0.5
bird,,,,,,
"""


def read(tmp_path: Path, name: str, text: str) -> TagVocabulary:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_registered(name, tmp_path, "labels", TEMPLATES).vocabulary


def problems(tmp_path: Path, name: str, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, name, text)
    return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]


def test_yaml_and_csv_say_the_same(tmp_path: Path) -> None:
    """Every key of a tag, in both forms."""
    own = read(tmp_path, "a.yaml", YAML)
    assert own == read(tmp_path, "a.csv", CSV)
    crane = own.tags[1]
    assert (crane.label, crane.names, crane.category, crane.parents) == (
        "crane (bird)",
        ("a crane, a bird", "grus"),
        "animals",
        ("bird",),
    )
    assert (crane.threshold, crane.bias) == (0.2, -0.5)
    assert own.background_prompts == DEFAULT_BACKGROUND


def test_plain_text_is_one_label_a_line(tmp_path: Path) -> None:
    """Comments and empty lines are left out; a byte order mark and other alphabets are no
    trouble.
    """
    own = read(tmp_path, "a.txt", "\ufeff# animals\ncat\n\n  犬 \nКошка\ncafé\n")
    assert own.labels == ("cat", "犬", "Кошка", "café")


def test_templates_come_from_the_block_then_the_file_then_the_configuration(tmp_path: Path) -> None:
    """The nearest word holds."""
    (tmp_path / "own.yaml").write_text(
        'prompt_templates: ["a {label}"]\nbackground_prompts: []\ntags: [cat]\n'
    )
    (tmp_path / "bare.yaml").write_text("[cat]")
    config = parse_config(
        {
            "vocabularies": {
                "x": "own.yaml",
                "y": {"file": "own.yaml", "prompt_templates": ["the {label}"]},
                "z": "bare.yaml",
            }
        },
        tmp_path,
    )
    templates = {name: v.vocabulary.prompt_templates for name, v in config.vocabularies.items()}
    assert templates == {"x": ("a {label}",), "y": ("the {label}",), "z": TEMPLATES}
    assert config.vocabularies["x"].vocabulary.background_prompts == ()
    assert config.tag_settings().default_vocabulary == "x"


BAD_YAML = [
    ("tags:\n  - dog\n  - Dog\n", ["a.yaml:3: 'Dog' is the same to the model as a name at"]),
    (
        "tags:\n  - red_car\n  - {label: x, aliases: [Red  Car]}\n",
        ["a.yaml:3: 'Red  Car' is the same"],
    ),
    ("tags:\n  - {label: x, aliases: [y, y]}\n", ["a.yaml:2: 'y' is the same"]),
    ("tags:\n  - cafe\u0301\n  - caf\u00e9\n", ["a.yaml:3: 'caf\u00e9' is the same"]),
    (
        "tags:\n  - ''\n  - '...'\n",
        ["a.yaml:2: The label '' has no letter", "a.yaml:3: The label '...' has no letter"],
    ),
    (
        "tags:\n  - cat\n  - no\n",
        ['a.yaml:3: no is not text in YAML but true or false; quote it: "no".'],
    ),
    (
        "tags:\n  - {label: 747}\n",
        ['a.yaml:2: label: 747 is not text in YAML but a number; quote it: "747".'],
    ),
    (
        "tags:\n  - {label: cat, treshold: 0.5}\n",
        ["a.yaml:2: unknown key treshold; did you mean threshold?"],
    ),
    (
        "tags:\n  - {label: cat, threshold: 5}\n",
        ["a.yaml:2: threshold: must be less than or equal to 1 (got 5)"],
    ),
    ("tags:\n  - {label: cat, bias: .nan}\n", ["a.yaml:2: .nan is not a finite number"]),
    ("tags:\n  - {label: cat, parents: animal}\n", ["a.yaml:2: parents must be a list"]),
    (
        "tags:\n  - {label: cat, threshold: on}\n",
        ["a.yaml:2: threshold: must be a number (got True)."],
    ),
    ("tags:\n  - {prompt: cat}\n", ["a.yaml:2: label is missing"]),
    (
        "tags:\n  - animal\n  - {label: cat, parents: [anmal]}\n",
        ["a.yaml:3: the parent 'anmal' is not a label of this vocabulary; did you mean 'animal'?"],
    ),
    (
        "tags:\n  - {label: a, parents: [b]}\n  - {label: b, parents: [a]}\n",
        ["a.yaml:2: parents go round in a circle: a → b → a."],
    ),
    ("tags:\n  - {label: cat, label: dog}\n", ["a.yaml:2: 'label' is set twice in one block"]),
    ("tags: [\n", ["a.yaml:2: not YAML"]),
    ("tags: []\n", ["a.yaml: there are no labels in it"]),
    ("tag: [a]\n", ["a.yaml:1: tags is missing.", "a.yaml:1: unknown key tag; did you mean tags?"]),
    ("cat\n", ["a.yaml: holds neither a list of labels nor a block"]),
    (
        "tags: [cat]\nprompt_templates: [no place]\n",
        [
            "a.yaml: prompt_templates or background_prompts: "
            "The prompt template 'no place' must hold"
        ],
    ),
    ("tags:\n  - {label: cat, prompt: '?'}\n", ["a.yaml:2: prompt: The label '?' has no letter"]),
    (
        "tags:\n  - dog\n  - {label: a bird, prompt: Dog}\n",
        ["a.yaml:3: 'Dog' is the same to the model as a name at"],
    ),
]


@pytest.mark.parametrize(("text", "expected"), BAD_YAML, ids=range(len(BAD_YAML)))
def test_every_problem_of_a_yaml_file_is_told_with_its_line(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    """The line, the label or key, and the reason; all problems of a file at once."""
    found = problems(tmp_path, "a.yaml", text)
    assert len(found) == len(expected), found
    for line, start in zip(sorted(found), sorted(expected), strict=True):
        assert line.startswith(start)


BAD_CSV = [
    ("cat\ndog\n", "a.csv:1: the first line must name columns"),
    ("label,colour\ncat,red\n", "a.csv:1: the first line must name columns"),
    ("label,bias\ncat,x\n", "a.csv:2: bias: must be a valid number"),
    ("label,prompt\ncrane,a crane, a bird\n", "a.csv:2: there are more fields than columns"),
    ('label,prompt\ncrane,"a crane\n', "a.csv:2: not CSV"),
    ('label,"prompt\ncrane\n', "a.csv:1: not CSV"),
    ("label,label\na,b\n", "a.csv:1: the first line must name columns"),
    ("label,prompt\n,a crane\n", "a.csv:2: The label '' has no letter"),
]


@pytest.mark.parametrize(("text", "expected"), BAD_CSV, ids=range(len(BAD_CSV)))
def test_every_problem_of_a_csv_file_is_told_with_its_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    """The same for tables."""
    assert problems(tmp_path, "a.csv", text)[0].startswith(expected)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    """Missing, a folder, or not UTF-8: which file, and the line of the first bad byte."""
    (tmp_path / "latin.txt").write_bytes(b"cat\ncaf\xe9\n")
    (tmp_path / "folder.txt").mkdir()
    for name, said in (
        ("missing.txt", "does not exist"),
        ("latin.txt", "latin.txt:2: not UTF-8"),
        ("folder.txt", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_config({"labels": name}, tmp_path)


def test_many_problems_are_cut(tmp_path: Path) -> None:
    """A file of a thousand repeats does not fill the screen."""
    found = problems(tmp_path, "a.txt", "cat\n" * 1_000)
    assert len(found) == 51
    assert found[-1] == "… and 949 more"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"vocabularies": {"x": {"file": "a", "labels": ["b"]}}}, "either file or labels"),
        ({"vocabularies": {"x": {"fil": "a"}}}, "vocabularies.x.fil"),
        ({"vocabularies": {"x y": ["a"]}}, "vocabularies"),
        ({"vocabularies": ["a"]}, "must be a block of names"),
        (
            {"labels": ["a"], "plugins": {"siglip": {"custom_vocabulary": ["b"]}}},
            "keep one of them",
        ),
        (
            {"labels": {"labels": ["a"], "calibration": "nowhere.yaml"}},
            "nowhere.yaml does not exist",
        ),
        ({"vocabularies": {"default": ["a"]}, "labels": ["b"]}, "already has one named default"),
        ({"vocabularies": {"x": ["a"]}, "default_vocabulary": "y"}, "none of vocabularies"),
        ({"vocabularies": {"x": ["a"]}, "calibration": "c.yaml"}, "belongs to labels"),
        ({"labels": ["a"], "selection": {"score": "calibrated"}}, "has no calibration"),
        ({"labels": ["a"], "selection": {"exclude_categories": ["b"]}}, "is in no vocabulary"),
    ],
)
def test_what_the_configuration_says_of_vocabularies_is_checked(
    data: dict[str, object], said: str
) -> None:
    """The key and the reason."""
    with pytest.raises(ConfigError, match=said):
        parse_config(data)


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_every_shipped_vocabulary_is_sound(path: Path) -> None:
    """Each file loads, with the default template."""
    own = read_registered(path.name, path.parent, "labels", TEMPLATES).vocabulary
    assert len({canonical_name(label) for label in own.labels}) == len(own.labels)

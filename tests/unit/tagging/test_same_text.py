"""Names that are one text to a checkpoint, by the ids of transformers' own tokenizers for each
family.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase, Siglip2Tokenizer, SiglipTokenizer

from serve_app.cli import main
from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import InvalidRequest, TaggerError
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.siglip.checkpoints import read_checkpoint
from serve_app.siglip.text import canonicalize_text
from serve_app.tagging.options import tag_options
from serve_app.tagging.registered import read_registered
from serve_app.tagging.same_text import naming_prompts, same_text_problems
from serve_app.tagging.vocabulary import Tag, TagVocabulary
from serve_app.towers.tokenizer import SiglipTextInputs

CONFIGS = Path(__file__).parents[3] / "configs" / "vocabularies"
PAIRS = [
    ("C++", "C#"), ("C", "C++"), ("t-shirt", "t shirt"), ("rock 'n' roll", "rock n roll"),
    ("dog.", "dog"), ("café", "cafe"), ("犬", "猫"),
    ("犬", "dog"), ("ｃａｔ", "cat"), ("x²", "x2"), ("🐈", "🐕"), ("dogs", "dog"),
]  # fmt: skip


def config_of(folder: Path, *labels: object, **more: object) -> ServiceConfig:
    plugin = {"model": str(folder), "dtype": "float32", "confidence_threshold": 0, "max_tags": 99}
    """Return a configuration of a tiny checkpoint; SigLIP's reads 16 tokens, too few for a template
    and odd names."""
    return parse_config(
        {
            "labels": list(labels),
            "plugins": {"siglip": plugin},
            "tag_banks": None,
            "prompt_templates": ["{label}"],
        }
        | more
    )


def reference_ids(tokenizer: PreTrainedTokenizerBase, family: str, text: str) -> list[int]:
    """Return what transformers makes of a text in the way that this package writes it."""
    text = text.replace("_", " ")
    return list(tokenizer(text.replace("-", " ") if family == "siglip" else text)["input_ids"])


def test_names_are_one_text_where_their_token_ids_are_equal(
    checkpoint_folder: Path, family: str
) -> None:
    """And only there, whatever they look like; both names are in the message."""
    inputs = SiglipTextInputs(read_checkpoint(checkpoint_folder))
    kind = SiglipTokenizer if family == "siglip" else Siglip2Tokenizer
    reference = kind.from_pretrained(checkpoint_folder)
    for pair in PAIRS:
        own = TagVocabulary(
            tags=tuple(Tag(label=name) for name in pair), prompt_templates=("a photo of {label}.",)
        )
        first, second = (reference_ids(reference, family, f"a photo of {name}.") for name in pair)
        problems = same_text_problems(own, inputs.digests(naming_prompts(own)))
        assert len(problems) == (first == second), pair
        assert all(repr(name) in problem for name in pair for problem in problems)


def test_the_families_differ_as_their_tokenizers_do(tiny: Callable[[str], Path]) -> None:
    """SigLIP does not tell `C++` from `C#`; SigLIP 2 does, and tells `t-shirt` from `t shirt`."""
    with pytest.raises(TaggerError, match=r"'C#' is the same to this model as 'C\+\+'"):
        LocalScorer(config_of(tiny("siglip"), "C++", "C#")).registered("default")
    assert (
        len(
            LocalScorer(config_of(tiny("siglip2"), "C++", "C#", "C", "t-shirt", "t shirt"))
            .registered("default")
            .table
        )
        == 5
    )


def test_an_alias_may_repeat_its_own_tag(tiny: Callable[[str], Path]) -> None:
    """A file for both families may have `t shirt` as an alias of `t-shirt`; of another tag it may
    not.
    """
    own = {"label": "t-shirt", "aliases": ["t shirt"]}
    assert LocalScorer(config_of(tiny("siglip"), own, "dog")).registered("default")
    with pytest.raises(TaggerError, match="'t shirt' is the same"):
        LocalScorer(
            config_of(tiny("siglip"), "t-shirt", {"label": "dog", "aliases": ["t shirt"]})
        ).registered("default")


def test_known_rows_do_not_hide_that_names_are_one_text(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Both names are stored already, each in a bank of its own, so nothing has to be encoded."""
    for name in ("C++", "C#"):
        LocalScorer(config_of(tiny("siglip"), name, tag_banks=str(tmp_path))).registered("default")
    scorer = LocalScorer(config_of(tiny("siglip"), "C++", "C#", tag_banks=str(tmp_path)))
    with pytest.raises(TaggerError, match="is the same to this model"):
        scorer.registered("default")
    assert scorer.prompts_encoded == 0


def test_labels_of_a_request_that_are_one_text_keep_their_order(
    checkpoint_folder: Path, family: str
) -> None:
    """They are served, with exactly the same score, whichever of them was encoded before."""
    scorer = LocalScorer(config_of(checkpoint_folder, "cat"))
    image = (
        np.random.default_rng(0)
        .normal(size=(1, scorer.checkpoint.embedding_width))
        .astype(np.float32)
    )
    image /= np.linalg.norm(image)
    labels = ("DOG", "Dog", "dog") if family != "siglip" else ("DOG!", "dog", "Dog.")
    for order in (labels, labels[::-1], (labels[1], labels[2], labels[0])):
        (tags,) = scorer.scoring_for(tag_options(labels=order)).tag(image)
        assert tuple(tag.label for tag in tags) == order
        assert len({tag.confidence for tag in tags}) == len({tag.logit for tag in tags}) == 1


def test_emoji_are_labels_for_siglip2_only(checkpoint_folder: Path, family: str) -> None:
    """Its tokenizer knows them; SigLIP's drops or does not know them, in a vocabulary and in a
    request.
    """
    scorer = LocalScorer(config_of(checkpoint_folder, "🐈", "🐕", "❤️", "€"))
    asks = tag_options(labels=("🐈", "→"))
    if family == "siglip":
        for build in (lambda: scorer.registered("default"), lambda: scorer.scoring_for(asks)):
            with pytest.raises(InvalidRequest, match="every label needs a word"):
                build()
    else:
        rows = scorer.registered("default").bank.text_embeds
        assert len({row.tobytes() for row in rows[:4]}) == 4
        assert len(scorer.scoring_for(asks).scored.table) == 2


def test_what_a_ligature_becomes_is_counted(tiny: Callable[[str], Path]) -> None:
    """Twelve of them are short as text and long as tokens: as a label, an alias, in a template, as
    a background prompt.
    """
    long = "ﷺ" * 12
    templates = {"prompt_templates": ["{label} " + long]}
    for config in (
        config_of(tiny("siglip"), long),
        config_of(tiny("siglip"), {"label": "cat", "aliases": [long]}),
        config_of(tiny("siglip"), "cat", **templates),
        config_of(tiny("siglip"), labels={"labels": ["cat"], "background_prompts": [long]}),
    ):
        with pytest.raises(TaggerError, match="tokens, but this checkpoint reads 16"):
            LocalScorer(config).registered("default")


def test_check_names_both_places(
    tmp_path: Path, tiny: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`siglip-serve check` says which lines are one text to the checkpoint before anything is
    started.
    """
    (tmp_path / "words.txt").write_text("# languages\nC++\nPython\nC#\n")
    (tmp_path / "c.yaml").write_text(
        "labels: words.txt\nprompt_templates: ['{label}']\n"
        f"plugins: {{siglip: {{model: {tiny('siglip')}}}}}\n"
    )
    assert main(["check", str(tmp_path / "c.yaml")]) == 1
    said = capsys.readouterr().err
    assert (
        f"{tmp_path}/words.txt:4: 'C#' is the same to this model as 'C++' "
        f"at {tmp_path}/words.txt:2;" in said
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_shipped_vocabularies_are_told_apart_without_punctuation(path: Path) -> None:
    """By SigLIP too, for which punctuation does not count."""
    own = read_registered(path.name, path.parent, "labels", ("{label}",)).vocabulary
    owners: dict[str, str] = {}
    for name, label in zip(
        own.names, [*own.labels, *(own.labels[at] for at in own.alias_owners)], strict=True
    ):
        assert owners.setdefault(canonicalize_text(name, strip_punctuation=True), label) == label

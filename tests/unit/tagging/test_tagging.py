"""Labels and prompts of requests, banks, and what a request may change, by hand-made examples."""

import math

import numpy as np
import pytest

from serve_app.errors import InvalidRequest, UnknownVocabulary
from serve_app.siglip.weights import SimilarityHead
from serve_app.tagging.byte_cache import ENTRY_BYTES, ByteCache
from serve_app.tagging.options import TagOptions, tag_options
from serve_app.tagging.prompts import check_templates, fill_template, render_prompts
from serve_app.tagging.selection import SelectionRule
from serve_app.tagging.settings import RegisteredVocabulary, Selection, TagSettings
from serve_app.tagging.tag_bank import (
    TagBank,
    assemble_bank,
    bank_fingerprint,
    mean_rows,
    prompts_of,
    row_keys,
    scored_bank,
    tag_embeddings,
)
from serve_app.tagging.tag_table import TagTable
from serve_app.tagging.vocabulary import (
    Tag,
    TagVocabulary,
    vocabulary_of_labels,
)

TEMPLATES = ("{label}",)


def vocabulary_of(
    *tags: Tag | str, templates: tuple[str, ...] = TEMPLATES, background: tuple[str, ...] = ()
) -> TagVocabulary:
    return TagVocabulary(
        tags=tuple(Tag(label=tag) if isinstance(tag, str) else tag for tag in tags),
        prompt_templates=templates,
        background_prompts=background,
    )


def settings_of(
    *tags: Tag | str,
    threshold: float = 0.2,
    max_tags: int = 7,
    templates: tuple[str, ...] = TEMPLATES,
    **selection: object,
) -> TagSettings:
    vocabulary = vocabulary_of(*tags, templates=templates)
    registered = {"default": RegisteredVocabulary(vocabulary=vocabulary)}
    return TagSettings(
        vocabularies=registered,
        default_vocabulary="default",
        selection=Selection(**selection),  # type: ignore[arg-type]
        confidence_threshold=threshold,
        max_tags=max_tags,
    )


def test_labels_are_kept_once_and_as_written() -> None:
    """Case and underscores come back as they were sent; a repeat is dropped, order stays."""
    options = tag_options(labels=["Red_Car", " cat ", "cat", "t-shirt"])
    assert options.vocabulary.labels == ("Red_Car", "cat", "t-shirt")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "empty"),
        (["a", "b", "c"], "at most 2"),
        (["..."], "no letter"),
        (["a", "x" * 257], "256"),
        ([" "], "no letter"),
    ],
)
def test_bad_labels_are_refused(labels: list[str], said: str) -> None:
    """Every refusal names the limit or the label."""
    with pytest.raises(InvalidRequest, match=said):
        tag_options(labels=labels, max_labels=2)


def test_half_a_surrogate_pair_is_refused() -> None:
    """JSON can carry text that is no Unicode; it would fail in the tokenizer, with everybody else's
    labels.
    """
    with pytest.raises(InvalidRequest, match="surrogate"):
        tag_options(labels=["cat\ud83d"])
    with pytest.raises(InvalidRequest, match="surrogate"):
        check_templates(["{label} \ud83d"])


def test_prompts_of_a_request_are_bounded_and_registered_ones_are_not() -> None:
    """Labels times templates: 500 × 9 is too much for a request, and fine in a configuration."""
    labels = [f"label {n}" for n in range(500)]
    templates = tuple(f"{n} {{label}}" for n in range(9))
    with pytest.raises(InvalidRequest, match="4,500 prompts"):
        tag_options(labels, templates, max_labels=1_000)
    with pytest.raises(InvalidRequest, match="4,500 prompts"):  # in the default one's templates
        settings_of("cat", templates=templates).own_vocabulary(
            tag_options(labels).vocabulary, 1_000
        )
    assert len(vocabulary_of_labels(labels, templates).labels) == 500


def test_fingerprint_changes_with_everything_that_is_said_and_nothing_else() -> None:
    """Labels, their order, prompts, aliases, templates and background change it; thresholds and
    categories do not.
    """
    plain = vocabulary_of("a", "b").fingerprint
    assert (
        plain
        == vocabulary_of(
            Tag(label="a", threshold=0.5, category="letters", bias=1.0), "b"
        ).fingerprint
    )
    others = [
        vocabulary_of("b", "a"),
        vocabulary_of("a"),
        vocabulary_of("a", "b", templates=("a {label}",)),
        vocabulary_of("a", "b", background=("a photo",)),
        vocabulary_of(Tag(label="a", prompt="A"), "b"),
        vocabulary_of(Tag(label="a", aliases=("alpha",)), "b"),
        vocabulary_of("a", Tag(label="b", aliases=("alpha",))),
    ]
    assert len({plain, *(o.fingerprint for o in others)}) == 1 + len(others)
    assert bank_fingerprint(others[0], "one checkpoint") != bank_fingerprint(others[0], "another")


@pytest.mark.parametrize(
    "templates",
    [
        (),
        ("no place",),
        ("{label} and {label}",),
        ("{} {label}",),
        ("x" * 257 + "{label}",),
        ("{label}",) * 101,
    ],
)
def test_bad_templates_are_refused(templates: tuple[str, ...]) -> None:
    """A template without exactly one place for the label would not tell labels apart."""
    with pytest.raises(InvalidRequest):
        check_templates(templates)


def test_templates_take_both_placeholders_and_other_braces() -> None:
    """`{}` is the Hugging Face way; braces in labels and templates are text and never format
    codes.
    """
    assert fill_template("a photo of {}.", "cat") == "a photo of cat."
    assert fill_template("{label} {0.__class__}", "{x}") == "{x} {0.__class__}"
    assert render_prompts(["a", "b"], ["1 {label}", "2 {label}"]) == ["1 a", "2 a", "1 b", "2 b"]


def test_what_is_said_is_the_prompt_then_the_aliases() -> None:
    """A prompt stands in the label's place of every template; background prompts are said as they
    are.
    """
    crane = Tag(label="crane (bird)", prompt="a crane, a bird", aliases=("grus",))
    own = vocabulary_of(
        crane, "dog", templates=("1 {label}", "2 {label}"), background=("a photo.",)
    )
    said = [prompts_of(key) for key in row_keys(own)]
    assert said == [
        ["1 a crane, a bird", "2 a crane, a bird"],
        ["1 dog", "2 dog"],
        ["1 grus", "2 grus"],
        ["a photo."],
    ]


def test_ensemble_is_a_plain_mean() -> None:
    """Rows are averaged per name and left un-normalised."""
    own = vocabulary_of("a", "b", templates=("1 {label}", "2 {label}"), background=("a photo",))
    embeds = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]], np.float32)
    bank = assemble_bank(own, mean_rows(row_keys(own), embeds), "")
    np.testing.assert_array_equal(bank.text_embeds, [[0.5, 0.5], [1, 0], [0, 1]])


def test_a_tags_score_is_that_of_its_best_name() -> None:
    """The alias fits the picture and the label does not: the tag is given, under its label."""
    own = vocabulary_of(
        Tag(label="puma", aliases=("cougar", "mountain lion")),
        "dog",
        Tag(label="cat", aliases=("kitty",)),
    )
    embeds = np.array(
        [[0, 1], [0, 1], [0.2, 0.98], [0, 1], [1, 0], [0, 1]], np.float32
    )  # puma dog cat cougar lion kitty
    (tags,) = tag_embeddings(
        np.array([[1, 0]], np.float32),
        scored_bank(TagBank(own, embeds)),
        SimilarityHead(10.0, -5.0),
        SelectionRule(0.5, 9),
    )
    assert [(tag.label, tag.logit) for tag in tags] == [("puma", 5.0)]


def test_tiles_must_beat_the_whole_by_a_margin() -> None:
    """A tile's hit counts three logits less than the picture's own; its raw score is the tile's
    logit.

    The second image has no tiles. In the first, "a" is best in a tile by one logit, which is not
    enough.
    """
    own = vocabulary_of("a", "b")
    views = np.array([[0.5, 0], [0, 1], [0.6, 0], [0, 0.1]], np.float32)
    found = tag_embeddings(
        views,
        scored_bank(TagBank(own, np.eye(2, dtype=np.float32))),
        SimilarityHead(10.0, 0.0),
        SelectionRule(0.0, 9),
        views=[3, 1],
    )
    raw = [{tag.label: round(tag.logit, 4) for tag in tags} for tags in found]
    assert raw == [{"b": 10.0, "a": 5.0}, {"b": 1.0, "a": 0.0}]
    compared = [
        {tag.label: round(math.log(tag.confidence / (1 - tag.confidence)), 2) for tag in tags}
        for tags in found
    ]
    assert compared == [{"b": 7.0, "a": 5.0}, {"b": 1.0, "a": 0.0}]


def test_requests_override_only_what_they_name() -> None:
    """A request's threshold leaves the labels, and its labels leave the threshold."""
    settings = settings_of("cat", "dog")
    assert TagOptions(max_tags=1).vocabulary.is_registered
    table = TagTable(settings.vocabulary)
    assert settings.rule_for(TagOptions(max_tags=1), table) == SelectionRule(0.2, 1)
    bird = tag_options(labels=("bird",)).vocabulary
    assert settings.own_vocabulary(bird, 9).labels == ("bird",)
    changed = tag_options(prompt_templates=("a {label}",)).vocabulary
    own = settings.own_vocabulary(changed, 1)
    assert (own.labels, own.prompt_templates) == (("cat", "dog"), ("a {label}",))
    assert not bird.is_registered
    assert not changed.is_registered


def test_an_unknown_vocabulary_is_told_with_those_that_are_there() -> None:
    """404 with the names; labels and a vocabulary at once are refused too."""
    with pytest.raises(UnknownVocabulary, match="default"):
        settings_of("cat").name_of(tag_options(vocabulary="x").vocabulary)
    with pytest.raises(InvalidRequest, match="either"):
        settings_of("cat").own_vocabulary(
            tag_options(vocabulary="default", labels=("a",)).vocabulary, 9
        )


@pytest.mark.parametrize(
    "options",
    [
        TagOptions(confidence_threshold=1.5),
        TagOptions(confidence_threshold=float("nan")),
        TagOptions(max_tags=0),
        TagOptions(min_tags=-1),
        TagOptions(min_tags=9),
    ],
)
def test_options_out_of_bounds_are_refused(options: TagOptions) -> None:
    """Bounds hold for callers that do not come by HTTP too."""
    with pytest.raises(InvalidRequest):
        settings_of("cat").rule_for(options, TagTable(vocabulary_of("cat")))


def test_filters_of_a_request_must_name_what_is_there() -> None:
    """A slip of the pen is told with what was meant; the service's own filters are for all of its
    vocabularies.
    """
    settings = settings_of("cat", "dog", exclude_labels=("bird",))
    table = TagTable(settings.vocabulary)
    with pytest.raises(InvalidRequest, match="did you mean 'dog'"):
        settings.rule_for(TagOptions(exclude_labels=("dgo",)), table)
    with pytest.raises(InvalidRequest, match="category"):
        settings.rule_for(TagOptions(include_categories=("animals",)), table)
    rule = settings.rule_for(TagOptions(exclude_labels=("DOG",)), table)
    assert rule.allowed is not None
    assert rule.allowed.tolist() == [True, False]


def test_the_services_includes_are_for_vocabularies_that_have_them() -> None:
    """Labels of a request, and other vocabularies, are not emptied by them."""
    settings = settings_of("cat", "dog", include_labels=("cat",))
    assert settings.rule_for(TagOptions(), TagTable(settings.vocabulary)).allowed.tolist() == [
        True,
        False,
    ]  # type: ignore[union-attr]
    assert settings.rule_for(TagOptions(), TagTable(vocabulary_of("boat"))).allowed is None


def test_labels_of_one_canonical_form_are_all_meant() -> None:
    """A request may bring `Cat` and `CAT`; a filter for cat is for both."""
    own = TagTable(vocabulary_of_labels(["Cat", "dog", "CAT"], TEMPLATES))
    assert own.mask(("cat",), (), "include", True).tolist() == [True, False, True]


def test_cache_drops_the_least_recently_used_beyond_its_bytes() -> None:
    """Three values of one size in a cache of two: the one not touched goes."""
    cache = ByteCache[str, bytes](2 * (100 + ENTRY_BYTES), lambda _, value: len(value))
    cache.put("a", bytes(100))
    cache.put("b", bytes(100))
    assert cache.get("a") is not None
    cache.put("c", bytes(100))
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    assert cache.nbytes == 2 * (100 + ENTRY_BYTES)


def test_cache_refuses_what_is_larger_than_itself() -> None:
    """A value that would push everything out is not kept, and replacing one counts its bytes
    once.
    """
    cache = ByteCache[str, bytes](2 * (100 + ENTRY_BYTES), lambda _, value: len(value))
    cache.put("a", bytes(100))
    cache.put("huge", bytes(1_000))
    cache.put("a", bytes(100))
    cache.put("b", bytes(100))
    assert [cache.get(key) is not None for key in ("a", "huge", "b")] == [True, False, True]

"""Scores, thresholds, filters, parents and order, against a plain loop and by hand-made
examples.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidRequest
from serve_app.tagging.calibration import Calibration, Fit
from serve_app.tagging.scores import in_score, softmax_logits
from serve_app.tagging.selection import SUPPRESS_WITHIN, SelectionRule, select_tags
from serve_app.tagging.tag_table import TagTable
from serve_app.tagging.vocabulary import Tag, TagVocabulary

ANIMALS = (
    Tag(label="animal"),
    Tag(label="cat", parents=("animal",), category="pets"),
    Tag(label="kitten", parents=("cat",), category="pets", aliases=("baby cat",)),
    Tag(label="car", category="things"),
)


def table_of(*tags: Tag | str, calibration: Calibration | None = None) -> TagTable:
    whole = tuple(Tag(label=tag) if isinstance(tag, str) else tag for tag in tags)
    return TagTable(TagVocabulary(tags=whole, prompt_templates=("{label}",)), calibration)


def chosen(logits: list[float], table: TagTable, rule: SelectionRule) -> list[str]:
    (tags,) = select_tags(np.array([logits], np.float32), table, rule)
    return [tag.label for tag in tags]


def calibration(**fits: Fit) -> Calibration:
    return Calibration(
        method="platt",
        checkpoint="x",
        prompt_templates=("{label}",),
        images=9,
        threshold=0.5,
        tags=fits,
    )


def test_selection_keeps_the_best_above_the_threshold() -> None:
    """Threshold is inclusive, the best come first, no more than max_tags."""
    logits = [0.0, 2.0, -2.0, 5.0, 1.0]
    table = table_of(*"abcde")
    (tags,) = select_tags(np.array([logits], np.float32), table, SelectionRule(0.5, 3))
    assert [tag.label for tag in tags] == ["d", "b", "e"]
    assert [round(tag.confidence, 3) for tag in tags] == [0.993, 0.881, 0.731]
    assert chosen(logits, table, SelectionRule(0.5, 50)) == ["d", "b", "e", "a"]
    assert chosen(logits, table, SelectionRule(0.5, 3, "alphabetical")) == ["b", "d", "e"]


def test_a_threshold_of_one_asks_for_what_rounds_to_one() -> None:
    """Sigmoids of 40 and 60 are both 1.0 in float32 and pass; their order is the logits'."""
    assert chosen([40.0, 60.0, 9.0], table_of(*"abc"), SelectionRule(1.0, 3)) == ["b", "a"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(-6, 6), min_size=7, max_size=7), min_size=1, max_size=4),
    st.integers(0, 7),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_selection_equals_a_plain_loop(
    rows: list[list[int]], min_tags: int, max_tags: int, threshold: float, allowed: list[bool]
) -> None:
    """Whatever the logits, ties among them, and the rule: the tags that sorting one image by hand
    gives.
    """
    min_tags = min(min_tags, max_tags)
    rule = SelectionRule(threshold, max_tags, min_tags=min_tags, allowed=np.array(allowed))
    found = select_tags(np.array(rows, np.float32), table_of(*"abcdefg"), rule)
    least = (
        -math.inf
        if threshold == 0
        else 16.64
        if threshold == 1
        else math.log(threshold / (1 - threshold))
    )
    for row, tags in zip(rows, found, strict=True):
        order = [at for at in sorted(range(7), key=lambda at: (-row[at], at)) if allowed[at]]
        passing = [at for at in order if row[at] >= least]
        expected = (passing if len(passing) >= min_tags else order[: max(min_tags, 0)])[:max_tags]
        assert [tag.label for tag in tags] == ["abcdefg"[at] for at in expected]


def test_min_tags_never_leaves_an_image_empty() -> None:
    """Nothing passes, two are given all the same, the best two of those that may be."""
    rule = SelectionRule(0.9, 5, min_tags=2, allowed=np.array([True, False, True, True]))
    assert chosen([-3.0, 1.0, -1.0, -2.0], table_of(*"abcd"), rule) == ["c", "d"]


def test_min_tags_adds_and_takes_nothing_away() -> None:
    """What passes by a low threshold of its own stays beside better tags that do not pass;
    suppressed parents stay out.
    """
    table = table_of(
        Tag(label="a", threshold=0.9), Tag(label="b", threshold=0.9), Tag(label="c", threshold=0.01)
    )
    assert chosen([1.0, 0.5, -1.0], table, SelectionRule(0.5, 2)) == ["c"]
    assert chosen([1.0, 0.5, -1.0], table, SelectionRule(0.5, 5, min_tags=2)) == ["a", "c"]
    assert chosen([1.0, 0.5, -1.0], table, SelectionRule(0.5, 2, min_tags=2)) == ["a", "c"]
    assert chosen(
        [2.0, 2.0, 1.5, -9.0],
        table_of(*ANIMALS),
        SelectionRule(0.5, 9, parents="suppress", min_tags=2),
    ) == ["kitten", "car"]


def test_no_tag_at_all_may_be_given() -> None:
    """Everything is excluded: an empty answer for every score, and no warning of numpy's."""
    nothing = np.zeros(2, np.bool_)
    for score in ("sigmoid", "softmax"):
        assert (
            chosen(
                [1.0, 2.0],
                table_of("a", "b"),
                SelectionRule(0.0, 9, score=score, allowed=nothing, min_tags=1),
            )
            == []
        )  # type: ignore[arg-type]


def test_a_long_line_of_parents_is_no_trouble() -> None:
    """Two thousand generations: the last is given every ancestor."""
    tags = [Tag(label="0"), *(Tag(label=str(n), parents=(str(n - 1),)) for n in range(1, 2_000))]
    assert (
        len(
            chosen(
                [-9.0] * 1_999 + [5.0],
                table_of(*tags),
                SelectionRule(0.5, 9_999, parents="propagate"),
            )
        )
        == 2_000
    )


def test_thresholds_go_from_the_request_to_the_tag_to_the_calibration_to_the_general_one() -> None:
    """Each is used where those before it say nothing."""
    plain = table_of(Tag(label="a", threshold=0.9), "b")
    assert chosen([1.0, 1.0], plain, SelectionRule(0.5, 9)) == ["b"]
    assert chosen([1.0, 1.0], plain, SelectionRule(0.5, 9, for_all=True)) == ["a", "b"]
    fitted = table_of(
        Tag(label="a", threshold=0.1), "b", "c", calibration=calibration(b=Fit(threshold=0.9))
    )
    assert chosen([0.0, 1.0, 1.0], fitted, SelectionRule(0.99, 9, score="calibrated")) == ["c", "a"]
    assert chosen([0.0, 1.0, 1.0], fitted, SelectionRule(0.7, 9)) == ["b", "c", "a"]


def test_calibrated_scores_are_each_tags_own_line_and_bias_is_added() -> None:
    """Scale × logit + offset + bias, by hand; what is not listed has the pooled line."""
    fitted = calibration(a=Fit(scale=2.0, offset=-1.0)).model_copy(
        update={"pooled": Fit(scale=0.5, offset=0.25)}
    )
    table = table_of(Tag(label="a", bias=0.5), "b", calibration=fitted)
    logits = np.array([[3.0, 3.0]], np.float32)
    np.testing.assert_allclose(in_score(logits, None, table, "calibrated"), [[5.5, 1.75]])
    np.testing.assert_allclose(in_score(logits, None, table, "sigmoid"), [[3.5, 3.0]])
    (tags,) = select_tags(logits, table, SelectionRule(0.0, 9, score="calibrated"))
    assert [tag.logit for tag in tags] == [3.0, 3.0]  # what the model said


def test_margin_is_measured_from_the_best_background() -> None:
    """A tag no better than "a photo" has a confidence of one half."""
    logits = np.array([[-8.0, -11.0]], np.float32)
    background = np.array([[-8.0, -9.0]], np.float32)
    (tags,) = select_tags(
        logits, table_of("a", "b"), SelectionRule(0.0, 9, score="margin"), background
    )
    assert [(tag.label, round(tag.confidence, 4)) for tag in tags] == [("a", 0.5), ("b", 0.0474)]


def test_softmax_is_over_the_tags_that_may_be_given() -> None:
    """Single choice: confidences sum up to 1 over the allowed tags, and keep their order where they
    round to 1.
    """
    rule = SelectionRule(0.0, 9, score="softmax", allowed=np.array([True, True, False]))
    (tags,) = select_tags(np.array([[-5.0, -6.0, 3.0]], np.float32), table_of(*"abc"), rule)
    assert [tag.label for tag in tags] == ["a", "b"]
    assert sum(tag.confidence for tag in tags) == pytest.approx(1, abs=1e-6)
    assert tags[0].confidence == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)
    logits = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32) * 30
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        1 / (1 + np.exp(-softmax_logits(logits))), shares / shares.sum(1, keepdims=True), atol=1e-6
    )
    assert softmax_logits(np.array([[1.0]], np.float32))[0, 0] == np.inf


def test_the_bare_logit_may_be_asked_for() -> None:
    """Confidence is then the logit; the threshold still compares its sigmoid."""
    (tags,) = select_tags(
        np.array([[-3.0, -5.0]], np.float32),
        table_of("a", "b"),
        SelectionRule(0.02, 9, score="logit"),
    )
    assert [(tag.label, tag.confidence) for tag in tags] == [("a", -3.0)]


def test_scores_that_a_vocabulary_cannot_have_are_refused() -> None:
    """No calibration, no background: the sentence says what to do."""
    for score, said in (("calibrated", "calibrate"), ("margin", "background")):
        with pytest.raises(InvalidRequest, match=said):
            select_tags(
                np.zeros((1, 1), np.float32),
                table_of("a"),
                SelectionRule(0.5, 1, score=score),
                np.zeros((1, 0), np.float32),
            )  # type: ignore[arg-type]


def test_parents_are_given_their_childrens_score() -> None:
    """A kitten is a cat and an animal, with its confidence; a car is neither."""
    rule = SelectionRule(0.5, 9, parents="propagate")
    (tags,) = select_tags(np.array([[-9.0, -2.0, 3.0, 1.0]], np.float32), table_of(*ANIMALS), rule)
    assert [tag.label for tag in tags] == ["animal", "cat", "kitten", "car"]
    assert len({tag.confidence for tag in tags[:3]}) == 1
    assert [tag.logit for tag in tags] == [-9.0, -2.0, 3.0, 1.0]
    without = SelectionRule(
        0.5, 9, parents="propagate", allowed=np.array([False, True, True, True])
    )
    assert chosen([-9.0, -2.0, 3.0, 1.0], table_of(*ANIMALS), without) == ["cat", "kitten", "car"]


def test_parents_that_say_no_more_than_a_child_are_left_out() -> None:
    """Within the margin of a child that is given the parent goes; further above it stays; without
    the child it stays.
    """
    rule = SelectionRule(0.5, 9, parents="suppress")
    table = table_of(*ANIMALS)
    assert chosen([2.0, 2.0, 1.5, -9.0], table, rule) == ["kitten"]
    assert chosen([2.0 + 2 * SUPPRESS_WITHIN, 2.0, -1.0, -9.0], table, rule) == ["animal", "cat"]
    assert chosen([2.0, -1.0, -1.0, -9.0], table, rule) == ["animal"]


def test_a_parent_that_is_left_out_leaves_out_no_one() -> None:
    """The dog goes because of the puppy, which is given; the animal stays, since the puppy is far
    below it.
    """
    table = table_of(
        Tag(label="animal"),
        Tag(label="dog", parents=("animal",)),
        Tag(label="puppy", parents=("dog",)),
    )
    assert chosen([2.5, 1.6, 0.7], table, SelectionRule(0.5, 9, parents="suppress")) == [
        "animal",
        "puppy",
    ]
    # with the puppy filtered out, the dog is given and says as much as the animal
    without = SelectionRule(0.5, 9, parents="suppress", allowed=np.array([True, True, False]))
    assert chosen([2.5, 1.6, 0.7], table, without) == ["dog"]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(2, 8))
def test_suppressed_parents_are_those_near_a_given_child(data: st.DataObject, count: int) -> None:
    """Whatever the hierarchy: a passing tag is left out if and only if a given descendant has at
    most one logit less.
    """
    parents = [tuple(at for at in range(i) if data.draw(st.booleans())) for i in range(count)]
    logits = [data.draw(st.integers(-4, 8)) / 2 for _ in range(count)]
    table = table_of(
        *(Tag(label=str(i), parents=tuple(map(str, own))) for i, own in enumerate(parents))
    )
    found = {
        int(label) for label in chosen(logits, table, SelectionRule(0.5, 99, parents="suppress"))
    }
    ancestors = [set(own) for own in parents]
    for i in range(count):  # parents have smaller numbers, so theirs are complete
        ancestors[i] |= {above for parent in parents[i] for above in ancestors[parent]}
    for i in range(count):
        near = any(
            i in ancestors[child] and logits[i] <= logits[child] + SUPPRESS_WITHIN
            for child in found
        )
        assert (i in found) == (logits[i] >= 0 and not near)


def test_a_parent_is_given_with_its_child_whatever_its_own_threshold() -> None:
    """The evidence for it is the child, which reached its own; a filter still holds."""
    table = table_of(Tag(label="bird", threshold=0.99), Tag(label="sparrow", parents=("bird",)))
    assert chosen([-5.0, 0.5], table, SelectionRule(0.5, 9, parents="propagate")) == [
        "bird",
        "sparrow",
    ]


def test_a_bias_is_part_of_the_logit_score_and_not_of_the_raw_score() -> None:
    """`logit` and `sigmoid` give the same tags in the same order."""
    table = table_of(Tag(label="a", bias=2.0), "b")
    logits = np.array([[-1.0, 0.5]], np.float32)
    (as_logits,) = select_tags(logits, table, SelectionRule(0.5, 9, score="logit"))
    (as_sigmoids,) = select_tags(logits, table, SelectionRule(0.5, 9))
    assert [(tag.label, tag.confidence, tag.raw_score) for tag in as_logits] == [
        ("a", 1.0, -1.0),
        ("b", 0.5, 0.5),
    ]
    assert [tag.label for tag in as_sigmoids] == ["a", "b"]


def test_names_that_differ_in_a_hyphen_are_found_apart() -> None:
    """Each is found exactly, and a hyphen does not matter where only one of them is there."""
    both = table_of("t-shirt", "t shirt", "snow leopard")
    assert [both.numbers_of(name) for name in ("T-Shirt", "t_shirt", "snow-leopard", "x")] == [
        [0],
        [1],
        [2],
        [],
    ]
    assert table_of("t-shirt").numbers_of("T shirt") == [0]


def test_filters_know_labels_aliases_and_categories() -> None:
    """Case, underscores and aliases do not matter; includes and categories add up."""
    table = table_of(*ANIMALS)
    assert table.mask(("Baby_Cat",), ("things",), "include", True).tolist() == [
        False,
        False,
        True,
        True,
    ]
    assert table.mask((), ("pets",), "include", True).tolist() == [False, True, True, False]


def test_many_ties_at_the_end_keep_the_vocabularys_order() -> None:
    """Five equal tags for three places: the first three."""
    assert chosen([0.0, 1.0, 0.0, 0.0, 0.0], table_of(*"abcde"), SelectionRule(0.1, 3)) == [
        "b",
        "a",
        "c",
    ]

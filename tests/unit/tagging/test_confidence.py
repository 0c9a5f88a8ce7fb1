"""Confidences and thresholds: a confidence that was returned is a threshold that keeps the tag."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.api.answers import shorten
from serve_app.tagging.calibration import Calibration, Fit
from serve_app.tagging.confidence import confidences_of, min_score_of, min_scores_of
from serve_app.tagging.selection import SelectionRule, select_tags
from serve_app.tagging.tag_table import TagTable
from serve_app.tagging.vocabulary import Tag, TagVocabulary

SCORES = st.floats(-80, 25, width=32)


def table_of(*tags: Tag, calibration: Calibration | None = None) -> TagTable:
    return TagTable(TagVocabulary(tags=tags, prompt_templates=("{label}",)), calibration)


def as_clients_send_it(confidence: float) -> list[float]:
    """A returned confidence after every way that it may take: as it is, float32, JSON, text."""
    in_json = json.loads(json.dumps(shorten(confidence)))
    return [
        confidence,
        float(np.float32(confidence)),
        in_json,
        float(np.float32(in_json)),
        float(f"{confidence:.6g}"),
    ]


@pytest.mark.parametrize("score", [-87.5, -100.0, -735.0, -800.0, -3e38])
def test_scores_without_six_digits_have_the_confidence_0(score: float) -> None:
    """As those of a tag with a large bias: a number, and not NaN."""
    assert confidences_of(np.float32([score])) == [0.0]


@settings(max_examples=500, deadline=None)
@given(SCORES)
@example(0.0)
@example(16.5)
@example(-2.1972246)
def test_confidences_are_the_sigmoid_to_six_digits(score: float) -> None:
    """Python's own arithmetic and formatting give the same digits."""
    exact = 1 / (1 + math.exp(-score)) if score > 0 else math.exp(score) / (1 + math.exp(score))
    found = float(confidences_of(np.array([score], np.float32))[0])
    assert float(f"{found:.6g}") == pytest.approx(float(f"{exact:.6g}"), rel=1e-12)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(SCORES, min_size=1, max_size=6),
    st.sampled_from(["sigmoid", "calibrated", "margin", "softmax"]),
)
def test_a_returned_confidence_as_threshold_keeps_its_tag(logits: list[float], score: str) -> None:
    """For each score, and as the request's threshold, the tag's own, and the calibration's of all
    and of one tag.
    """
    labels = "abcdef"[: len(logits)]
    fit = Fit(scale=0.7, offset=0.3)
    fitted = Calibration(
        method="platt",
        checkpoint="x",
        prompt_templates=("{label}",),
        images=1,
        threshold=0.0,
        pooled=fit,
    )
    tags = tuple(Tag(label=label, bias=0.25) for label in labels)
    rows = np.array([logits], np.float32)
    background = np.array([[-3.0]], np.float32)
    rule = SelectionRule(0.0, 9, score=score)  # type: ignore[arg-type]
    (found,) = select_tags(rows, table_of(*tags, calibration=fitted), rule, background)
    assert len(found) == len(labels)
    for tag in found:
        for threshold in as_clients_send_it(tag.confidence):
            own = tuple(
                one.model_copy(update={"threshold": threshold}) if one.label == tag.label else one
                for one in tags
            )
            general = fitted.model_copy(update={"threshold": threshold})
            of_one = fitted.model_copy(
                update={"tags": {tag.label: fit.model_copy(update={"threshold": threshold})}}
            )
            for table, for_all in (
                (table_of(*tags, calibration=fitted), True),
                (table_of(*own, calibration=fitted), False),
                (table_of(*tags, calibration=general), False),
                (table_of(*tags, calibration=of_one), False),
            ):
                rule = SelectionRule(threshold, 9, score=score, for_all=for_all)  # type: ignore[arg-type]
                (kept,) = select_tags(rows, table, rule, background)
                assert tag.label in {one.label for one in kept}


@settings(max_examples=500, deadline=None)
@given(st.floats(0, 1), st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20))
def test_what_is_given_shows_a_confidence_that_reaches_the_threshold(
    threshold: float, scores: list[float]
) -> None:
    """To one part in ten million, which is the precision of float32; what is not given shows
    less.
    """
    least = min_scores_of(threshold)
    for score in scores:
        shown = float(f"{float(confidences_of(np.array([score], np.float32))[0]):.6g}")
        if np.float32(score) >= least:
            assert shown >= threshold * (1 - 1.1e-7)
        else:
            assert shown < threshold


def test_thresholds_at_the_ends() -> None:
    """0 lets everything pass; 1 asks for what is shown as 1, which begins half a unit of the sixth
    digit below it.
    """
    assert min_score_of(0.0) == -math.inf
    assert min_score_of(1e-300) == -math.inf
    assert min_score_of(1.0) == pytest.approx(math.log((1 - 5e-7) / 5e-7), abs=1e-5)
    assert np.isnan(min_scores_of([math.nan, 0.5])[0])

"""Vocabularies, prompts, banks and selection, by hand-made examples."""

import numpy as np
import pytest

from serve_app.errors import InvalidRequest
from serve_app.siglip.weights import SimilarityHead
from serve_app.tagging.bank_cache import BankCache
from serve_app.tagging.prompts import check_templates, fill_template, render_prompts
from serve_app.tagging.selection import SelectionRule, select_tags, tag_embeddings
from serve_app.tagging.settings import TagOptions, make_settings
from serve_app.tagging.tag_bank import TagBank, build_tag_bank
from serve_app.tagging.vocabulary import make_vocabulary

TEMPLATES = ("{label}",)


def bank_of(name: str, megabytes: float = 1.0) -> TagBank:
    rows = int(megabytes * 2**20 / 4 / 64)
    return TagBank(make_vocabulary([name], TEMPLATES, 1), np.zeros((rows, 64), np.float32))


def test_labels_are_kept_once_and_as_written() -> None:
    """Case and underscores come back as they were registered; a repeat is dropped, order stays."""
    vocabulary = make_vocabulary(["Red_Car", " cat ", "cat", "t-shirt"], TEMPLATES, 10)
    assert vocabulary.labels == ("Red_Car", "cat", "t-shirt")


@pytest.mark.parametrize(
    ("labels", "said"),
    [([], "empty"), (["a", "b", "c"], "at most 2"), (["..."], "no letter"), (["a", "x" * 257], "256"), ([" "], "no letter")],
)
def test_bad_labels_are_refused(labels: list[str], said: str) -> None:
    """Every refusal names the limit or the label."""
    with pytest.raises(InvalidRequest, match=said):
        make_vocabulary(labels, TEMPLATES, 2)


def test_half_a_surrogate_pair_is_refused() -> None:
    """JSON can carry text that is no Unicode; it would fail in the tokenizer, with everybody else's labels."""
    with pytest.raises(InvalidRequest, match="surrogate"):
        make_vocabulary(["cat\ud83d"], TEMPLATES, 2)
    with pytest.raises(InvalidRequest, match="surrogate"):
        check_templates(["{label} \ud83d"])


def test_prompts_of_a_request_are_bounded_and_registered_ones_are_not() -> None:
    """Labels times templates: 500 × 9 is too much for a request, and fine in a configuration."""
    labels, templates = [f"label {n}" for n in range(500)], tuple(f"{n} {{label}}" for n in range(9))
    with pytest.raises(InvalidRequest, match="4,500 prompts"):
        make_vocabulary(labels, templates, 1_000)
    assert len(make_vocabulary(labels, templates, None).labels) == 500


def test_fingerprint_changes_with_labels_order_and_templates() -> None:
    """Anything that changes a score or its place changes the fingerprint; nothing else does."""
    one = make_vocabulary(["a", "b"], TEMPLATES, 9).fingerprint
    assert one == make_vocabulary(["a", "b"], TEMPLATES, 5).fingerprint
    others = [
        make_vocabulary(labels, t, 9).fingerprint
        for labels, t in [(["b", "a"], TEMPLATES), (["a"], TEMPLATES), (["a", "b"], ("a {label}",))]
    ]
    assert len({one, *others}) == 4


@pytest.mark.parametrize(
    "templates", [(), ("no place",), ("{label} and {label}",), ("{} {label}",), ("x" * 257 + "{label}",), ("{label}",) * 101]
)
def test_bad_templates_are_refused(templates: tuple[str, ...]) -> None:
    """A template without exactly one place for the label would not tell labels apart."""
    with pytest.raises(InvalidRequest):
        check_templates(templates)


def test_templates_take_both_placeholders_and_other_braces() -> None:
    """`{}` is the Hugging Face way; braces in labels and templates are text and never format codes."""
    assert fill_template("a photo of {}.", "cat") == "a photo of cat."
    assert fill_template("{label} {0.__class__}", "{x}") == "{x} {0.__class__}"
    assert render_prompts(["a", "b"], ["1 {label}", "2 {label}"]) == ["1 a", "2 a", "1 b", "2 b"]


def test_ensemble_is_a_plain_mean() -> None:
    """Rows are averaged per label and left un-normalised."""
    vocabulary = make_vocabulary(["a", "b"], ("1 {label}", "2 {label}"), 9)
    embeds = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    np.testing.assert_array_equal(build_tag_bank(vocabulary, embeds).text_embeds, [[0.5, 0.5], [1, 0]])


def test_selection_keeps_the_best_above_the_threshold() -> None:
    """Threshold is inclusive, the best come first, no more than max_tags."""
    logits = np.array([0.0, 2.0, -2.0, 5.0, 1.0], np.float32)
    tags = select_tags("abcde", logits, SelectionRule(0.5, 3))
    assert [tag.label for tag in tags] == ["d", "b", "e"]
    assert [round(tag.confidence, 3) for tag in tags] == [0.993, 0.881, 0.731]
    assert [tag.label for tag in select_tags("abcde", logits, SelectionRule(0.5, 50))] == ["d", "b", "e", "a"]
    assert [tag.label for tag in select_tags("abcde", logits, SelectionRule(0.5, 3, "alphabetical"))] == ["b", "d", "e"]


def test_selection_orders_scores_that_float32_cannot_tell_apart() -> None:
    """Sigmoids of 40 and 60 are both 1.0 in float32; the order is the logits'."""
    assert [tag.label for tag in select_tags("ab", np.array([40.0, 60.0], np.float32), SelectionRule(0.5, 2))] == ["b", "a"]


def test_every_image_has_its_own_rule() -> None:
    """Two images of one batch, two thresholds."""
    bank = build_tag_bank(make_vocabulary(["a", "b"], TEMPLATES, 9), np.eye(2, dtype=np.float32))
    rules = [SelectionRule(0.0, 9), SelectionRule(0.9, 9)]
    found = tag_embeddings(np.eye(2, dtype=np.float32), bank, SimilarityHead(10.0, -5.0), rules)
    assert [[tag.label for tag in tags] for tags in found] == [["a", "b"], ["b"]]


def test_requests_override_only_what_they_name() -> None:
    """A request's threshold leaves the labels, and its labels leave the threshold."""
    settings = make_settings(("cat", "dog"), TEMPLATES, 0.2, 7, "confidence")
    assert settings.vocabulary_for(TagOptions(max_tags=1), 9) is settings.vocabulary
    assert settings.rule_for(TagOptions(max_tags=1)) == SelectionRule(0.2, 1)
    assert settings.vocabulary_for(TagOptions(labels=("bird",)), 9).labels == ("bird",)
    own = settings.vocabulary_for(TagOptions(prompt_templates=("a {label}",)), 1)
    assert (own.labels, own.prompt_templates) == (("cat", "dog"), ("a {label}",))


@pytest.mark.parametrize(
    "options", [TagOptions(confidence_threshold=1.5), TagOptions(confidence_threshold=float("nan")), TagOptions(max_tags=0)]
)
def test_options_out_of_bounds_are_refused(options: TagOptions) -> None:
    """Bounds hold for callers that do not come by HTTP too."""
    with pytest.raises(InvalidRequest):
        make_settings(("cat",), TEMPLATES, 0.2, 7, "confidence").rule_for(options)


def test_cache_drops_the_least_recently_used_beyond_its_bytes() -> None:
    """Three banks of 1 MiB in a cache of 2 MiB: the one not touched goes."""
    cache = BankCache(2 * 2**20)
    a, b, c = bank_of("a"), bank_of("b"), bank_of("c")
    cache.put(a)
    cache.put(b)
    assert cache.get(a.vocabulary) is a
    cache.put(c)
    assert cache.get(b.vocabulary) is None
    assert cache.get(a.vocabulary) is a
    assert cache.get(c.vocabulary) is c


def test_cache_refuses_what_is_larger_than_itself() -> None:
    """A bank that would push everything out is not kept, and replacing one counts its bytes once."""
    cache = BankCache(2 * 2**20)
    a = bank_of("a")
    cache.put(a)
    cache.put(bank_of("huge", 3))
    cache.put(a)
    cache.put(bank_of("b"))
    assert cache.get(a.vocabulary) is a

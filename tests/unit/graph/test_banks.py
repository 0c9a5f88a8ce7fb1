"""Building banks: what is known is not encoded, what several ask for at once is encoded once,
failures are not kept.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.errors import ConfigError, Unavailable
from serve_app.graph.banks import DIGESTS_PER_CALL, PROMPTS_PER_CALL, bank_builder
from serve_app.pipeline.banks import BankBuilder
from serve_app.tagging.known_rows import KnownRows
from serve_app.tagging.vocabulary import TagVocabulary, vocabulary_of_labels

WIDTH = 4


def row_of(prompt: str) -> np.ndarray:
    return np.random.default_rng(sum(prompt.encode())).normal(size=WIDTH).astype(np.float32)


class Texts:
    """A TextEncoder that remembers what it was asked, and answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.calls = 0
        self.let = asyncio.Event()
        self.let.set()
        self.failing = False
        self.fails_after: int | None = None
        self.refused_cut: list[bool] = []

    async def __call__(
        self,
        method: str,
        prompts: Sequence[str],
        refuse_cut: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        if method == "digests":
            return [prompt.replace("#", "").replace("+", "").encode() for prompt in prompts]
        assert method == "encode"
        if self.fails_after is not None and self.calls >= self.fails_after:
            raise Unavailable("gone")
        self.calls += 1
        self.asked += prompts
        self.refused_cut.append(refuse_cut)
        await self.let.wait()
        if self.failing:
            raise Unavailable("gone")
        return np.stack([row_of(prompt) for prompt in prompts])


def builder(texts: Texts, store: Path | None = None, cache_bytes: int = 2**20) -> BankBuilder:
    calls: Any = texts
    return bank_builder(
        calls, KnownRows("encoder", cache_bytes, None if store is None else str(store))
    )


def vocabulary_of(*labels: str) -> TagVocabulary:
    return vocabulary_of_labels(labels, ("a {label}",))


async def test_a_label_more_costs_its_own_prompts(tmp_path: Path) -> None:
    """2,000 labels are encoded once; one more encodes one, from loaded banks or from stored ones;
    the same again none.
    """
    labels = [f"label {n}" for n in range(2_000)]
    texts = Texts()
    first = await builder(texts, tmp_path).registered(vocabulary_of(*labels), [])
    assert (len(texts.asked), texts.calls) == (2_000, -(-2_000 // PROMPTS_PER_CALL))
    for known in ([first], []):
        texts = Texts()
        bank = await builder(texts, tmp_path if not known else None).registered(
            vocabulary_of("new", *labels), known
        )
        assert texts.asked == ["a new"]
        np.testing.assert_array_equal(bank.text_embeds[1:], first.text_embeds)
    texts = Texts()
    await builder(texts, tmp_path).registered(vocabulary_of(*labels), [])
    assert texts.asked == []


async def test_labels_asked_by_several_at_once_are_encoded_once() -> None:
    """Ten requests of overlapping labels under way together: each label once, each request its own
    rows in its order.
    """
    texts = Texts()
    texts.let.clear()
    own = builder(texts)
    wanted = [vocabulary_of("cat", f"dog {n % 3}") for n in range(10)]
    tasks = [asyncio.create_task(own.requested(vocabulary)) for vocabulary in wanted]
    await asyncio.sleep(0.01)
    texts.let.set()
    banks = await asyncio.gather(*tasks)
    assert sorted(texts.asked) == ["a cat", "a dog 0", "a dog 1", "a dog 2"]
    for vocabulary, bank in zip(wanted, banks, strict=True):
        np.testing.assert_array_equal(
            bank.text_embeds, [row_of(f"a {label}") for label in vocabulary.labels]
        )
    await own.requested(vocabulary_of("dog 2", "cat"))
    assert len(texts.asked) == 4


async def test_rows_are_counted_as_encoded_only_once() -> None:
    """What several ask for at once is one miss, that of the first; for the others, and for later
    ones, it is a hit.
    """
    texts = Texts()
    counts = list[tuple[int, int]]()
    calls: Any = texts
    own = bank_builder(
        calls,
        KnownRows("encoder", 2**20, None),
        on_rows=lambda hits, misses: counts.append((hits, misses)),
    )
    await asyncio.gather(
        own.requested(vocabulary_of("cat", "dog")), own.requested(vocabulary_of("cat", "cow"))
    )
    await own.requested(vocabulary_of("cat"))
    assert counts == [(0, 2), (1, 1), (1, 0)]
    assert len(texts.asked) == 3


async def test_a_caller_that_leaves_does_not_take_the_others_rows_along() -> None:
    """The first who asked is cancelled; the second still gets its answer."""
    texts = Texts()
    texts.let.clear()
    own = builder(texts)
    first, second = (asyncio.create_task(own.requested(vocabulary_of("cat"))) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    texts.let.set()
    assert len((await second).text_embeds) == 1
    assert texts.asked == ["a cat"]


async def test_a_failure_is_told_to_all_and_tried_again_next_time() -> None:
    """Nothing of a failed call is kept."""
    texts = Texts()
    texts.failing = True
    own = builder(texts)
    results = await asyncio.gather(
        *[own.requested(vocabulary_of("cat")) for _ in range(3)], return_exceptions=True
    )
    assert all(isinstance(result, Unavailable) for result in results)
    texts.failing = False
    assert len((await own.requested(vocabulary_of("cat"))).text_embeds) == 1


async def test_a_vocabulary_is_encoded_on_from_where_it_failed() -> None:
    """The second part fails; the next try does not encode the first again."""
    texts = Texts()
    own = vocabulary_of(*[f"label {n}" for n in range(2 * PROMPTS_PER_CALL)])
    made = builder(texts)
    texts.fails_after = 1
    with pytest.raises(Unavailable):
        await made.registered(own, [])
    texts.fails_after = None
    texts.asked = []
    assert len((await made.registered(own, [])).text_embeds) == 2 * PROMPTS_PER_CALL
    assert len(texts.asked) == PROMPTS_PER_CALL


async def test_a_name_that_a_request_had_cut_is_still_refused_in_a_vocabulary() -> None:
    """A request's row may be of a cut name, so a registered one is encoded, and with that checked,
    all the same.
    """
    texts = Texts()
    made = builder(texts)
    await made.requested(vocabulary_of("cat"))
    await made.registered(vocabulary_of("cat"), [])
    assert texts.asked == ["a cat", "a cat"]
    assert texts.refused_cut == [False, True]


async def test_a_vocabulary_whose_names_are_one_text_is_refused(tmp_path: Path) -> None:
    """Asked of the TextEncoder in parts, also if every row is known; a request may have such
    labels, as one row.
    """
    own = builder(Texts(), tmp_path)
    many = [f"label {n}" for n in range(DIGESTS_PER_CALL)]
    with pytest.raises(ConfigError, match="'label# 0' is the same to this model as 'label 0'"):
        await own.registered(vocabulary_of(*many, "label# 0"), [])
    first = await own.registered(vocabulary_of("C#"), [])
    second = await own.registered(vocabulary_of("C++"), [])
    with pytest.raises(ConfigError, match="is the same"):
        await own.registered(vocabulary_of("C#", "C++"), [first, second])


async def test_labels_of_a_request_that_are_one_text_have_one_row() -> None:
    """Only the first is encoded, and it stands for both."""
    texts = Texts()
    calls: Any = texts
    own = bank_builder(calls, KnownRows("encoder", 2**20, None), canonicalize=str.lower)
    bank = await own.requested(vocabulary_of("Cat", "dog", "CAT"))
    assert texts.asked == ["a Cat", "a dog"]
    assert bank.equal_rows is not None
    assert bank.equal_rows.tolist() == [0, 1, 0]


async def test_a_cache_too_small_for_a_request_still_answers_it() -> None:
    """Rows that do not fit are used and forgotten."""
    texts = Texts()
    own = builder(texts, cache_bytes=300)
    bank = await own.requested(vocabulary_of(*[f"label {n}" for n in range(20)]))
    assert len(bank.text_embeds) == 20


@pytest.mark.parametrize("templates", [("{label}",), ("a {label}", "the {label}", "{label}!")])
async def test_rows_are_means_of_their_prompts(templates: tuple[str, ...]) -> None:
    """Whatever the number of templates and of calls."""
    own = vocabulary_of_labels(
        [f"label {n}" for n in range(70)], templates, background_prompts=("a photo.",)
    )
    bank = await builder(Texts()).registered(own, [])
    for at in (0, 33, 69):
        expected = np.mean([row_of(t.format(label=f"label {at}")) for t in templates], axis=0)
        np.testing.assert_allclose(bank.text_embeds[at], expected, rtol=1e-6)
    np.testing.assert_array_equal(bank.text_embeds[-1], row_of("a photo."))

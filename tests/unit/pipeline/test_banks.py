"""The bank builder without an event loop, as one process uses it."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.pipeline.banks import BankBuilder, RowEncoder, call_now, run_now
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.known_rows import KnownRows
from serve_app.tagging.vocabulary import vocabulary_of_labels


class Texts:
    """Encodes every prompt as its length, and remembers what it encoded."""

    max_prompts = 2

    def __init__(self) -> None:
        self.calls: list[Sequence[str]] = []

    async def encode(self, prompts: Sequence[str], refuse_cut: bool) -> FloatArray:
        self.calls.append(prompts)
        return np.array([[len(prompt)] for prompt in prompts], np.float32)

    async def digests(self, prompts: Sequence[str], encodes_next: bool) -> list[bytes]:
        return [prompt.encode() for prompt in prompts]


def builder(texts: Texts) -> BankBuilder:
    rows = RowEncoder(texts, KnownRows("encoder", 2**20, None))
    return BankBuilder(rows, str.lower, rows.for_request, call_now)


async def test_banks_are_built_inside_and_outside_of_an_event_loop() -> None:
    """A notebook has a running loop and the command line has none; both call the same methods."""
    texts = Texts()
    own = builder(texts)
    vocabulary = vocabulary_of_labels(["a", "bb", "ccc"], ["{label}"])
    inside = run_now(own.registered(vocabulary, []))
    outside = await asyncio.to_thread(run_now, own.requested(vocabulary))
    assert inside.text_embeds.tolist() == outside.text_embeds.tolist() == [[1.0], [2.0], [3.0]]
    assert texts.calls == [["a", "bb"], ["ccc"]] * 2


def test_rows_of_a_request_are_encoded_once() -> None:
    """The second request finds them in the cache."""
    texts = Texts()
    own = builder(texts)
    for _ in range(2):
        run_now(own.requested(vocabulary_of_labels(["a", "A", "bb"], ["{label}"])))
    assert texts.calls == [["a", "bb"]]


def test_a_coroutine_that_waits_is_a_mistake() -> None:
    """It would never be continued."""
    with pytest.raises(AssertionError, match="event loop"):
        run_now(asyncio.sleep(0))

"""What the ingress makes of replies that do not fit together: one request is answered by one
vocabulary, or not at all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.config.service import ServiceConfig, parse_config
from serve_app.errors import InvalidImage, InvalidRequest, TaggerError, Unavailable
from serve_app.graph import preprocessor
from serve_app.graph.messages import EncodeReply, ScoreReply, ScoreRequest
from serve_app.graph.preprocessor import Preprocessor
from serve_app.hardware.detection import parse_hardware
from serve_app.hardware.planning import plan_service
from serve_app.pipeline.scorer import ScoredBy
from serve_app.siglip.inputs import ImageBatch
from serve_app.siglip.outcomes import EncodedImages
from serve_app.tagging.options import TagOptions
from serve_app.tagging.selection import TagScore
from tests.conftest import encoded, random_picture

PICTURES = [encoded(random_picture(60, 40, seed)) for seed in range(3)]
WIDTH = 64


class Others:
    """The other deployments: every scoring call is answered by the next vocabulary, until there are
    no more to come.
    """

    def __init__(self, *vocabularies: str, refusal: TaggerError | None = None) -> None:
        self.vocabularies = list(vocabularies)
        self.refusal = refusal
        self.scored: list[ScoreRequest] = []

    async def __call__(self, method: str, request: Any, **options: Any) -> Any:
        if method == "encode":
            assert isinstance(request, ImageBatch)
            return EncodeReply(
                EncodedImages(np.ones((len(request), WIDTH), np.float32), (None,) * len(request)), 1
            )
        self.scored.append(request)
        name = self.vocabularies.pop(0) if len(self.vocabularies) > 1 else self.vocabularies[0]
        by = None if self.refusal else ScoredBy(name, name, "sigmoid", False)
        tags = self.refusal or (TagScore(name, 0.5, 0.0),)
        return ScoreReply((tags,) * len(request.options), (by,) * len(request.options))


@pytest.fixture
def config(tiny: Callable[[str], Path]) -> ServiceConfig:
    return parse_config(
        {"labels": ["cat"], "plugins": {"siglip": {"model": str(tiny("siglip2")), "batch_size": 1}}}
    )


@pytest.fixture
def make(
    config: ServiceConfig, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Others], Preprocessor]:
    def made(others: Others) -> Preprocessor:
        monkeypatch.setattr(preprocessor, "InnerCalls", lambda *_: others)
        handle: Any = None
        plan = plan_service(config, parse_hardware("cpu2"))
        return Preprocessor(config, plan, handle, handle)

    return made


@pytest.mark.parametrize("quality", ["standard", "high"])
async def test_a_request_between_two_vocabularies_is_scored_again_as_one(
    make: Callable[[Others], Preprocessor], quality: str
) -> None:
    """Three micro-batches meet an old and a new vocabulary: all embeddings go in one more call, and
    the answer is of that.
    """
    others = Others("old", "new", "new", "newest")
    unread = InvalidRequest("An image is empty.")
    images = await make(others).tag(
        [PICTURES[0], b"broken", unread, *PICTURES[1:]],
        TagOptions(quality=quality),  # type: ignore[arg-type]
    )
    good = [image for image in images if image.error is None]
    assert [image.tags[0].label for image in good] == ["newest"] * 3
    assert [image.scored is not None and image.scored.vocabulary for image in good] == [
        "newest"
    ] * 3
    assert others.scored[-1].views == ((7, 7, 7) if quality == "high" else (1, 1, 1))
    assert [image.embed is None for image in images] == [False, True, True, False, False]
    assert type(images[1].error).__name__ in ("UnsupportedImage", InvalidImage.__name__)
    assert images[2].error is unread


async def test_a_request_within_one_vocabulary_is_scored_once(
    make: Callable[[Others], Preprocessor],
) -> None:
    """No call more than there are micro-batches."""
    others = Others("same")
    await make(others).tag(PICTURES, TagOptions())
    assert len(others.scored) == 3


async def test_options_that_cannot_work_fail_the_request_and_not_its_images(
    make: Callable[[Others], Preprocessor],
) -> None:
    """As in one process: the error is the request's."""
    with pytest.raises(InvalidRequest, match="no calibration"):
        await make(Others("x", refusal=InvalidRequest("there is no calibration"))).tag(
            PICTURES, TagOptions(score="calibrated")
        )


async def test_stored_embeddings_in_several_calls_are_of_one_vocabulary(
    make: Callable[[Others], Preprocessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls that differ are both made again; if they never agree the client is told to come
    back.
    """
    monkeypatch.setattr(preprocessor, "max_message_bytes", lambda: 4 * WIDTH * 2)
    embeds = np.ones((3, WIDTH), np.float32)
    images = await make(Others("old", "new", "new")).score(embeds, TagOptions())
    assert [image.tags[0].label for image in images] == ["new"] * 3
    with pytest.raises(Unavailable, match="being replaced"):
        await make(Others(*["old", "new"] * 3)).score(embeds, TagOptions())

"""`StoredEmbeddings`: tags embeddings that a client stored, by calling the Postprocessor."""

import asyncio

from serve_app.errors import Unavailable
from serve_app.fairness.gates import FairGate
from serve_app.graph.calls import InnerCalls
from serve_app.graph.messages import ScoreRequest
from serve_app.graph.replies import score_tags
from serve_app.pipeline.tagged_image import TaggedImage
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.options import TagOptions

MAX_TRIES = 3
"""Attempts for a request that needs several calls, if the vocabulary changes between them."""
FEW_EMBEDDINGS = 16
"""Maximum number of embeddings that are scored without waiting, as in an ordinary micro-batch."""
MAX_LARGE_REQUESTS = 2
"""Maximum number of larger requests that one Preprocessor scores at the same time. Images of other
requests are scored in between."""


class StoredEmbeddings:
    """Scores stored embeddings; large requests take turns."""

    def __init__(self, score: InnerCalls, max_message_bytes: int, max_response_bytes: int) -> None:
        self._score = score
        self._max_message_bytes = max_message_bytes
        self._max_response_bytes = max_response_bytes
        self._large = FairGate(MAX_LARGE_REQUESTS)

    async def tag(self, image_embeds: FloatArray, options: TagOptions) -> tuple[TaggedImage, ...]:
        """Tag embeddings (B, D) with one vocabulary.

        Raises:
            Unavailable: The vocabulary is being replaced.
            TaggerError: The options are invalid, or the embeddings cannot be scored.
        """
        if len(image_embeds) <= FEW_EMBEDDINGS:
            return await self._tag_all(image_embeds, options)
        async with self._large.turn(len(image_embeds)):
            return await self._tag_all(image_embeds, options)

    async def _tag_all(
        self, image_embeds: FloatArray, options: TagOptions
    ) -> tuple[TaggedImage, ...]:
        """Tag embeddings in calls that do not exceed the message size."""
        max_rows = max(1, self._max_message_bytes // (4 * image_embeds.shape[1]))
        parts = [
            image_embeds[start : start + max_rows]
            for start in range(0, len(image_embeds), max_rows)
        ]
        for _ in range(MAX_TRIES):
            tagged = await asyncio.gather(*[self._tag_part(part, options) for part in parts])
            images = tuple(image for part in tagged for image in part)
            if images[0].error is not None:  # the options are the same for all
                raise images[0].error
            if len({image.scored for image in images}) == 1:
                return images
        raise Unavailable("The vocabulary is being replaced. Retry in one second.")

    async def _tag_part(
        self, image_embeds: FloatArray, options: TagOptions
    ) -> tuple[TaggedImage, ...]:
        request = ScoreRequest(
            image_embeds, (options,) * len(image_embeds), max_bytes=self._max_response_bytes
        )
        return await score_tags(self._score, request)

"""`ImagePipeline`: decodes, encodes and scores one image of a request.

Not here: decisions about a request as a whole (`preprocessor.py`).
"""

import asyncio

import numpy as np

from serve_app.errors import TaggerError
from serve_app.graph.calls import InnerCalls
from serve_app.graph.decoding_threads import DecodingThreads
from serve_app.graph.messages import ScoreRequest
from serve_app.graph.replies import score_tags
from serve_app.graph.sending import Sender
from serve_app.pipeline.tagged_image import ImageInput, TaggedImage
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.prepare import ImagePreparer
from serve_app.tagging.options import TagOptions
from serve_app.telemetry.record import StageTimes, new_image


class ImagePipeline:
    """Tags and embeds single images, in micro-batches that many requests share."""

    def __init__(
        self,
        preparer: ImagePreparer,
        decoding: DecodingThreads,
        sender: Sender,
        score: InnerCalls,
    ) -> None:
        self._preparer = preparer
        self._decoding = decoding
        self._sender = sender
        self._score = score

    async def tag(self, image: ImageInput, options: TagOptions, share: int) -> TaggedImage:
        """Tag one image; its tags may take at most `share` bytes of the response.

        If the image fails, the result has its error.
        """
        if isinstance(image, TaggerError):
            return TaggedImage(error=image)
        stages = new_image()
        tag_with = self._tag_views if options.quality == "high" else self._tag_whole
        try:
            return await tag_with(image, options, share, stages)
        except TaggerError as error:
            return TaggedImage(error=error, stages=stages)

    async def embed(self, image: ImageInput) -> TaggedImage:
        """Embed one image; the result has no tags."""
        if isinstance(image, TaggerError):
            return TaggedImage(error=image)
        stages = new_image()
        try:
            cost = self._preparer.cost_of(image, views=False)
            prepared = await self._decoding.run(self._preparer.prepare, image, stages, cost)
            encoded = await self._sender.encode(prepared, None, stages)
        except TaggerError as error:
            return TaggedImage(error=error, stages=stages)
        return TaggedImage(stages=stages, view_embeds=encoded.embed[None])

    async def _tag_whole(
        self, data: bytes, options: TagOptions, share: int, stages: StageTimes
    ) -> TaggedImage:
        """Tag an image from a single view, which is scored with its micro-batch."""
        cost = self._preparer.cost_of(data, views=False)
        prepared = await self._decoding.run(self._preparer.prepare, data, stages, cost)
        encoded = await self._sender.encode(prepared, options, stages, share)
        with stages.timed("score"):
            tagged = await encoded.tagged()
        return tagged.with_views(stages, encoded.embed[None])

    async def _tag_views(
        self, data: bytes, options: TagOptions, share: int, stages: StageTimes
    ) -> TaggedImage:
        """Tag an image from the whole image and its tiles, which are scored together."""
        cost = self._preparer.cost_of(data, views=True)
        views = await self._decoding.run(self._preparer.prepare_views, data, stages, cost)
        encoded = await asyncio.gather(*[self._sender.encode(view, None, stages) for view in views])
        embeds: FloatArray = np.stack([one.embed for one in encoded])
        request = ScoreRequest(embeds, (options,), (len(views),), shares=(share,))
        with stages.timed("score"):
            (tagged,) = await score_tags(self._score, request)
        return tagged.with_views(stages, embeds)

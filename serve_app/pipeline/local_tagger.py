"""`LocalTagger`: the whole pipeline in one process.

It is the command line's tagger and the reference that the Serve graph is tested against; both
compose the same functions of `siglip/` and `tagging/`.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve_app.config.public import show_config, show_live
from serve_app.config.service import ServiceConfig
from serve_app.errors import RequestError, TaggerError
from serve_app.hardware.planning import precision_here
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.pipeline.scorer import ScoredBy, TagScoring
from serve_app.pipeline.tagged_image import ImageInput, TaggedImage
from serve_app.pipeline.tagger import (
    ModelCard,
    VocabularyCard,
    VocabularyDetail,
    make_model_card,
    vocabulary_cards,
    vocabulary_detail,
    vocabulary_state,
)
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.inputs import FloatArray, PreparedImage, collate
from serve_app.siglip.outcomes import encode_apart
from serve_app.siglip.prepare import ImagePreparer
from serve_app.siglip.scoring import check_width
from serve_app.tagging.choices import Quality
from serve_app.tagging.options import TagOptions
from serve_app.tagging.selection import TagScore
from serve_app.telemetry.record import StageTimes, new_image
from serve_app.towers.self_check import check_image_tower
from serve_app.towers.tower import ImageTower

AUTO_BATCH_SIZE = 16
"""Images in one forward pass for `batch_size: auto`.

Source: the upper end of the seed table for 16 GB of memory.
"""


@dataclass(slots=True)
class _Image:
    """An image on its way through the pipeline; its fields are those of `TaggedImage`."""

    stages: StageTimes | None = None
    embeds: list[FloatArray] = field(default_factory=list)
    tags: tuple[TagScore, ...] = ()
    scored: ScoredBy | None = None
    error: TaggerError | None = None

    def note(self, stage: str, started_s: float) -> None:
        """Note a stage that ends now."""
        if self.stages is not None:
            self.stages.add(stage, started_s, time.perf_counter())

    def result(self) -> TaggedImage:
        """Return what was found."""
        if self.error is not None:
            return TaggedImage(error=self.error, stages=self.stages)
        return TaggedImage(self.tags, None, self.scored, self.stages, np.stack(self.embeds))


@dataclass(frozen=True, slots=True)
class _View:
    """A prepared view of an image."""

    image: _Image
    prepared: PreparedImage


class LocalTagger:
    """The whole pipeline in this process: decode, encode, score, select."""

    def __init__(self, config: ServiceConfig) -> None:
        """Load both towers, check them, and encode the default vocabulary.

        Raises:
            ConfigError: The checkpoint or a setting cannot work.
        """
        self.config = config
        plugin = config.siglip
        self.checkpoint = load_checkpoint(plugin.model_source, config.revision)
        precision = precision_here(plugin, self.checkpoint.family)
        self.scorer = LocalScorer(config, precision)
        self.head = self.scorer.head
        self.preparer = ImagePreparer(
            self.checkpoint, config.image_limits(), plugin.max_num_patches
        )
        self._tower = ImageTower(self.checkpoint, precision)
        check_image_tower(self._tower)
        self.batch_size = plugin.fixed_batch_size or AUTO_BATCH_SIZE
        self.settings = self.scorer.settings
        self.scorer.registered(self.settings.default_vocabulary)

    def tag_images(
        self, images: Sequence[ImageInput], options: TagOptions = TagOptions()
    ) -> tuple[TaggedImage, ...]:
        """Tag encoded images in batches; see `Tagger.tag`."""
        if all(isinstance(image, TaggerError) for image in images):
            return tuple(image.result() for image in self._encode(images, options.quality))

        scoring = self.scorer.scoring_for(options)  # refuses bad options before images are encoded
        encoded = self._encode(images, options.quality)
        _score([image for image in encoded if image.error is None], scoring)
        return tuple(image.result() for image in encoded)

    def encode_images(self, images: Sequence[ImageInput]) -> list[FloatArray | TaggerError]:
        """Return one embedding (D,) float32, unit norm, for each image, or why it has none."""
        return [image.error or image.embeds[0] for image in self._encode(images, "standard")]

    async def tag(
        self, images: Sequence[ImageInput], options: TagOptions
    ) -> tuple[TaggedImage, ...]:
        """Tag without blocking the event loop; see `Tagger.tag`."""
        return await asyncio.to_thread(self.tag_images, images, options)

    async def score(self, image_embeds: FloatArray, options: TagOptions) -> tuple[TaggedImage, ...]:
        """Tag stored embeddings; see `Tagger.score`."""
        check_width(image_embeds, self.checkpoint.embedding_width)
        scoring = await asyncio.to_thread(self.scorer.scoring_for, options)
        tags = await asyncio.to_thread(scoring.tag, image_embeds)
        return tuple(TaggedImage(found, scored=scoring.by) for found in tags)

    async def embed_images(
        self, images: Sequence[ImageInput]
    ) -> tuple[FloatArray | TaggerError, ...]:
        """Encode without blocking the event loop; see `Tagger.embed_images`."""
        return tuple(await asyncio.to_thread(self.encode_images, images))

    async def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts; see `Tagger.embed_texts`."""
        return await asyncio.to_thread(self.scorer.embed_texts, texts)

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return the vocabularies of the configuration; see `Tagger.vocabularies`."""
        banks = await asyncio.to_thread(self.scorer.every_registered)
        return vocabulary_cards(self.settings, banks)

    async def vocabulary(self, name: str) -> VocabularyDetail:
        """Return one of them; see `Tagger.vocabulary`."""
        banks = await asyncio.to_thread(self.scorer.every_registered)
        return vocabulary_detail(self.settings, banks, name)

    async def configuration(self) -> dict[str, Any]:
        """Return the configuration as it was read: no plan is made for one process."""
        return show_config(self.config, show_live(self.settings))

    async def describe(self) -> ModelCard:
        """Return what is loaded."""
        default = self.scorer.registered(self.settings.default_vocabulary)
        vocabularies = vocabulary_state(self.settings, default)
        return make_model_card(
            self.config, self.checkpoint, self._tower.runtime, self.batch_size, vocabularies
        )

    def _encode(self, images: Sequence[ImageInput], quality: Quality) -> list[_Image]:
        """Encode every view of every image, some images at a time."""
        encoded: list[_Image] = []
        views: list[_View] = []
        for data in images:
            if isinstance(data, TaggerError):
                encoded.append(_Image(error=data))
            else:
                image = _Image(new_image())
                encoded.append(image)
                views += self._prepare(image, data, quality)

        for start in range(0, len(views), self.batch_size):
            self._encode_batch(views[start : start + self.batch_size])
        return encoded

    def _prepare(self, image: _Image, data: bytes, quality: Quality) -> Iterator[_View]:
        """Yield the views of an image, or note why it has none."""
        try:
            if quality == "standard":
                prepared = [self.preparer.prepare(data, image.stages)]
            else:
                prepared = self.preparer.prepare_views(data, image.stages)
        except RequestError as error:
            image.error = error
            return
        for view in prepared:
            yield _View(image, view)

    def _encode_batch(self, views: Sequence[_View]) -> None:
        started_s = time.perf_counter()
        batch = collate([view.prepared for view in views])
        encoded = encode_apart(self._tower.encode, batch, self.checkpoint.embedding_width)
        for image in {id(view.image): view.image for view in views}.values():
            image.note("encode", started_s)
        for view, embed, error in zip(views, encoded.image_embeds, encoded.errors, strict=True):
            view.image.embeds.append(embed)
            view.image.error = error or view.image.error


def _score(images: Sequence[_Image], scoring: TagScoring) -> None:
    """Tag images that are encoded."""
    if not images:
        return
    started_s = time.perf_counter()
    embeds = np.stack([embed for image in images for embed in image.embeds])
    tags = scoring.tag(embeds, [len(image.embeds) for image in images])
    for image, found in zip(images, tags, strict=True):
        image.note("score", started_s)
        image.tags = found
        image.scored = scoring.by

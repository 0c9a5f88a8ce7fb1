"""`LocalTagger`: the whole pipeline in one process.

It is the command line's tagger and the reference that the Serve graph is tested against; both
compose the same functions of `siglip/` and `tagging/`.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from serve_app.config.public import show_config, show_live
from serve_app.config.service import ServiceConfig
from serve_app.errors import RequestError, TaggerError, Unavailable
from serve_app.pipeline.bounded_tags import TagOutcome
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.pipeline.tagger import (
    ModelCard,
    TagAnswer,
    VocabularyCard,
    VocabularyDetail,
    make_model_card,
    vocabulary_cards,
    vocabulary_detail,
    vocabulary_state,
)
from serve_app.siglip.inputs import FloatArray, PreparedImage, collate
from serve_app.siglip.outcomes import encode_apart
from serve_app.siglip.prepare import ImagePreparer
from serve_app.siglip.scoring import check_width
from serve_app.tagging.options import Quality, TagOptions
from serve_app.telemetry.record import StageTimes, new_image
from serve_app.towers.self_check import check_image_tower
from serve_app.towers.tower import ImageTower


class LocalTagger:
    """The whole pipeline in this process: decode, encode, score, select."""

    def __init__(self, config: ServiceConfig) -> None:
        """Load both towers, check them, and encode the default vocabulary.

        Raises:
            ConfigError: The checkpoint or a setting cannot work.
        """
        self.config = config
        plugin = config.siglip
        self.scorer = LocalScorer(config)
        self.checkpoint = self.scorer.checkpoint
        self.head = self.scorer.head
        self.preparer = ImagePreparer(
            self.checkpoint, config.image_limits(), plugin.max_num_patches
        )
        self._images = ImageTower(self.checkpoint, plugin.precision)
        check_image_tower(self._images)
        self.batch_size = plugin.resolved_batch_size
        self.settings = self.scorer.settings
        self.scorer.registered(self.settings.default_vocabulary)

    def tag_pictures(
        self,
        images: Sequence[bytes],
        options: TagOptions = TagOptions(),
        with_embeddings: bool = False,
    ) -> TagAnswer:
        """Tag encoded pictures in batches; see `Tagger.tag`."""
        scoring = self.scorer.scoring_for(options)  # refuses bad options before images are encoded
        times = [new_image() for _ in images]
        embedded = self.embed_views(images, options.quality, times)
        outcomes: list[TagOutcome] = [e if isinstance(e, TaggerError) else () for e in embedded]
        good = [(at, e) for at, e in enumerate(embedded) if not isinstance(e, TaggerError)]
        scored = None
        if good:
            started_s = time.perf_counter()
            tags = scoring.tag(np.concatenate([e for _, e in good]), [len(e) for _, e in good])
            scored = scoring.by
            for at, _ in good:
                times[at].add("score", started_s, time.perf_counter())
            for (at, _), found in zip(good, tags, strict=True):
                outcomes[at] = found
        embeds = (
            tuple(None if isinstance(e, TaggerError) else e[0] for e in embedded)
            if with_embeddings
            else None
        )
        return TagAnswer(
            tuple(outcomes),
            scored,
            embeds,
            tuple(0 if isinstance(e, TaggerError) else len(e) for e in embedded),
        )

    def embed_pictures(self, images: Sequence[bytes]) -> list[FloatArray | TaggerError]:
        """Return one embedding (D,) float32, unit norm, for each picture, or why it has none."""
        embedded = self.embed_views(images, "standard", [new_image() for _ in images])
        return [e if isinstance(e, TaggerError) else e[0] for e in embedded]

    def embed_views(
        self, images: Sequence[bytes], quality: Quality, times: Sequence[StageTimes]
    ) -> list[FloatArray | TaggerError]:
        """Return (V, D) float32, unit norm, for each picture: the whole of it, and its tiles where
        quality is high.
        """
        outcomes: list[list[FloatArray] | TaggerError] = [[] for _ in images]
        prepared: list[tuple[int, PreparedImage]] = []
        for at, data in enumerate(images):
            try:
                whole = quality == "standard"
                views = (
                    [self.preparer.prepare(data, times[at])]
                    if whole
                    else self.preparer.prepare_views(data, times[at])
                )
                prepared += [(at, view) for view in views]
            except RequestError as error:
                outcomes[at] = error
        for start in range(0, len(prepared), self.batch_size):
            places, chunk = zip(*prepared[start : start + self.batch_size], strict=True)
            started_s = time.perf_counter()
            encoded = encode_apart(
                self._images.encode, collate(chunk), self.checkpoint.embedding_width
            )
            for at in set(places):
                times[at].add("encode", started_s, time.perf_counter())
            for at, row, problem in zip(places, encoded.image_embeds, encoded.errors, strict=True):
                so_far = outcomes[at]
                if problem is not None or isinstance(so_far, TaggerError):
                    outcomes[at] = problem or so_far
                else:
                    so_far.append(row)
        return [
            o if isinstance(o, TaggerError) else np.stack(o) if o else Unavailable("not encoded")
            for o in outcomes
        ]

    async def tag(
        self, images: Sequence[bytes], options: TagOptions, with_embeddings: bool = False
    ) -> TagAnswer:
        """Tag without blocking the event loop; see `Tagger.tag`."""
        return await asyncio.to_thread(self.tag_pictures, images, options, with_embeddings)

    async def score(self, image_embeds: FloatArray, options: TagOptions) -> TagAnswer:
        """Tag stored embeddings; see `Tagger.score`."""
        check_width(image_embeds, self.checkpoint.embedding_width)
        scoring = await asyncio.to_thread(self.scorer.scoring_for, options)
        tags = await asyncio.to_thread(scoring.tag, image_embeds)
        return TagAnswer(tuple(tags), scoring.by)

    async def embed_images(self, images: Sequence[bytes]) -> tuple[FloatArray | TaggerError, ...]:
        """Encode without blocking the event loop; see `Tagger.embed_images`."""
        return tuple(await asyncio.to_thread(self.embed_pictures, images))

    async def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts; see `Tagger.embed_texts`."""
        return await asyncio.to_thread(self.scorer.embed_texts, texts)

    async def vocabularies(self) -> tuple[VocabularyCard, ...]:
        """Return what the configuration names; see `Tagger.vocabularies`."""
        return vocabulary_cards(
            self.settings, await asyncio.to_thread(self.scorer.every_registered)
        )

    async def vocabulary(self, name: str) -> VocabularyDetail:
        """Return one of them; see `Tagger.vocabulary`."""
        return vocabulary_detail(
            self.settings, await asyncio.to_thread(self.scorer.every_registered), name
        )

    async def configuration(self) -> dict[str, Any]:
        """Return the configuration as it was read: no plan is made for one process."""
        return show_config(self.config, show_live(self.settings))

    async def describe(self) -> ModelCard:
        """Return what is loaded."""
        default = self.scorer.registered(self.settings.default_vocabulary)
        vocabularies = vocabulary_state(self.settings, default)
        return make_model_card(self.config, self.checkpoint, self._images.runtime, vocabularies)

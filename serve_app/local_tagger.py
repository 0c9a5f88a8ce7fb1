"""`LocalTagger`: the whole pipeline in one process.

It is the command line's tagger and the reference that the Serve graph is tested against; both compose the same
functions of `siglip/` and `tagging/`.
"""

import asyncio
from collections.abc import Sequence

from serve_app.config import ServiceConfig
from serve_app.errors import RequestError, TaggerError, Unavailable
from serve_app.siglip.encoder import ImageTower, TextTower
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.inputs import FloatArray, PreparedImage, collate
from serve_app.siglip.outcomes import encode_apart
from serve_app.siglip.prepare import ImagePreparer
from serve_app.siglip.selfcheck import check_image_tower, check_text_tower
from serve_app.siglip.weights import read_similarity_head
from serve_app.tagger import ModelCard, TagAnswer, TagOutcome, make_model_card
from serve_app.tagging.bank_cache import BankCache
from serve_app.tagging.prompts import render_prompts
from serve_app.tagging.selection import tag_embeddings
from serve_app.tagging.settings import TagOptions
from serve_app.tagging.tag_bank import TagBank, build_tag_bank
from serve_app.tagging.vocabulary import TagVocabulary


class LocalTagger:
    """The whole pipeline in this process: decode, encode, score, select."""

    def __init__(self, config: ServiceConfig) -> None:
        """Load both towers, check them, and encode the configured labels.

        Raises:
            ConfigError: The checkpoint or a setting cannot work.
        """
        self.config = config
        plugin = config.siglip
        self.checkpoint = load_checkpoint(plugin.model_source, config.revision)
        self.head = read_similarity_head(self.checkpoint.folder)
        self.preparer = ImagePreparer(self.checkpoint, config.image_limits(), plugin.max_num_patches)
        self._images = ImageTower(self.checkpoint, plugin.precision)
        self._texts = TextTower(self.checkpoint, plugin.precision)
        check_image_tower(self._images)
        check_text_tower(self._texts)
        self.batch_size = plugin.resolved_batch_size
        self.settings = config.tag_settings()
        self._bank = self._encode_vocabulary(self.settings.vocabulary)
        self._cache = BankCache(config.limits.max_cached_label_bytes)

    def tag_pictures(self, images: Sequence[bytes], options: TagOptions = TagOptions()) -> TagAnswer:
        """Tag encoded pictures in batches; see `Tagger.tag`."""
        rule, bank = self.settings.rule_for(options), self.bank_for(options)
        outcomes: list[TagOutcome] = []
        for embedded in self.embed_pictures(images):
            if isinstance(embedded, TaggerError):
                outcomes.append(embedded)
            else:
                outcomes += tag_embeddings(embedded[None], bank, self.head, [rule])
        return TagAnswer(tuple(outcomes), bank.vocabulary.fingerprint, self.config.siglip.include_raw_scores)

    def embed_pictures(self, images: Sequence[bytes]) -> list[FloatArray | TaggerError]:
        """Return one embedding (D,) float32, unit norm, for each picture, or why it has none."""
        embedded: list[FloatArray | TaggerError] = [Unavailable("not encoded")] * len(images)
        prepared: list[tuple[int, PreparedImage]] = []
        for at, data in enumerate(images):
            try:
                prepared.append((at, self.preparer.prepare(data)))
            except RequestError as error:
                embedded[at] = error
        for start in range(0, len(prepared), self.batch_size):
            places, chunk = zip(*prepared[start : start + self.batch_size], strict=True)
            encoded = encode_apart(self._images.encode, collate(chunk), self.checkpoint.embedding_width)
            for at, row, problem in zip(places, encoded.image_embeds, encoded.errors, strict=True):
                embedded[at] = problem or row
        return embedded

    def bank_for(self, options: TagOptions) -> TagBank:
        """Return the tag bank that holds for a request, encoding its labels if they are new.

        Raises:
            InvalidRequest: The request's labels or templates cannot work.
        """
        vocabulary = self.settings.vocabulary_for(options, self.config.limits.max_labels_per_request)
        if vocabulary == self._bank.vocabulary:
            return self._bank
        bank = self._cache.get(vocabulary)
        if bank is None:
            bank = self._encode_vocabulary(vocabulary)
            self._cache.put(bank)
        return bank

    async def tag(self, images: Sequence[bytes], options: TagOptions) -> TagAnswer:
        """Tag without blocking the event loop; see `Tagger.tag`."""
        return await asyncio.to_thread(self.tag_pictures, images, options)

    async def describe(self) -> ModelCard:
        """Return what is loaded."""
        vocabulary = self._bank.vocabulary
        return make_model_card(self.config, self.checkpoint, self._images.runtime, len(vocabulary.labels), vocabulary.fingerprint)

    def _encode_vocabulary(self, vocabulary: TagVocabulary) -> TagBank:
        return build_tag_bank(vocabulary, self._texts.encode(render_prompts(vocabulary.labels, vocabulary.prompt_templates)))

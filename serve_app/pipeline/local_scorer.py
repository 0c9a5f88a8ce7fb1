"""`LocalScorer`: the scorer of one process, without the vision tower and without an event loop."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serve_app.config.service import ServiceConfig
from serve_app.hardware.planning import precision_here
from serve_app.pipeline.banks import BankBuilder, RowEncoder, call_now, run_now
from serve_app.pipeline.local_texts import LocalTexts
from serve_app.pipeline.scorer import Scorer, TagScoring, read_scored_checkpoint, rows_share
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.identity import encoder_fingerprint
from serve_app.siglip.inputs import FloatArray
from serve_app.siglip.precision import Precision
from serve_app.tagging.known_rows import KnownRows
from serve_app.tagging.options import TagOptions
from serve_app.tagging.tag_bank import ScoredBank

if TYPE_CHECKING:
    from serve_app.towers.tokenizer import SiglipTextInputs


class LocalScorer:
    """Scores embeddings against the vocabularies of a configuration and of requests."""

    def __init__(self, config: ServiceConfig, precision: Precision | None = None) -> None:
        """Read the checkpoint's facts and the configuration's vocabularies; nothing is encoded yet.

        Args:
            config: The configuration.
            precision: What the text tower runs as; None for what `auto` means on this machine.

        Raises:
            ConfigError: The checkpoint cannot be read, or a calibration belongs to another.
        """
        plugin = config.siglip
        cache_bytes = config.limits.max_cached_label_bytes
        self.checkpoint = load_checkpoint(plugin.model_source, config.revision)
        scored = read_scored_checkpoint(self.checkpoint)
        self.fingerprint = scored.fingerprint
        self.head = scored.head
        self.settings = config.tag_settings()

        self.precision = precision or precision_here(plugin, self.checkpoint.family)
        encoder = encoder_fingerprint(
            self.fingerprint, self.precision.dtype, self.precision.quantization
        )
        self.known = KnownRows(encoder, rows_share(cache_bytes), config.tag_banks)
        self._texts = LocalTexts(self.checkpoint, self.precision)
        rows = RowEncoder(self._texts, self.known)
        self._builder = BankBuilder(rows, scored.canonicalize, rows.for_request, call_now)
        self._scorer = Scorer(
            self.settings,
            scored,
            self._builder,
            config.limits.max_labels_per_request,
            cache_bytes,
        )

    @property
    def prompts_encoded(self) -> int:
        """How many prompts were encoded so far."""
        return self._texts.prompts_encoded

    @property
    def text_inputs(self) -> "SiglipTextInputs":
        """The checkpoint's tokenizer."""
        return self._texts.text_inputs

    def registered(self, name: str) -> ScoredBank:
        """Return the bank of one of the configuration's vocabularies."""
        return run_now(self._scorer.registered(name))

    def every_registered(self) -> dict[str, ScoredBank]:
        """Return the banks of all of the configuration's vocabularies."""
        return run_now(self._scorer.every_registered())

    def scoring_for(self, options: TagOptions = TagOptions()) -> TagScoring:
        """Return how images are scored with some options; encodes what is new of their vocabulary.

        Raises:
            InvalidRequest: The options cannot work.
        """
        return run_now(self._scorer.scoring_for(options))

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return embeddings (n, D) float32, unit norm, of texts as they are."""
        return run_now(self._builder.embed_texts(texts))

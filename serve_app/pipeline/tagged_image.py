"""`TaggedImage`: what the pipeline found in one image, or why it found nothing."""

from dataclasses import dataclass, replace

from serve_app.errors import TaggerError
from serve_app.pipeline.bounded_tags import TagOutcome
from serve_app.pipeline.scorer import ScoredBy
from serve_app.siglip.inputs import FloatArray
from serve_app.tagging.selection import TagScore
from serve_app.telemetry.record import StageTimes

ImageInput = bytes | TaggerError
"""An encoded image, or the error that reading it gave; its result has the same index."""


@dataclass(frozen=True, slots=True)
class TaggedImage:
    """One image of a request: its tags, or the error that it failed with.

    Attributes:
        tags: Its tags in the requested order; empty if it failed.
        error: Why it has no tags; None if it was tagged.
        scored: What it was scored against; None if it was not scored.
        stages: When its stages began and ended; None for an image that could not be read.
        view_embeds: (V, D) float32, unit norm, of every view, the whole image first; None if it was
            not encoded here.
    """

    tags: tuple[TagScore, ...] = ()
    error: TaggerError | None = None
    scored: ScoredBy | None = None
    stages: StageTimes | None = None
    view_embeds: FloatArray | None = None

    @classmethod
    def of(cls, outcome: TagOutcome, scored: ScoredBy | None = None) -> "TaggedImage":
        """Return an image with tags or an error."""
        if isinstance(outcome, TaggerError):
            return cls(error=outcome, scored=scored)
        return cls(tags=outcome, scored=scored)

    @property
    def outcome(self) -> TagOutcome:
        """The tags, or the error."""
        return self.tags if self.error is None else self.error

    @property
    def embed(self) -> FloatArray | None:
        """The embedding (D,) of the whole image."""
        return None if self.view_embeds is None else self.view_embeds[0]

    @property
    def num_views(self) -> int:
        """How often it was encoded; 0 if it was not."""
        return 0 if self.view_embeds is None else len(self.view_embeds)

    def with_views(
        self, stages: StageTimes | None, view_embeds: FloatArray | None
    ) -> "TaggedImage":
        """Return the same image with its stages and embeddings."""
        return replace(self, stages=stages, view_embeds=view_embeds)

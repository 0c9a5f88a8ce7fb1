"""The last stage of a job: embeddings are scored, tags are chosen, and the rows are written."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from serve_app.batch.blocks import EncodedBlock
from serve_app.batch.output_files import Writing, Written, write_rows
from serve_app.batch.rows import TAG, Stamp, embedding_column, make_rows, tag_column
from serve_app.config.service import ServiceConfig
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.siglip.precision import Precision
from serve_app.siglip.weights import SimilarityHead
from serve_app.tagging.options import TagOptions
from serve_app.tagging.selection import SelectionRule
from serve_app.tagging.tag_bank import ScoredBank, choose_for_embeddings


@dataclass(frozen=True, slots=True)
class Scoring:
    """How every chunk of a job is scored.

    Attributes:
        scored: What embeddings are scored against.
        head: Temperature and bias of the checkpoint.
        rule: How tags are chosen.
        stamp: What rows say about how they were made.
        checkpoint: Fingerprint of the checkpoint.
    """

    scored: ScoredBank
    head: SimilarityHead
    rule: SelectionRule
    stamp: Stamp
    checkpoint: str

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return int(self.scored.bank.text_embeds.shape[1])


def load_scoring(
    config: ServiceConfig, options: TagOptions, precision: Precision | None = None
) -> Scoring:
    """Return how a job scores; encodes the vocabulary unless it is stored in a tag bank.

    Raises:
        TaggerError: The checkpoint, the vocabulary or an option cannot work.
    """
    scorer = LocalScorer(config, precision)
    scoring = scorer.scoring_for(options)
    fingerprint = scoring.scored.bank.fingerprint
    stamp = Stamp(config.siglip.model_shown, scorer.checkpoint.revision, fingerprint)
    return Scoring(scoring.scored, scoring.head, scoring.rule, stamp, scorer.fingerprint)


def finish_chunk(
    scoring: Scoring, writing: Writing, name: str, inputs: pa.Table, *blocks: EncodedBlock
) -> Written:
    """Score the embeddings of a chunk, choose tags and write the rows as one object.

    Args:
        scoring: How the chunk is scored.
        writing: Where and how the rows are written.
        name: Name of the chunk.
        inputs: All inputs of the chunk.
        blocks: Its blocks, in order; not a list, because Ray resolves references only where they
            are arguments of their own.
    """
    chunk = EncodedBlock.join(blocks)
    rows = score_rows(scoring, inputs, chunk, writing.embeddings)
    return write_rows(writing, name, rows, sum(image.nbytes for image in chunk.images))


def score_rows(
    scoring: Scoring, inputs: pa.Table, encoded: EncodedBlock, with_embeddings: bool
) -> pa.Table:
    """Return the output rows of some inputs.

    Args:
        scoring: How they are scored.
        inputs: URIs, and the columns that are copied to the output.
        encoded: The same inputs, encoded.
        with_embeddings: Whether rows have the embedding of the whole image.
    """
    count = len(inputs)
    rows = np.flatnonzero(encoded.views)
    views = encoded.views[rows]
    if len(rows):
        chosen = choose_for_embeddings(
            encoded.image_embeds, scoring.scored, scoring.head, scoring.rule, views.tolist()
        )
        tags = tag_column(chosen, scoring.scored.bank.vocabulary.labels, rows, count)
    else:
        tags = pa.nulls(count, pa.list_(TAG))

    embeddings = None
    if with_embeddings:
        first_views = np.cumsum(views) - views
        embeddings = embedding_column(encoded.image_embeds[first_views], rows, count)
    return make_rows(inputs, encoded.images, tags, embeddings, scoring.stamp)

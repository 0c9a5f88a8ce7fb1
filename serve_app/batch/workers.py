"""What runs in the processes of a job: reading and preparing, encoding, and scoring and writing a
chunk.

The same functions of `siglip/` and `tagging/` as the service and `LocalTagger`; nothing of the
model is written here.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from serve_app.batch.input_tables import Kind
from serve_app.batch.reading import Read, read_inputs
from serve_app.batch.rows import (
    TAG,
    Facts,
    Stamp,
    Writing,
    Written,
    embedding_column,
    encode_rows,
    make_rows,
    tag_column,
)
from serve_app.batch.storage import Storage
from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidImage, TaggerError
from serve_app.pipeline.local_scorer import LocalScorer
from serve_app.siglip.hub import load_checkpoint
from serve_app.siglip.images.decoding import picture_size
from serve_app.siglip.images.limits import ImageLimits
from serve_app.siglip.inputs import FloatArray, ImageBatch, PreparedImage, collate
from serve_app.siglip.outcomes import EncodedImages, encode_apart
from serve_app.siglip.precision import Precision
from serve_app.siglip.prepare import ImagePreparer
from serve_app.siglip.weights import SimilarityHead
from serve_app.tagging.options import Quality, TagOptions
from serve_app.tagging.selection import SelectionRule
from serve_app.tagging.tag_bank import ScoredBank, choose_for_embeddings

ENDED_ITS_PROCESS = "The picture ended the process that decoded or encoded it."


@dataclass(frozen=True, slots=True)
class Model:
    """Which checkpoint, what its vision tower runs as, and the width of its embeddings."""

    source: str
    revision: str | None
    precision: Precision
    batch_size: int
    max_num_patches: int
    width: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How inputs become prepared images."""

    model: Model
    limits: ImageLimits
    max_image_bytes: int
    quality: Quality
    kind: Kind
    image_column: str | None
    storage: Storage


@dataclass(frozen=True, slots=True)
class PreparedBlock:
    """Images ready for the tower, sorted so that those of one batch have about as many patches.

    Attributes:
        batches: For one forward pass each.
        rows: For every image of all batches, one after the other, its input's place in the block.
    """

    batches: tuple[ImageBatch, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """Embeddings (V, D) float32 of a block's views, each input's together and in order, whose they
    are, and what failed.
    """

    image_embeds: FloatArray
    rows: tuple[int, ...]
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)

    @staticmethod
    def empty(width: int) -> "EncodedBlock":
        """Return the embeddings of no image."""
        return EncodedBlock(np.zeros((0, width), np.float32), ())


@dataclass(frozen=True, slots=True)
class Scoring:
    """What embeddings are scored against and how, and what rows say of it, and the checkpoint's
    fingerprint; the same for every chunk.
    """

    scored: ScoredBank
    head: SimilarityHead
    rule: SelectionRule
    stamp: Stamp
    checkpoint: str


def prepare_block(reading: Reading, rows: pa.Table) -> tuple[PreparedBlock, Facts]:
    """Read and prepare the pictures of some inputs; one that cannot be read is an error among the
    facts.
    """
    preparer = _preparer(reading.model, reading.limits)
    reads = read_inputs(
        rows, reading.kind, reading.image_column, reading.storage, reading.max_image_bytes
    )
    found = [_prepare(read, preparer, reading) for read in reads]
    views = [(row, view) for row, one in enumerate(found) for view in one.views]
    if (
        views and views[0][1].spatial_shape is not None
    ):  # sorted by patches, less of a batch is padding
        views.sort(key=lambda one: -len(one[1].pixel_values))
    size = reading.model.batch_size
    batches = tuple(
        collate([view for _, view in views[start : start + size]])
        for start in range(0, len(views), size)
    )
    facts = Facts(
        tuple(one.etag for one in found),
        tuple(one.width for one in found),
        tuple(one.height for one in found),
        tuple(one.error for one in found),
        sum(one.nbytes for one in found),
    )
    return PreparedBlock(batches, tuple(row for row, _ in views)), facts


def lost_facts(rows: pa.Table) -> Facts:
    """Return the facts of inputs that ended the processes they were decoded or encoded in, again
    and again.
    """
    count = len(rows)
    error = (InvalidImage.code, ENDED_ITS_PROCESS)
    return Facts(
        tuple(rows["etag"].to_pylist()), (None,) * count, (None,) * count, (error,) * count
    )


class Encoder:
    """The vision tower in a process of its own: an actor on its share of a GPU, or on some
    cores.
    """

    def __init__(self, model: Model, num_threads: int, gpu_share: float) -> None:
        """Load the tower and check it.

        Raises:
            ConfigError: The checkpoint or a setting cannot work.
        """
        # torch: this module also runs in processes that only read or write
        from serve_app.towers.starting import start_image_tower

        checkpoint = load_checkpoint(model.source, model.revision)
        self._tower = start_image_tower(checkpoint, model.precision, num_threads, gpu_share)

    def ready(self) -> Precision:
        """Return what the tower runs as, once it is loaded."""
        return self._tower.runtime

    def encode(self, block: PreparedBlock) -> EncodedBlock:
        """Encode a block, each input's views together and in order again."""
        width = self._tower.checkpoint.embedding_width
        parts = [encode_apart(self._tower.encode, batch, width) for batch in block.batches]
        return _in_order(parts, block.rows, width)


def finish_chunk(
    scoring: Scoring, writing: Writing, name: str, inputs: pa.Table, *blocks: EncodedBlock | Facts
) -> Written:
    """Score the embeddings of a chunk, choose tags and write its rows as one object.

    Args:
        scoring: What they are scored against.
        writing: Where the rows go.
        name: Of the chunk's output.
        inputs: Of the whole chunk.
        blocks: Facts and embeddings of its blocks by turns, in order.
    """
    facts = Facts.join([block for block in blocks if isinstance(block, Facts)])
    encoded = [block for block in blocks if isinstance(block, EncodedBlock)]
    errors = list(facts.errors)
    embeds = []
    places = []
    views = []
    start = 0
    for block, told in zip(
        encoded, (block for block in blocks if isinstance(block, Facts)), strict=True
    ):
        for row, error in block.errors.items():
            errors[start + row] = error
        kept = [at for at, row in enumerate(block.rows) if row not in block.errors]
        embeds.append(block.image_embeds[kept])
        counts = Counter(start + block.rows[at] for at in kept)
        places += list(counts)
        views += list(counts.values())
        start += len(told.errors)
    facts = Facts(facts.etags, facts.widths, facts.heights, tuple(errors), facts.nbytes)
    rows = score_rows(
        scoring,
        inputs,
        facts,
        np.concatenate(embeds) if embeds else None,
        places,
        views,
        writing.embeddings,
    )
    data = encode_rows(rows, writing.output_format, writing.compression)
    writing.storage.write(writing.url(name), data)
    return Written(
        len(inputs),
        dict(Counter(error[0] for error in errors if error is not None)),
        facts.nbytes,
        len(data),
    )


def score_rows(
    scoring: Scoring,
    inputs: pa.Table,
    facts: Facts,
    image_embeds: FloatArray | None,
    places: Sequence[int],
    views: Sequence[int] | None,
    with_embeddings: bool,
) -> pa.Table:
    """Return the output rows of some inputs of which those in `places` have embeddings (V, D),
    `views` of them each.
    """
    labels = scoring.scored.bank.vocabulary.labels
    count = len(inputs)
    width = scoring.scored.bank.text_embeds.shape[1]
    embeds = np.zeros((0, width), np.float32) if image_embeds is None else image_embeds
    whole = embeds if views is None else embeds[np.cumsum([0, *views])[:-1]]
    if len(whole):
        chosen = choose_for_embeddings(embeds, scoring.scored, scoring.head, scoring.rule, views)
        tags = tag_column(chosen, labels, places, count)
    else:
        tags = pa.nulls(count, pa.list_(TAG))
    return make_rows(
        inputs,
        facts,
        tags,
        embedding_column(whole, places, count) if with_embeddings else None,
        scoring.stamp,
    )


def load_scoring(
    config: ServiceConfig, options: TagOptions, precision: Precision | None = None
) -> Scoring:
    """Return what a job scores against; encodes the vocabulary unless a stored bank has it.

    Raises:
        TaggerError: The checkpoint, the vocabulary or an option cannot work.
    """
    scorer = LocalScorer(config, precision)
    scoring = scorer.scoring_for(options)
    fingerprint = scoring.scored.bank.fingerprint
    stamp = Stamp(config.siglip.model_shown, scorer.checkpoint.revision, fingerprint)
    return Scoring(scoring.scored, scoring.head, scoring.rule, stamp, scorer.fingerprint)


@dataclass(frozen=True, slots=True)
class _Prepared:
    views: tuple[PreparedImage, ...]
    etag: str | None
    width: int | None
    height: int | None
    error: tuple[str, str] | None
    nbytes: int


def _prepare(read: Read, preparer: ImagePreparer, reading: Reading) -> _Prepared:
    width = height = None
    try:
        if read.error is not None:
            raise read.error
        width, height = picture_size(read.data, reading.limits)
        whole = reading.quality == "standard"
        views = (
            (preparer.prepare(read.data),) if whole else tuple(preparer.prepare_views(read.data))
        )
        return _Prepared(views, read.etag, width, height, None, len(read.data))
    except TaggerError as error:
        return _Prepared((), read.etag, width, height, (error.code, error.message), len(read.data))


@functools.cache
def _preparer(model: Model, limits: ImageLimits) -> ImagePreparer:
    return ImagePreparer(
        load_checkpoint(model.source, model.revision), limits, model.max_num_patches
    )


def _in_order(parts: Sequence[EncodedImages], rows: Sequence[int], width: int) -> EncodedBlock:
    """Put views back in the order of their inputs; an input of which one view failed has failed."""
    embeds = (
        np.concatenate([part.image_embeds for part in parts])
        if parts
        else np.zeros((0, width), np.float32)
    )
    problems = [error for part in parts for error in part.errors]
    failed = {
        row: (error.code, error.message)
        for row, error in zip(rows, problems, strict=True)
        if error is not None
    }
    order = sorted(range(len(rows)), key=lambda at: rows[at])
    return EncodedBlock(embeds[order], tuple(rows[at] for at in order), failed)

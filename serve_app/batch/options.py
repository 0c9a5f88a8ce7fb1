"""The options of a batch job."""

from dataclasses import dataclass, replace
from typing import Literal

from serve_app.batch.storage import Storage
from serve_app.errors import ConfigError
from serve_app.tagging.choices import Quality

InputFormat = Literal["auto", "images", "manifest", "table", "webdataset"]
OutputFormat = Literal["parquet", "jsonl"]
Compression = Literal["snappy", "zstd"]

MIN_CHUNK = 1
MAX_CHUNK = 5_000
"""Limits of the number of inputs in a chunk.

Below 500, the output of a whole bucket is many small files; small jobs and tests may have fewer.
"""
DEFAULT_CHUNK = 1_000
MIN_FILE_CHUNK = 500
ENVIRONMENT = Storage()
"""The object store as the environment describes it."""
ERRORS_FROM = 100
"""Number of inputs after which `max_error_fraction` can stop a job.

Half of the first few may be broken by chance.
"""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What goes in, what comes out, and how it is cut.

    Attributes:
        source: URL of the inputs.
        output: URL of the prefix below which each configuration has a folder of its own.
        storage: How inputs and outputs are read and written.
        input_format: What the inputs are; `auto` decides by their names.
        uri_column: Column of a manifest that names the images. Default: the first usual name.
        image_column: Column of a table that contains the images. Default: the first usual name.
        chunk_size: Number of inputs of one output file.
        file_bytes: Desired size of output files, within chunks of 500 to 5,000 inputs; overrides
            `chunk_size`.
        embeddings: Whether the image embeddings are stored.
        output_format: Format of the output files.
        compression: Compression of Parquet files.
        vocabulary: Vocabulary of the configuration. Default: its default one.
        quality: `high` also looks at overlapping tiles.
        partition_by: Column of a manifest whose values divide the output into folders.
        max_error_fraction: Part of the inputs that may fail before the job stops, in [0, 1].
        update: Whether the inputs are listed again, and changed ones are tagged again.
        retry_errors: Whether failed inputs are tagged again.
        limit: Maximum number of inputs; None for all.
    """

    source: str
    output: str
    storage: Storage = ENVIRONMENT
    input_format: InputFormat = "auto"
    uri_column: str | None = None
    image_column: str | None = None
    chunk_size: int = DEFAULT_CHUNK
    file_bytes: int | None = None
    embeddings: bool = False
    output_format: OutputFormat = "parquet"
    compression: Compression = "zstd"
    vocabulary: str | None = None
    quality: Quality = "standard"
    partition_by: str | None = None
    max_error_fraction: float = 0.5
    update: bool = False
    retry_errors: bool = False
    limit: int | None = None

    def with_chunk_size(self, row_bytes: float) -> "BatchOptions":
        """Return options whose chunks give files of the desired size.

        Args:
            row_bytes: Size of a row in an output file, in bytes.
        """
        if self.file_bytes is None:
            return self
        size = self.file_bytes / row_bytes
        return replace(self, chunk_size=int(min(MAX_CHUNK, max(MIN_FILE_CHUNK, size))))

    def check(self) -> None:
        """Raise `ConfigError` for a value that is out of bounds."""
        if not MIN_CHUNK <= self.chunk_size <= MAX_CHUNK:
            raise ConfigError(
                f"--chunk-size is {self.chunk_size}; it must lie between {MIN_CHUNK} and "
                f"{MAX_CHUNK:,}, best from 500 on."
            )
        if not 0 <= self.max_error_fraction <= 1:
            raise ConfigError(
                f"--max-error-fraction is {self.max_error_fraction}; it must lie between 0 and 1."
            )
        if self.update and self.limit is not None:
            raise ConfigError("--update lists all inputs again and does not go with --limit.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}; it must be at least 1.")

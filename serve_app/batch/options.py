"""What one batch job is asked to do."""

from dataclasses import dataclass, replace
from typing import Literal

from serve_app.batch.storage import Storage
from serve_app.errors import ConfigError
from serve_app.tagging.options import Quality

InputFormat = Literal["auto", "images", "manifest", "table", "webdataset"]
OutputFormat = Literal["parquet", "jsonl"]
Compression = Literal["snappy", "zstd"]

MIN_CHUNK = 1
MAX_CHUNK = 5_000
"""Inputs in a chunk.

Below 500 a bucket's worth of outputs are many small files; it is allowed for small jobs and tests.
"""
DEFAULT_CHUNK = 1_000
MIN_FILE_CHUNK = 500
ENVIRONMENT = Storage()
"""Without options, what the environment says."""
ERRORS_FROM = 100
"""Inputs that must be done before `max_error_fraction` stops a job: of the first few, half may be
broken by chance."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What goes in, what comes out, and how it is cut.

    Attributes:
        source: URL of the inputs.
        output: URL of the prefix below which each configuration has a folder of its own.
        storage: How both are read and written.
        input_format: What the inputs are; `auto` goes by their names.
        uri_column: Column of a manifest that names the pictures; the first of the usual names if
            left out.
        image_column: Column of a table that holds the pictures; the same.
        chunk_size: Inputs of one output file.
        file_bytes: Size that output files should have, as far as chunks of 500 to 5,000 inputs
            allow; goes before `chunk_size`.
        embeddings: Whether the image embeddings are stored too.
        output_format: Of the output files.
        compression: Of Parquet.
        vocabulary: Of the configuration, instead of its default one.
        quality: `high` also looks at overlapping tiles.
        partition_by: Column of a manifest by whose values the output is divided into folders.
        max_error_fraction: Part of the inputs that may fail before the job stops.
        update: Whether inputs are listed again, and what changed is done again.
        retry_errors: Whether inputs that failed are tried again.
        limit: Only the first so many inputs.
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
        """Return options whose chunks give files of the size that is asked for, where rows take so
        many bytes.
        """
        if self.file_bytes is None:
            return self
        return replace(
            self, chunk_size=int(min(MAX_CHUNK, max(MIN_FILE_CHUNK, self.file_bytes / row_bytes)))
        )

    def check(self) -> None:
        """Raise `ConfigError` for a value that is out of bounds."""
        if not MIN_CHUNK <= self.chunk_size <= MAX_CHUNK:
            raise ConfigError(
                f"--chunk-size is {self.chunk_size}; it must lie between {MIN_CHUNK} and {MAX_CHUNK:,}, best from 500 on."
            )
        if not 0 <= self.max_error_fraction <= 1:
            raise ConfigError(
                f"--max-error-fraction is {self.max_error_fraction}; it must lie between 0 and 1."
            )
        if self.update and self.limit is not None:
            raise ConfigError("--update lists all inputs again and does not go with --limit.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}; it must be at least 1.")

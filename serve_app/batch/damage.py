"""Damaged input files: each becomes an error row, and the other files are tagged.

A job over thousands of tar files or tables must not fail at the first truncated one. The job does
fail if the damaged file is its only input, or if no file of a folder can be read.
"""

import logging
from collections.abc import Iterator

import pyarrow as pa

from serve_app.batch.input_tables import DAMAGED, Kind, own_table
from serve_app.batch.storage import Stored
from serve_app.batch.urls import shown_url
from serve_app.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_LOGGED = 20
"""Number of damaged files that are logged individually; all of them are rows of the output."""


class DamagedFiles:
    """The damaged files of one job, recorded while its inputs are listed."""

    def __init__(self, alone: bool) -> None:
        """Start with no damaged files.

        Args:
            alone: Whether INPUT is a single file; its damage is an error unless part of it is read.
        """
        self._alone = alone
        self._first: ConfigError | None = None
        self._found: list[tuple[Stored, int | None]] = []
        self.readable = 0

    def add(self, found: Stored, error: ConfigError, offset: int | None = None) -> None:
        """Record one file.

        Args:
            found: The file.
            error: What is wrong.
            offset: The byte where the damage begins, if it is known.

        Raises:
            ConfigError: `error`, if this is the only file and nothing of it was read.
        """
        if self._alone and not self.readable:
            raise error
        self._first = self._first or error
        self._found.append((found, offset))
        if len(self._found) <= MAX_LOGGED:
            logger.warning("the rest of this file is skipped: %s", error)

    def rows(self, kind: Kind) -> Iterator[pa.Table]:
        """Yield an input for each damaged file; reading it gives an error row.

        Raises:
            ConfigError: The first problem, if nothing was readable at all.
        """
        if self._first is not None and not self.readable:
            raise self._first
        if len(self._found) > MAX_LOGGED:
            logger.warning(
                "%d more files are damaged; see the rows with errors", len(self._found) - MAX_LOGGED
            )
        for found, offset in self._found:
            uri = f"{shown_url(found.url)}#damaged"
            if kind == "member" and offset is not None:
                yield own_table(
                    [f"{uri}-at-byte-{offset}"], [found.etag], [None], [found.url], [offset]
                )
            else:
                yield own_table([uri], [found.etag], [None], [found.url], [DAMAGED])

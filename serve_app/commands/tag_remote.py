"""Tags images by a running service, with the same output as in this process."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeGuard

import numpy as np

from serve_app.client import AsyncClient, Tagged, TaggedFile
from serve_app.client.base_client import CONCURRENCY
from serve_app.client.options import Options
from serve_app.commands.api_key import read_api_key
from serve_app.commands.files import expand, progress_bar, shown
from serve_app.commands.json_lines import ShownOutcome, json_line
from serve_app.commands.line_file import keep_done
from serve_app.commands.stored import StoredEmbeddings, write_embeddings
from serve_app.commands.tags_table import print_table
from serve_app.errors import (
    InvalidRequest,
    RequestError,
    TaggerError,
    Unauthorized,
    Unavailable,
    UnknownVocabulary,
)
from serve_app.terminal.printable import print_line


@dataclass(frozen=True, slots=True)
class Server:
    """Where pictures are tagged.

    Attributes:
        url: The service's address.
        api_key_file: A file that holds the key; the environment's key if left out.
        concurrency: Pictures under way at the same time.
    """

    url: str
    api_key_file: Path | None = None
    concurrency: int = CONCURRENCY

    def client(self) -> AsyncClient:
        """Return a client of it; raises `ConfigError` if the address or the key cannot work."""
        return AsyncClient(self.url, read_api_key(self.api_key_file))


@dataclass(frozen=True, slots=True)
class Output:
    """Where the outcomes go.

    Attributes:
        as_json: One JSON object a line on standard output, instead of a table.
        out: A file for the lines instead, which a run that was broken off goes on with.
        embeddings: Where to store the embeddings.
    """

    as_json: bool = False
    out: Path | None = None
    embeddings: Path | None = None


class _Results:
    """What has come in so far, as much of it as the output needs: a run over many pictures keeps
    none of them.
    """

    def __init__(self, output: Output, lines: TextIO | None) -> None:
        self._lines = lines
        self._output = output
        self.failed = self.tagged = 0
        self.tables: dict[Path, ShownOutcome] = {}
        self.embeddings: dict[str, tuple[float, ...]] = {}

    def take(self, file: TaggedFile) -> None:
        """Write or keep one outcome."""
        outcome: ShownOutcome = (
            file.outcome.tags if isinstance(file.outcome, Tagged) else file.outcome
        )
        self.failed += isinstance(outcome, TaggerError)
        self.tagged += not isinstance(outcome, TaggerError)
        if self._lines is None:
            self.tables[file.path] = outcome
        else:
            print_line(json_line(shown(file.path), outcome), file=self._lines, flush=True)
        if (
            self._output.embeddings is not None
            and isinstance(file.outcome, Tagged)
            and file.outcome.embedding is not None
        ):
            self.embeddings[shown(file.path)] = file.outcome.embedding


def tag_on_server(photos: Sequence[Path], server: Server, options: Options, output: Output) -> int:
    """Tag files and print what they show; return 1 if one of them could not be tagged, else 0.

    Raises:
        ConfigError: The address or the key cannot work.
        InvalidRequest: A file is not there, or an option cannot work.
        TaggerError: The service is not there, or refuses whatever is sent.
    """
    if output.out is not None and output.embeddings is not None:
        raise InvalidRequest(
            "--save-embeddings cannot be resumed, so it does not go with --out; "
            "leave one of them out."
        )
    files = expand(photos)
    client = server.client()
    if output.out is not None:
        return _go_on(files, client, server, options, output, output.out)
    results = _Results(output, sys.stdout if output.as_json else None)
    _run(client, server, files, options, results, output)
    if not output.as_json:
        print_table(results.tables)
    if output.embeddings is not None and results.embeddings:
        rows = np.array(list(results.embeddings.values()), np.float32)
        write_embeddings(StoredEmbeddings(tuple(results.embeddings), rows, None), output.embeddings)
    return int(results.failed > 0)


def _go_on(
    files: Sequence[Path],
    client: AsyncClient,
    server: Server,
    options: Options,
    output: Output,
    out: Path,
) -> int:
    done = keep_done(out)
    left = [file for file in files if shown(file) not in done]
    try:
        lines = out.open("a", encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{out} cannot be written: {error.strerror}.") from error
    with lines:
        results = _Results(output, lines)
        _run(client, server, left, options, results, output)
    print_line(
        f"{results.tagged} tagged, {results.failed} failed, "
        f"{len(files) - len(left)} were there already: {out}",
        file=sys.stderr,
    )
    return int(results.failed > 0)


def _run(
    client: AsyncClient,
    server: Server,
    files: Sequence[Path],
    options: Options,
    results: _Results,
    output: Output,
) -> None:
    async def run() -> None:
        """Tag every file, unless every other one would fare as badly."""
        async with client:
            found = client.tag_files(
                files,
                concurrency=server.concurrency,
                in_order=True,
                return_embedding=output.embeddings is not None,
                **options,
            )
            async with aclosing(found):
                async for file in found:
                    if _concerns_all(file.outcome):
                        raise file.outcome
                    results.take(file)
                    advance(1)

    with progress_bar(len(files), "Tagging") as advance:
        asyncio.run(run())


def _concerns_all(outcome: Tagged | TaggerError) -> TypeGuard[TaggerError]:
    """Whether every other picture would fare the same: the service is gone, or refuses the key, the
    path or an option.
    """
    return (
        isinstance(outcome, InvalidRequest | Unauthorized | UnknownVocabulary | Unavailable)
        or type(outcome) is RequestError
    )

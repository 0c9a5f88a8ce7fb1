"""Tags images with a running service, and prints the same output as `tag_local.py`."""

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
from serve_app.commands.embeddings_file import StoredEmbeddings, write_embeddings
from serve_app.commands.files import expand, printable_path, progress_bar
from serve_app.commands.json_lines import PrintableOutcome, json_line
from serve_app.commands.resume_file import keep_tagged
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
    """The service that tags the images.

    Attributes:
        url: The service's address.
        api_key_file: A file with the API key; None to use the environment variable.
        concurrency: Number of images in flight.
    """

    url: str
    api_key_file: Path | None = None
    concurrency: int = CONCURRENCY

    def client(self) -> AsyncClient:
        """Return a client of the service.

        Raises:
            ConfigError: The address or the key is not valid, or the key file cannot be read.
        """
        return AsyncClient(self.url, read_api_key(self.api_key_file))


@dataclass(frozen=True, slots=True)
class Output:
    """Format and destination of the outcomes.

    Attributes:
        as_json: Whether to print JSON lines on standard output instead of a table.
        out: File for the JSON lines instead of standard output; a later run resumes from it.
        embeddings: File for the embeddings.
    """

    as_json: bool = False
    out: Path | None = None
    embeddings: Path | None = None


class _Results:
    """Writes outcomes as lines, or collects them for a table.

    Outcomes that are written as lines are not kept in memory, so a run may have many images.
    """

    def __init__(self, output: Output, lines: TextIO | None) -> None:
        self._lines = lines
        self._with_embeddings = output.embeddings is not None
        self.num_failed = 0
        self.num_tagged = 0
        self.outcomes: dict[Path, PrintableOutcome] = {}
        self.embeddings: dict[str, tuple[float, ...]] = {}

    def add(self, file: TaggedFile) -> None:
        """Write or collect the outcome of one file."""
        outcome: PrintableOutcome
        if isinstance(file.outcome, Tagged):
            self.num_tagged += 1
            outcome = file.outcome.tags
            if self._with_embeddings and file.outcome.embedding is not None:
                self.embeddings[printable_path(file.path)] = file.outcome.embedding
        else:
            self.num_failed += 1
            outcome = file.outcome

        if self._lines is None:
            self.outcomes[file.path] = outcome
        else:
            line = json_line(printable_path(file.path), outcome)
            print_line(line, file=self._lines, flush=True)


def tag_on_server(paths: Sequence[Path], server: Server, options: Options, output: Output) -> int:
    """Tag files and print their tags; return 1 if one of them could not be tagged, else 0.

    Raises:
        ConfigError: The address or the key is not valid.
        InvalidRequest: None of the paths exists, or an option is not valid.
        TaggerError: The service is unavailable, or rejects every request.
    """
    if output.out is not None and output.embeddings is not None:
        raise InvalidRequest(
            "--save-embeddings cannot be resumed, so it does not go with --out; "
            "leave one of them out."
        )
    files = expand(paths)
    client = server.client()
    if output.out is not None:
        return _resume(files, client, server, options, output, output.out)

    results = _Results(output, sys.stdout if output.as_json else None)
    _run(client, server, files, options, results, output)
    if not output.as_json:
        print_table(results.outcomes)
    if output.embeddings is not None and results.embeddings:
        rows = np.array(list(results.embeddings.values()), np.float32)
        write_embeddings(StoredEmbeddings(tuple(results.embeddings), rows, None), output.embeddings)
    return int(results.num_failed > 0)


def _resume(
    files: Sequence[Path],
    client: AsyncClient,
    server: Server,
    options: Options,
    output: Output,
    out: Path,
) -> int:
    """Tag the files that `out` has no tags of yet, and append their lines to it."""
    tagged = keep_tagged(out)
    remaining = [file for file in files if printable_path(file) not in tagged]
    try:
        lines = out.open("a", encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{out} cannot be written: {error.strerror}.") from error
    with lines:
        results = _Results(output, lines)
        _run(client, server, remaining, options, results, output)
    print_line(
        f"{results.num_tagged} tagged, {results.num_failed} failed, "
        f"{len(files) - len(remaining)} already tagged: {out}",
        file=sys.stderr,
    )
    return int(results.num_failed > 0)


def _run(
    client: AsyncClient,
    server: Server,
    files: Sequence[Path],
    options: Options,
    results: _Results,
    output: Output,
) -> None:
    async def run() -> None:
        """Tag every file; stop at the first error that all other files would have too."""
        async with client:
            tagged_files = client.tag_files(
                files,
                concurrency=server.concurrency,
                in_order=True,
                return_embedding=output.embeddings is not None,
                **options,
            )
            async with aclosing(tagged_files):
                async for file in tagged_files:
                    if _affects_all(file.outcome):
                        raise file.outcome
                    results.add(file)
                    advance(1)

    with progress_bar(len(files), "Tagging") as advance:
        asyncio.run(run())


def _affects_all(outcome: Tagged | TaggerError) -> TypeGuard[TaggerError]:
    """Return whether every other image would fail with the same error.

    This is so if the service is unavailable, or rejects the key, the path or an option.
    """
    return (
        isinstance(outcome, InvalidRequest | Unauthorized | UnknownVocabulary | Unavailable)
        or type(outcome) is RequestError
    )

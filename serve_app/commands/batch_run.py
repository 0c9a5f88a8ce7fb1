"""Runs a batch job with the arguments of the command line, and prints its result."""

import argparse

from serve_app.batch.job import JobResult
from serve_app.batch.options import DEFAULT_CHUNK, BatchOptions
from serve_app.batch.report import write_report
from serve_app.batch.retag import run_retag_job
from serve_app.batch.service_engine import DEFAULT_CONCURRENCY, TaggingService
from serve_app.batch.sidecars import write_sidecars
from serve_app.batch.storage import Storage, shown_url, url_of
from serve_app.batch.tagging_job import run_job
from serve_app.batch.through_service import run_service_job
from serve_app.commands.api_key import read_api_key
from serve_app.commands.arguments import config_of
from serve_app.errors import ConfigError
from serve_app.terminal.console import facts_table, output_console

PLAIN_WIDTH = 200
"""Width if standard output is not a terminal; a URL should fit on one line."""


def run_batch(args: argparse.Namespace) -> int:
    """Run a job, write its report and sidecars, and print its result.

    Raises:
        ConfigError: An argument is not valid.
        TaggerError: The job fails.
    """
    options = _options_of(args)
    result = _run_job(args, options)
    written: dict[str, str] = {}
    if args.xmp is not None:
        written["XMP sidecars"] = _write_sidecars(args.xmp, options, result)
    if args.report is not None:
        write_report(url_of(args.report), options, result)
        written["report"] = args.report
    _print_result(result, written)
    return 0


def _options_of(args: argparse.Namespace) -> BatchOptions:
    return BatchOptions(
        source=url_of(args.input),
        output=url_of(args.output),
        storage=Storage(tuple(_storage_option(text) for text in args.storage_option)),
        input_format=args.input_format,
        uri_column=args.uri_column,
        image_column=args.image_column,
        chunk_size=DEFAULT_CHUNK if args.chunk_size is None else args.chunk_size,
        file_bytes=None if args.file_mb is None else int(args.file_mb * 1e6),
        embeddings=args.embeddings,
        output_format=args.format,
        compression=args.compression,
        vocabulary=args.vocabulary,
        quality=args.quality,
        partition_by=args.partition_by,
        max_error_fraction=args.max_error_fraction,
        update=args.update,
        retry_errors=args.retry_errors,
        limit=args.limit,
    )


def _storage_option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--storage-option {key}: write it as KEY=VALUE, "
            "such as endpoint=http://127.0.0.1:9000."
        )
    return key, value


def _run_job(args: argparse.Namespace, options: BatchOptions) -> JobResult:
    if args.through_service:
        concurrency = DEFAULT_CONCURRENCY if args.concurrency is None else args.concurrency
        api_key = read_api_key(args.api_key_file)
        service = TaggingService(args.through_service, api_key, concurrency)
        return run_service_job(service, options)
    if args.from_embeddings:
        return run_retag_job(config_of(args), options, args.address)
    return run_job(config_of(args), options, args.address)


def _write_sidecars(prefix: str, options: BatchOptions, result: JobResult) -> str:
    """Write sidecars, and return a description of how many there are."""
    sidecars = write_sidecars(url_of(prefix), options, result)
    counts = [f"{sidecars.written:,} written"]
    if sidecars.left_alone:
        counts.append(f"{sidecars.left_alone:,} skipped because another program wrote them")
    if sidecars.failed:
        counts.append(f"{sidecars.failed:,} could not be written")
    return ", ".join(counts)


def _print_result(result: JobResult, written: dict[str, str]) -> None:
    failed = sum(result.errors.values())
    rate = f", {result.per_second:,.1f} a second" if result.encoded else ""
    table = facts_table()
    table.add_row("inputs", f"{result.inputs:,}")
    table.add_row("tagged", f"{result.inputs - failed:,}")
    for code, count in sorted(result.errors.items(), key=lambda item: -item[1]):
        table.add_row(f"error {code}", f"{count:,}")
    table.add_row("done by this run", f"{result.encoded:,}{rate}")
    table.add_row("output", f"{shown_url(result.folder)} ({result.nbytes / 1e6:,.1f} MB)")
    for name, text in written.items():
        table.add_row(name, text)
    output_console(PLAIN_WIDTH).print(table)

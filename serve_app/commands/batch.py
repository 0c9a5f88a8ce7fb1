"""`siglip-serve batch`: a whole folder, bucket or table tagged into Parquet, resumable."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.config.service import ServiceConfig
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from serve_app.batch.job import JobResult
    from serve_app.batch.options import BatchOptions


def add_batch_arguments(batch: argparse.ArgumentParser) -> None:
    """Add what `batch` takes."""
    batch.add_argument(
        "input",
        metavar="INPUT",
        help="a folder, s3://, gs:// or az:// prefix, a manifest or table, or .tar shards",
    )
    batch.add_argument(
        "output",
        metavar="OUTPUT",
        help="a folder or prefix; each configuration gets a folder of its own below it",
    )
    batch.add_argument("--config", type=Path, help="configuration; the embedded demo's if left out")
    batch.add_argument(
        "--address", help="a Ray cluster; RAY_ADDRESS, or a new one on this machine, if left out"
    )
    batch.add_argument(
        "--storage-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the object store, such as endpoint=URL",
    )
    batch.add_argument(
        "--input-format",
        choices=("auto", "images", "manifest", "table", "webdataset"),
        default="auto",
    )
    batch.add_argument(
        "--uri-column", metavar="NAME", help="column of a manifest that names the pictures"
    )
    batch.add_argument(
        "--image-column", metavar="NAME", help="column of a table that holds the pictures"
    )
    batch.add_argument("--limit", type=int, metavar="N", help="only the first so many inputs")
    batch.add_argument("--vocabulary", help="of the configuration, instead of its default one")
    batch.add_argument(
        "--quality",
        choices=("standard", "high"),
        default="standard",
        help="high: also look at overlapping tiles",
    )
    batch.add_argument(
        "--embeddings",
        action="store_true",
        help="store the image embeddings too, to tag them again later",
    )
    batch.add_argument(
        "--format", choices=("parquet", "jsonl"), default="parquet", help="of the output files"
    )
    batch.add_argument(
        "--compression", choices=("snappy", "zstd"), default="zstd", help="of Parquet"
    )
    size = batch.add_mutually_exclusive_group()
    size.add_argument(
        "--chunk-size", type=int, metavar="N", help="inputs of one output file; 1,000 if left out"
    )
    size.add_argument(
        "--file-mb",
        type=float,
        metavar="MB",
        help="about the size of one output file, within 500 to 5,000 inputs",
    )
    batch.add_argument(
        "--partition-by",
        metavar="COLUMN",
        help="divide the output by the values of a column of the manifest",
    )
    batch.add_argument(
        "--update", action="store_true", help="list the inputs again, and do what is new or changed"
    )
    batch.add_argument(
        "--retry-errors", action="store_true", help="do the inputs again that failed"
    )
    batch.add_argument(
        "--from-embeddings",
        action="store_true",
        help="INPUT is an earlier job's output: tag its embeddings again",
    )
    batch.add_argument(
        "--report", metavar="FILE", help="write a contact sheet of a sample there, as HTML"
    )
    batch.add_argument(
        "--xmp", metavar="PREFIX", help="write an XMP sidecar for each tagged picture below there"
    )
    batch.add_argument(
        "--through-service",
        metavar="URL",
        help="let a running service tag the pictures; its configuration holds",
    )
    batch.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="of the service; the environment's SIGLIP_API_KEY if left out",
    )
    batch.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="requests under way with --through-service; 32 if left out",
    )
    batch.add_argument(
        "--max-error-fraction",
        type=float,
        default=0.5,
        metavar="F",
        help="stop when more than this part fails",
    )


def run_batch(
    given: argparse.Namespace, config: Callable[[argparse.Namespace], ServiceConfig]
) -> int:
    """Run a job and print how it ended; return the exit status.

    Raises:
        ConfigError: An argument that cannot work.
        TaggerError: What the job raises.
    """
    try:
        import obstore  # noqa: F401

        from serve_app.batch.options import DEFAULT_CHUNK, BatchOptions
        from serve_app.batch.storage import Storage, url_of
    except ImportError as error:
        raise ConfigError(
            f"batch needs {error.name}; install siglip-serve[serve,batch]."
        ) from error
    options = BatchOptions(
        source=url_of(given.input),
        output=url_of(given.output),
        storage=Storage(tuple(_pair(text) for text in given.storage_option)),
        input_format=given.input_format,
        uri_column=given.uri_column,
        image_column=given.image_column,
        chunk_size=DEFAULT_CHUNK if given.chunk_size is None else given.chunk_size,
        file_bytes=None if given.file_mb is None else int(given.file_mb * 1e6),
        embeddings=given.embeddings,
        output_format=given.format,
        compression=given.compression,
        vocabulary=given.vocabulary,
        quality=given.quality,
        partition_by=given.partition_by,
        max_error_fraction=given.max_error_fraction,
        update=given.update,
        retry_errors=given.retry_errors,
        limit=given.limit,
    )
    _check_engine(given)
    result = _run(given, options, config)
    more: dict[str, str] = {}
    if given.xmp is not None:
        from serve_app.batch.sidecars import write_sidecars

        sidecars = write_sidecars(url_of(given.xmp), options, result)
        alone = (
            f", {sidecars.left_alone:,} left alone that another program wrote"
            if sidecars.left_alone
            else ""
        )
        failed = f", {sidecars.failed:,} could not be written" if sidecars.failed else ""
        more["XMP sidecars"] = f"{sidecars.written:,} written{alone}{failed}"
    if given.report is not None:
        from serve_app.batch.report import write_report

        write_report(url_of(given.report), options, result)
        more["report"] = given.report
    _print(result, more)
    return 0


def _run(
    given: argparse.Namespace,
    options: "BatchOptions",
    config: Callable[[argparse.Namespace], ServiceConfig],
) -> "JobResult":
    if given.through_service:
        from serve_app.batch.service_engine import DEFAULT_CONCURRENCY, TaggingService
        from serve_app.batch.through_service import run_service_job
        from serve_app.commands.tag_remote import read_api_key

        concurrency = DEFAULT_CONCURRENCY if given.concurrency is None else given.concurrency
        api_key = read_api_key(given.api_key_file)
        service = TaggingService(given.through_service, api_key, concurrency)
        return run_service_job(service, options)
    if given.from_embeddings:
        from serve_app.batch.retag import run_retag_job

        return run_retag_job(config(given), options, given.address)
    from serve_app.batch.tagging_job import run_job

    return run_job(config(given), options, given.address)


def _check_engine(given: argparse.Namespace) -> None:
    """Raise `ConfigError` for arguments of different engines."""
    others = {
        "--config": given.config,
        "--address": given.address,
        "--from-embeddings": given.from_embeddings,
    }
    if given.through_service and (wrong := [name for name, value in others.items() if value]):
        raise ConfigError(
            f"{', '.join(wrong)} does not go with --through-service: the service has its own configuration and model."
        )
    only = {"--api-key-file": given.api_key_file, "--concurrency": given.concurrency}
    if not given.through_service and (
        wrong := [name for name, value in only.items() if value is not None]
    ):
        raise ConfigError(f"{', '.join(wrong)} needs --through-service.")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--storage-option {key}: write it as KEY=VALUE, such as endpoint=http://127.0.0.1:9000."
        )
    return key, value


def _print(result: "JobResult", more: dict[str, str]) -> None:
    from serve_app.batch.storage import shown_url
    from serve_app.terminal.console import facts_table, output_console

    table = facts_table()
    failed = sum(result.errors.values())
    table.add_row("inputs", f"{result.inputs:,}")
    table.add_row("tagged", f"{result.inputs - failed:,}")
    for code, count in sorted(result.errors.items(), key=lambda item: -item[1]):
        table.add_row(f"error {code}", f"{count:,}")
    table.add_row(
        "done by this run",
        f"{result.encoded:,}" + (f", {result.per_second:,.1f} a second" if result.encoded else ""),
    )
    table.add_row("output", f"{shown_url(result.folder)} ({result.nbytes / 1e6:,.1f} MB)")
    for name, told in more.items():
        table.add_row(name, told)
    output_console(plain_width=200).print(table)

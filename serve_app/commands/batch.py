"""`siglip-serve batch`: tags a folder, bucket or table into Parquet; a job can be resumed.

`batch_run.py` runs the job and prints its result.
"""

import argparse
import os

from serve_app.commands.api_key import add_api_key_argument
from serve_app.commands.arguments import (
    add_config_argument,
    add_flag,
    add_quality_argument,
    add_vocabulary_argument,
)
from serve_app.errors import ConfigError
from serve_app.processes.supervisor import supervised


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `batch`."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="a folder, s3://, gs:// or az:// prefix, a manifest or table, or .tar shards",
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="a folder or prefix; each configuration gets its own folder in it",
    )
    add_config_argument(parser)
    parser.add_argument(
        "--address", help="a Ray cluster; default: RAY_ADDRESS, or a new one on this machine"
    )
    parser.add_argument(
        "--storage-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the object store, such as endpoint=URL",
    )
    _add_input_arguments(parser)
    add_vocabulary_argument(parser)
    add_quality_argument(parser)
    _add_output_arguments(parser)
    _add_resume_arguments(parser)
    _add_service_arguments(parser)


def _add_input_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input-format",
        choices=("auto", "images", "manifest", "table", "webdataset"),
        default="auto",
        help="format of INPUT; auto detects it",
    )
    parser.add_argument(
        "--uri-column", metavar="NAME", help="the column of a manifest that names the images"
    )
    parser.add_argument(
        "--image-column", metavar="NAME", help="the column of a table that holds the images"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="process only the first N inputs")
    add_flag(
        parser,
        "--from-embeddings",
        "INPUT is the output of an earlier job; tag its embeddings again",
    )


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--embeddings", "also store the image embeddings, to tag them again later")
    parser.add_argument(
        "--format",
        choices=("parquet", "jsonl"),
        default="parquet",
        help="format of the output files",
    )
    parser.add_argument(
        "--compression",
        choices=("snappy", "zstd"),
        default="zstd",
        help="compression of Parquet files",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--chunk-size",
        type=int,
        metavar="N",
        help="number of inputs in one output file; default: 1,000",
    )
    size.add_argument(
        "--file-mb",
        type=float,
        metavar="MB",
        help="approximate size of one output file; it has 500 to 5,000 inputs",
    )
    parser.add_argument(
        "--partition-by",
        metavar="COLUMN",
        help="partition the output by the values of a column of the manifest",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="write a contact sheet of a sample as HTML to this file"
    )
    parser.add_argument(
        "--xmp",
        metavar="PREFIX",
        help="write an XMP sidecar for each tagged image below this prefix",
    )


def _add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--update", "list the inputs again, and process new and changed ones")
    add_flag(parser, "--retry-errors", "process the failed inputs again")
    parser.add_argument(
        "--max-error-fraction",
        type=float,
        default=0.5,
        metavar="F",
        help="stop if more than this fraction of the inputs fails",
    )


def _add_service_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--through-service",
        metavar="URL",
        help="tag the images with a running service, which uses its own configuration",
    )
    add_api_key_argument(parser)
    parser.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="number of images in flight with --through-service; default: 32",
    )


def run(args: argparse.Namespace) -> int:
    """Run a job and print its result.

    A job that starts Ray on this machine runs in a child process, so that no process of Ray is left
    behind.

    Raises:
        ConfigError: Two arguments exclude each other.
        TaggerError: The job fails.
    """
    _check_engine(args)
    if args.is_program and _starts_ray(args):
        return supervised(lambda: _run_job(args))
    return _run_job(args)


def _run_job(args: argparse.Namespace) -> int:
    # imports Ray, which only the process that runs the job should import
    from serve_app.commands.batch_run import run_batch

    return run_batch(args)


def _starts_ray(args: argparse.Namespace) -> bool:
    return not (args.address or args.through_service or os.environ.get("RAY_ADDRESS"))


def _check_engine(args: argparse.Namespace) -> None:
    """Raise `ConfigError` if an argument needs `--through-service`, or does not go with it."""
    local = {
        "--config": args.config,
        "--address": args.address,
        "--from-embeddings": args.from_embeddings,
    }
    wrong = [name for name, value in local.items() if value]
    if args.through_service and wrong:
        raise ConfigError(
            f"{', '.join(wrong)} does not go with --through-service: "
            "the service has its own configuration and model."
        )
    remote = {"--api-key-file": args.api_key_file, "--concurrency": args.concurrency}
    wrong = [name for name, value in remote.items() if value is not None]
    if not args.through_service and wrong:
        raise ConfigError(f"{', '.join(wrong)} needs --through-service.")

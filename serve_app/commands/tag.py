"""`siglip-serve tag`: tags images, in this process or with a running service.

`tag_local.py` tags images in this process, and `tag_remote.py` with a service.
"""

import argparse
from pathlib import Path

from serve_app.client.base_client import CONCURRENCY
from serve_app.client.options import Options
from serve_app.commands.api_key import add_api_key_argument
from serve_app.commands.arguments import (
    add_config_argument,
    add_flag,
    add_labels_argument,
    add_quality_argument,
    add_threshold_argument,
    config_of,
    labels_of,
)
from serve_app.commands.tag_local import tag_files
from serve_app.commands.tag_remote import Output, Server, tag_on_server
from serve_app.errors import InvalidRequest
from serve_app.tagging.options import tag_options

ONLY_WITH_SERVER = ("api_key_file", "concurrency", "out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tag`."""
    parser.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTO", help="an image, or a folder of images"
    )
    add_labels_argument(parser)
    add_threshold_argument(parser)
    add_config_argument(parser)
    add_flag(parser, "--json", "print one line of JSON for each image")
    add_quality_argument(parser)
    parser.add_argument(
        "--save-embeddings",
        type=Path,
        metavar="FILE",
        help="store the embeddings in this file (safetensors) for `score`",
    )
    _add_server_arguments(parser.add_argument_group("with a running service"))


def _add_server_arguments(server: argparse._ArgumentGroup) -> None:
    server.add_argument(
        "--server",
        metavar="URL",
        help="address of a running service that tags the images, such as http://127.0.0.1:8000",
    )
    add_api_key_argument(server)
    server.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help=f"number of images in flight; default: {CONCURRENCY}",
    )
    server.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write JSON lines to this file, and skip the images that it already contains",
    )


def run(args: argparse.Namespace) -> int:
    """Tag images, and return 1 if one of them could not be tagged.

    Raises:
        InvalidRequest: Two arguments exclude each other.
        TaggerError: An error affects all images, such as an unavailable service.
    """
    options: Options = {
        "labels": labels_of(args),
        "confidence_threshold": args.threshold,
        "quality": args.quality,
    }
    if args.server is not None:
        return _run_remote(args, options)

    for name in ONLY_WITH_SERVER:
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise InvalidRequest(f"--{option} needs --server, the address of a running service.")
    return tag_files(
        args.photos,
        config_of(args),
        tag_options(**options),
        as_json=args.json,
        embeddings=args.save_embeddings,
    )


def _run_remote(args: argparse.Namespace, options: Options) -> int:
    if args.config is not None:
        raise InvalidRequest(
            "--config does not go with --server: the service has its own configuration. "
            "Leave one of them out."
        )
    concurrency = CONCURRENCY if args.concurrency is None else args.concurrency
    server = Server(args.server, args.api_key_file, concurrency)
    output = Output(args.json, args.out, args.save_embeddings)
    return tag_on_server(args.photos, server, options, output)

"""The arguments of `siglip-serve tag`, and which way of tagging they ask for.

Nothing heavy is imported before it is needed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from serve_app.client.options import Options
from serve_app.config.service import ServiceConfig
from serve_app.errors import InvalidRequest
from serve_app.tagging.options import tag_options


def add_tag_arguments(tag: argparse.ArgumentParser) -> None:
    """Add what `tag` takes, here and with a service."""
    tag.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTO", help="a picture, or a folder of pictures"
    )
    tag.add_argument(
        "--labels", help="labels to score instead of the configuration's, with commas between"
    )
    tag.add_argument("--threshold", type=float, help="least confidence of a tag")
    tag.add_argument("--config", type=Path, help="configuration; the embedded demo's if left out")
    tag.add_argument("--json", action="store_true", help="one JSON object a picture and line")
    tag.add_argument(
        "--quality",
        choices=("standard", "high"),
        default="standard",
        help="high: also look at overlapping tiles",
    )
    tag.add_argument(
        "--save-embeddings",
        type=Path,
        metavar="FILE",
        help="store the embeddings (safetensors) for `score`",
    )
    server = tag.add_argument_group("with a running service")
    server.add_argument(
        "--server",
        metavar="URL",
        help="tag there instead of in this process, such as http://127.0.0.1:8000",
    )
    server.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="holds the key; the environment's SIGLIP_API_KEY if left out",
    )
    server.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="pictures under way at the same time; 8 if left out",
    )
    server.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write JSON lines there; pictures that it has already are left out",
    )


def run_tag(
    given: argparse.Namespace,
    labels: tuple[str, ...] | None,
    config: Callable[[argparse.Namespace], ServiceConfig],
) -> int:
    """Tag pictures here or by a service, and return the exit status.

    Raises:
        InvalidRequest: Arguments that do not go together.
        TaggerError: What the command raises.
    """
    options: Options = {
        "labels": labels,
        "confidence_threshold": given.threshold,
        "quality": given.quality,
    }
    if given.server is not None:
        return _run_remote(given, options)
    for name in ("api_key_file", "concurrency", "out"):
        if getattr(given, name) is not None:
            raise InvalidRequest(
                f"--{name.replace('_', '-')} needs --server, the address of a running service."
            )

    from serve_app.commands.tag import tag_files

    return tag_files(
        given.photos,
        config(given),
        tag_options(**options),
        as_json=given.json,
        embeddings=given.save_embeddings,
    )


def _run_remote(given: argparse.Namespace, options: Options) -> int:
    from serve_app.client.face import CONCURRENCY
    from serve_app.commands.tag_remote import Output, Server, tag_on_server

    if given.config is not None:
        raise InvalidRequest(
            "--config does not go with --server: the service has its own configuration. Leave one of them out."
        )
    concurrency = CONCURRENCY if given.concurrency is None else given.concurrency
    server = Server(given.server, given.api_key_file, concurrency)
    output = Output(given.json, given.out, given.save_embeddings)
    return tag_on_server(given.photos, server, options, output)

"""`siglip-serve`: the root of the command line, and the table of its commands.

Each command is a module of `commands/` with two functions: `add_arguments`, which fills its parser,
and `run`, which does the work. A module is imported only when its command is chosen, so that
`siglip-serve --help` is fast and works without the packages that only some commands need.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from serve_app import __version__
from serve_app.errors import ConfigError, TaggerError
from serve_app.siglip.hub_errors import check_hub_environment
from serve_app.telemetry.logs import configure_logging
from serve_app.terminal.printable import print_line, printable


class Command(NamedTuple):
    """An entry in the table of commands; its module is `serve_app.commands.<name>`.

    Attributes:
        summary: One sentence for `--help`.
        extra: The extra of this package that installs the command's dependencies.
    """

    summary: str
    extra: str


COMMANDS = {
    "serve": Command("Start the service on this machine; stop it with Ctrl-C.", "serve"),
    "tag": Command("Tag images in this process or with a running service.", "local"),
    "batch": Command(
        "Tag a folder, a bucket or a table into Parquet; stopped jobs resume.", "serve,batch"
    ),
    "score": Command("Tag stored embeddings without decoding the images again.", "local"),
    "vocab": Command("Build, show or compare vocabularies.", "local"),
    "calibrate": Command(
        "Calibrate a vocabulary's scores on images, with or without labels.", "local"
    ),
    "evaluate": Command("Measure the quality of tags on labelled images.", "local"),
    "render": Command("Print the Serve config for one or more configurations.", "serve"),
    "k8s": Command("Plan and render the RayService of a Kubernetes cluster.", "serve"),
    "fetch": Command("Download a checkpoint in advance and print its commit.", "local"),
    "deploy": Command("Apply a configuration to a running Ray cluster.", "serve"),
    "plan": Command(
        "Print the planned dtype, batch size, GPU shares and replicas, with reasons.", "serve"
    ),
    "check": Command("Report the problems of a configuration, one per line.", "local"),
    "key": Command("Create an API key for a client.", "serve"),
    "env": Command(
        "Print the environment variables that every Ray node of a cluster needs.", "serve"
    ),
}


def main(arguments: Sequence[str] | None = None, *, is_program: bool = False) -> int:
    """Run a command and return its exit status: 0, or 1 with the error on standard error.

    Args:
        arguments: Command-line arguments; default: those of this process.
        is_program: Whether this process only runs the command. Then a command that starts Ray may
            run it in a child process and kill the processes that the child leaves.
    """
    words = sys.argv[1:] if arguments is None else arguments
    chosen = words[0] if words else ""
    try:
        args = build_parser([chosen]).parse_args(words)
        args.is_program = is_program
        configure_logging(args.verbose)
        check_hub_environment()
        status: int = args.run(args)
        return status
    except TaggerError as error:
        _print_error(error)
        return 1
    except ModuleNotFoundError as error:
        _print_error(_missing_package(chosen, error))
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser(loaded: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        loaded: Commands whose modules are imported to add their arguments. The other commands only
            have a line in the help.
    """
    parser = _Parser(prog="siglip-serve", description="Tag images with SigLIP and SigLIP 2.")
    parser.add_argument("--version", action="version", version=f"siglip-serve {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command_parser = commands.add_parser(
            name, help=command.summary, description=command.summary
        )
        command_parser.add_argument("-v", "--verbose", action="store_true", help="log more")
        if name in loaded:
            module = importlib.import_module(f"serve_app.commands.{name}")
            module.add_arguments(command_parser)
            command_parser.set_defaults(run=module.run)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that escapes hidden characters of arguments, such as file names, in messages."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _print_error(error: TaggerError) -> None:
    # not splitlines, which would also split at characters inside a name
    for line in str(error).split("\n"):
        print_line(f"siglip-serve: {line}", file=sys.stderr)


def _missing_package(name: str, error: ModuleNotFoundError) -> ConfigError:
    """Return the error for a package that is not installed; re-raise errors that are our bugs."""
    if name not in COMMANDS or (error.name or "").split(".")[0] == "serve_app":
        raise error
    return ConfigError(
        f"{name} needs {error.name}, which is not installed; "
        f"install siglip-serve[{COMMANDS[name].extra}]."
    )

"""`siglip-serve`: the commands, thin over the rest of the package. Nothing heavy is imported before a command needs it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from serve_app import __version__
from serve_app.config import load_config
from serve_app.errors import TaggerError
from serve_app.logs import configure_logging
from serve_app.tagging.settings import TagOptions

START_TIMEOUT_S = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 1 with what is wrong on standard error."""
    given = _parser().parse_args(arguments)
    configure_logging(given.verbose)
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        return command(given)
    except TaggerError as error:
        for line in str(error).splitlines():
            print(f"siglip-serve: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="siglip-serve", description="Tag images with SigLIP and SigLIP 2.")
    parser.add_argument("--version", action="version", version=f"siglip-serve {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("-v", "--verbose", action="store_true", help="log what happens")
        command.set_defaults(command=run)
        return command

    add("serve", _serve, "Start the service on this machine; Ctrl-C ends it.").add_argument("config", type=Path)
    tag = add("tag", _tag, "Tag pictures in this process, without a service.")
    tag.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="a picture, or a folder of pictures")
    tag.add_argument("--labels", help="labels to score instead of the configuration's, with commas between")
    tag.add_argument("--threshold", type=float, help="least confidence of a tag")
    tag.add_argument("--config", type=Path, help="configuration; the embedded demo's if left out")
    tag.add_argument("--json", action="store_true", help="one JSON object a picture and line")
    add("render", _render, "Print the Serve config of a configuration.").add_argument("config", type=Path)
    deploy = add("deploy", _deploy, "Apply a configuration to a running Ray cluster.")
    deploy.add_argument("config", type=Path)
    deploy.add_argument("--address", required=True, help="the cluster's dashboard, such as http://127.0.0.1:8265")
    deploy.add_argument("--timeout", type=float, default=START_TIMEOUT_S, help="seconds to wait until it runs")
    plan = add("plan", _plan, "Print dtype, batch, GPU shares and replicas for some hardware, and why.")
    plan.add_argument("config", type=Path)
    where = plan.add_mutually_exclusive_group()
    where.add_argument("--hardware", help="such as l4, l4x2, a100-80gx8+96cpu, gpu24gb or cpu8; the configuration's if left out")
    where.add_argument("--cluster", nargs="?", const="http://127.0.0.1:8265", help="ask the cluster with this dashboard")
    plan.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    add("check", _check, "Say what is wrong with a configuration, one line a problem.").add_argument("config", type=Path)
    environment = add("env", _env, "Print the environment that every Ray node of a cluster needs.")
    environment.add_argument("--ingress", choices=("auto", "haproxy", "python"), default="auto")
    return parser


def _serve(given: argparse.Namespace) -> int:
    from serve_app.commands.serve import serve_locally

    return serve_locally(load_config(given.config), START_TIMEOUT_S)


def _deploy(given: argparse.Namespace) -> int:
    import functools

    from serve_app.commands.plan import hardware_of_cluster
    from serve_app.graph.deploy import Cluster
    from serve_app.graph.render import render_serve_config
    from serve_app.planning import plan_service

    config = load_config(given.config)
    cluster = Cluster(given.address)
    plan = plan_service(config, functools.partial(hardware_of_cluster, cluster))  # refuses what cannot work there
    for line in plan.advice:
        print(f"advice: {line}", file=sys.stderr)
    cluster.deploy(render_serve_config(config))
    cluster.wait_until_running(config.name, given.timeout, lambda state: print(state, file=sys.stderr))
    print(f"{config.name} runs at {given.address}")
    return 0


def _render(given: argparse.Namespace) -> int:
    from serve_app.graph.render import render_serve_config

    print(yaml.safe_dump(render_serve_config(load_config(given.config)), sort_keys=False, allow_unicode=True), end="")
    return 0


def _plan(given: argparse.Namespace) -> int:
    from serve_app.commands.plan import print_plan

    return print_plan(load_config(given.config), given.hardware, given.cluster, as_json=given.json)


def _check(given: argparse.Namespace) -> int:
    config = load_config(given.config)
    print(f"{given.config} is fine: {config.siglip.model}, {len(config.tag_settings().vocabulary.labels)} labels")
    return 0


def _env(given: argparse.Namespace) -> int:
    from serve_app.graph.profiles import node_environment

    for key, value in node_environment(given.ingress).items():
        print(f"{key}={value}")
    return 0


def _tag(given: argparse.Namespace) -> int:
    from serve_app.commands.tag import tag_files
    from serve_app.demo.settings import demo_config

    labels = tuple(label.strip() for label in given.labels.split(",") if label.strip()) if given.labels else None
    config = load_config(given.config) if given.config else demo_config()
    return tag_files(given.photos, config, TagOptions(labels=labels, confidence_threshold=given.threshold), as_json=given.json)


def run() -> None:
    """Run as a program."""
    sys.exit(main())


if __name__ == "__main__":
    run()

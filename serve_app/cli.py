"""`siglip-serve`: the commands, thin over the rest of the package.

Nothing heavy is imported before a command needs it.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from serve_app import __version__
from serve_app.commands.batch import add_batch_arguments, run_batch
from serve_app.commands.k8s import add_k8s_arguments
from serve_app.commands.tag_arguments import add_tag_arguments, run_tag
from serve_app.config.service import ServiceConfig, load_config
from serve_app.errors import ConfigError, TaggerError
from serve_app.processes.supervisor import supervised
from serve_app.siglip.hub_errors import check_hub_environment
from serve_app.tagging.options import tag_options
from serve_app.telemetry.logs import configure_logging
from serve_app.terminal.printable import print_block, print_line, printable

START_TIMEOUT_S = 600.0


def main(arguments: Sequence[str] | None = None, *, is_program: bool = False) -> int:
    """Run a command and return its exit status: 0, or 1 with what is wrong on standard error.

    Args:
        arguments: Of the command line; those of the process if left out.
        is_program: Whether the process does nothing else. Then commands that start Ray run in a
            process of their own, which leaves nothing behind.
    """
    given = _parser().parse_args(arguments)
    if is_program and _starts_ray(given):
        return supervised(lambda: _run(given))
    return _run(given)


def _starts_ray(given: argparse.Namespace) -> bool:
    if given.command is _batch:
        return not (given.address or given.through_service or os.environ.get("RAY_ADDRESS"))
    return given.command is _serve


def _run(given: argparse.Namespace) -> int:
    configure_logging(given.verbose)
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        check_hub_environment()
        return command(given)
    except TaggerError as error:
        for line in str(error).split(
            "\n"
        ):  # splitlines would also split at characters inside a name
            print_line(f"siglip-serve: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser whose messages repeat no escape sequence of an argument, such as a file's name."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="siglip-serve", description="Tag images with SigLIP and SigLIP 2.")
    parser.add_argument("--version", action="version", version=f"siglip-serve {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("-v", "--verbose", action="store_true", help="log what happens")
        command.set_defaults(command=run)
        return command

    serve = add("serve", _serve, "Start the service on this machine; Ctrl-C ends it.")
    serve.add_argument("config", type=Path)
    serve.add_argument(
        "--host",
        help="address to listen on, 0.0.0.0 for all; default: serving.host, or 127.0.0.1 if that is auto",
    )
    serve.add_argument("--port", type=int, help="port to listen on; default: serving.port")
    add_tag_arguments(add("tag", _tag, "Tag pictures in this process, or by a running service."))
    add_batch_arguments(
        add(
            "batch",
            _batch,
            "Tag a folder, a bucket or a table into Parquet, and go on where it ended.",
        )
    )
    _add_scoring(add)
    render = add(
        "render", _render, "Print the Serve config of a configuration, or of several side by side."
    )
    render.add_argument("config", type=Path, nargs="+")
    add_k8s_arguments(
        add("k8s", _render, "Plan and render the RayService of a Kubernetes cluster.")
    )
    fetching = add("fetch", _fetch, "Download a checkpoint ahead, and print its commit.")
    fetching.add_argument("model", help="a hub id, or a short name such as so400m-v2")
    fetching.add_argument("--revision", help="branch, tag or commit; the main branch if left out")
    deploy = add("deploy", _deploy, "Apply a configuration to a running Ray cluster.")
    deploy.add_argument("config", type=Path)
    deploy.add_argument(
        "--address", required=True, help="the cluster's dashboard, such as http://127.0.0.1:8265"
    )
    deploy.add_argument(
        "--timeout", type=float, default=START_TIMEOUT_S, help="seconds to wait until it runs"
    )
    plan = add(
        "plan", _plan, "Print dtype, batch, GPU shares and replicas for some hardware, and why."
    )
    plan.add_argument("config", type=Path)
    where = plan.add_mutually_exclusive_group()
    where.add_argument(
        "--hardware",
        help="such as l4, l4x2, a100-80gx8+96cpu, gpu24gb or cpu8; the configuration's if left out",
    )
    where.add_argument(
        "--cluster",
        nargs="?",
        const="http://127.0.0.1:8265",
        help="ask the cluster with this dashboard",
    )
    plan.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    add(
        "check", _check, "Say what is wrong with a configuration, one line a problem."
    ).add_argument("config", type=Path)
    add("key", _key, "Make an API key for somebody.").add_argument(
        "name", help="whose it is, as logs show it"
    )
    environment = add("env", _env, "Print the environment that every Ray node of a cluster needs.")
    environment.add_argument("--ingress", choices=("auto", "haproxy", "python"), default="auto")
    return parser


def _add_scoring(
    add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser],
) -> None:
    """Add the commands that concern what tags mean: score, vocab, calibrate, evaluate."""
    score = add("score", _score, "Tag stored embeddings, without pixels.")
    score.add_argument("embeddings", type=Path, help="a file of `tag --save-embeddings`, or .npy")
    score.add_argument(
        "--labels", help="labels to score instead of the configuration's, with commas between"
    )
    score.add_argument("--vocabulary", help="of the configuration, instead of its default one")
    score.add_argument("--threshold", type=float, help="least confidence of a tag")
    score.add_argument("--config", type=Path, help="configuration; the embedded demo's if left out")

    vocab = add("vocab", _vocab_build, "Build, show or compare vocabularies.").add_subparsers(
        title="commands", required=True
    )
    build = vocab.add_parser("build", help="encode a configuration's vocabularies ahead")
    build.add_argument("config", type=Path)
    build.add_argument(
        "--near",
        type=float,
        nargs="?",
        const=0.95,
        help="also list tags that mean the same to the model, from this cosine on",
    )
    build.set_defaults(command=_vocab_build)
    show = vocab.add_parser("show", help="what a vocabulary file holds")
    show.add_argument("file", type=Path)
    show.add_argument("--category", help="list the tags of one category")
    show.set_defaults(command=_vocab_show)
    diff = vocab.add_parser(
        "diff",
        help="what changed from one vocabulary file to another, and what it costs; exit status 1 if anything did",
    )
    diff.add_argument("before", type=Path)
    diff.add_argument("after", type=Path)
    diff.set_defaults(command=_vocab_diff)

    calibrate = add(
        "calibrate", _calibrate, "Fit a vocabulary's scores to images, labelled or not."
    )
    evaluate = add("evaluate", _evaluate, "Measure tags on images whose labels are known.")
    for command in (calibrate, evaluate):
        command.add_argument(
            "images",
            type=Path,
            help="a folder: with labels.csv, with a folder for each label, or of images only",
        )
        command.add_argument(
            "--labels", type=Path, help="a CSV with the columns file and labels (| between them)"
        )
        command.add_argument(
            "--vocabulary", help="of the configuration, instead of its default one"
        )
        command.add_argument(
            "--config", type=Path, help="configuration; the embedded demo's if left out"
        )
    calibrate.add_argument(
        "--out", type=Path, default=Path("calibration.yaml"), help="the file to write"
    )
    calibrate.add_argument("--report", type=Path, help="a folder for a report with pictures")
    calibrate.add_argument(
        "--precision",
        type=float,
        help="labelled: least precision of the tags that are given; the best F1 if left out",
    )
    calibrate.add_argument(
        "--percentile",
        type=float,
        default=95.0,
        help="unlabelled: of the logits of unrelated images",
    )
    calibrate.add_argument(
        "--tags-per-image",
        type=float,
        default=5.0,
        help="unlabelled: how many tags are wanted on average",
    )
    evaluate.add_argument(
        "--per-tag", action="store_true", help="also each tag's own numbers, the worst first"
    )
    evaluate.add_argument("--json", action="store_true", help="everything as one JSON object")


def _serve(given: argparse.Namespace) -> int:
    from serve_app.commands.serve import listening_at, serve_locally

    return serve_locally(
        listening_at(load_config(given.config), given.host, given.port), START_TIMEOUT_S
    )


def _deploy(given: argparse.Namespace) -> int:
    from serve_app.commands.plan import hardware_of_cluster
    from serve_app.graph.deploy import Cluster
    from serve_app.graph.render import render_serve_config
    from serve_app.hardware.planning import plan_service

    config = load_config(given.config)
    cluster = Cluster(given.address)
    plan = plan_service(config, hardware_of_cluster(config, cluster))  # refuses what cannot work
    for line in plan.advice:
        print_line(f"advice: {line}", file=sys.stderr)
    cluster.deploy(render_serve_config(config))
    cluster.wait_until_running(
        config.name, given.timeout, lambda state: print_line(state, file=sys.stderr)
    )
    print_line(f"{config.name} runs at {given.address}")
    return 0


def _render(given: argparse.Namespace) -> int:
    from serve_app.graph.render import serve_config_text

    print_block(serve_config_text(*[load_config(path) for path in given.config]))
    return 0


def _fetch(given: argparse.Namespace) -> int:
    from serve_app.commands.fetch import fetch

    return fetch(given.model, given.revision)


def _plan(given: argparse.Namespace) -> int:
    from serve_app.commands.plan import print_plan

    return print_plan(load_config(given.config), given.hardware, given.cluster, as_json=given.json)


def _check(given: argparse.Namespace) -> int:
    config = load_config(given.config)
    unread = _unread_by_checkpoint(config)
    sizes = ", ".join(
        f"{len(v.vocabulary.tags):,} tags in {name}" for name, v in config.vocabularies.items()
    )
    print_line(f"{given.config} is fine: {config.siglip.model}, {sizes}{unread}")
    return 0


def _unread_by_checkpoint(config: ServiceConfig) -> str:
    """Raise `ConfigError` for labels that the checkpoint cannot work with; say if it is not here to
    ask.
    """
    from serve_app.commands.vocab import checkpoint_problems
    from serve_app.siglip.hub import is_here

    if not is_here(config.siglip.model_source, config.revision):
        return "; the checkpoint is not here, so whether it can tell the labels apart and read all of them was not checked"
    if lines := checkpoint_problems(config):
        raise ConfigError("\n".join(lines))
    return ""


def _key(given: argparse.Namespace) -> int:
    from serve_app.commands.key import new_key

    return new_key(given.name)


def _env(given: argparse.Namespace) -> int:
    from serve_app.graph.profiles import node_environment

    for key, value in node_environment(given.ingress).items():
        print_line(f"{key}={value}")
    return 0


def _tag(given: argparse.Namespace) -> int:
    return run_tag(given, _labels(given), _config)


def _batch(given: argparse.Namespace) -> int:
    return run_batch(given, _config)


def _score(given: argparse.Namespace) -> int:
    from serve_app.commands.score import score_file

    options = tag_options(
        labels=_labels(given), vocabulary=given.vocabulary, confidence_threshold=given.threshold
    )
    return score_file(given.embeddings, _config(given), options)


def _vocab_build(given: argparse.Namespace) -> int:
    from serve_app.commands.vocab import build

    return build(load_config(given.config), given.near)


def _vocab_show(given: argparse.Namespace) -> int:
    from serve_app.commands.vocab import show

    return show(given.file, given.category)


def _vocab_diff(given: argparse.Namespace) -> int:
    from serve_app.commands.vocab import diff

    return diff(given.before, given.after)


def _calibrate(given: argparse.Namespace) -> int:
    from serve_app.commands.calibrate import CalibrationOptions, calibrate

    options = CalibrationOptions(
        images=given.images,
        labels=given.labels,
        vocabulary=given.vocabulary,
        out=given.out,
        report=given.report,
        precision=given.precision,
        percentile=given.percentile,
        tags_per_image=given.tags_per_image,
    )
    return calibrate(_config(given), options)


def _evaluate(given: argparse.Namespace) -> int:
    from serve_app.commands.evaluate import evaluate_folder

    return evaluate_folder(
        given.images,
        _config(given),
        given.labels,
        given.vocabulary,
        per_tag=given.per_tag,
        as_json=given.json,
    )


def _config(given: argparse.Namespace) -> ServiceConfig:
    from serve_app.demo.settings import demo_config

    return load_config(given.config) if given.config else demo_config()


def _labels(given: argparse.Namespace) -> tuple[str, ...] | None:
    return (
        tuple(label.strip() for label in given.labels.split(",") if label.strip())
        if given.labels
        else None
    )

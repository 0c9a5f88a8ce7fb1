"""CPU time that the HTTP face adds to one `POST /v1/tag`, without decoding and without a model.

Run with `python -m bench.request_path [TREE ...]`. Each TREE is a checkout of this repository; the
default is the current one. The application is called in this process, without a socket, over a
tagger that returns the same answer at once. Several trees take turns in every round, so that other
work on the machine affects all of them alike. `--decode` also measures the real tagger, for the
ratio.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NUM_REQUESTS = 1_000
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"python-httpx/0.28"),
    (b"content-type", b"image/jpeg"),
]


class SameAnswer:
    """A tagger that returns the answer to one image, made beforehand, at once."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def tag(self, *_: Any, **__: Any) -> Any:
        return self.answer


async def _send_requests(app: Any, body: bytes, num_requests: int) -> float:
    """Return the CPU seconds of one request."""
    headers = [*HEADERS, (b"content-length", str(len(body)).encode())]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message

    started_s = time.process_time()
    for _ in range(num_requests):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/tag",
            "raw_path": b"/v1/tag",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await app(scope, receive, send)
    return (time.process_time() - started_s) / num_requests


async def _worker(with_decoding: bool) -> None:
    """Measure once for each line of standard input, and print CPU microseconds."""
    # the tree to measure is this process's import path
    from serve_app.api.app import create_app
    from serve_app.config.access import Telemetry
    from serve_app.demo import settings
    from serve_app.pipeline.local_tagger import LocalTagger

    config = settings.demo_config().model_copy(update={"telemetry": Telemetry(request_log="off")})
    body = (Path(settings.__file__).parent / "samples" / "red-circle.jpg").read_bytes()
    tagger = LocalTagger(config)
    same: Any = SameAnswer(await tagger.tag([body], _no_options()))
    app = create_app(same, config)
    await _send_requests(app, body, 100)
    if with_decoding:
        real = create_app(tagger, config)
        await _send_requests(real, body, 20)
        print(f"{await _send_requests(real, body, 200) * 1e6:.1f}", flush=True)
    for _ in sys.stdin:
        print(f"{await _send_requests(app, body, NUM_REQUESTS) * 1e6:.1f}", flush=True)


def _no_options() -> Any:
    from serve_app.tagging.settings import TagOptions  # from the measured tree, as above

    return TagOptions()


def _start(tree: Path, with_decoding: bool) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).absolute()), "--worker"]
    return subprocess.Popen(
        [*command, *(["--decode"] if with_decoding else [])],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _next_number(worker: subprocess.Popen[str]) -> float:
    assert worker.stdout is not None
    return float(worker.stdout.readline())


def _round(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return _next_number(worker)


def compare(trees: Sequence[Path], num_rounds: int, with_decoding: bool) -> None:
    """Print the CPU microseconds of a request for each tree: the median and the best round."""
    workers = [_start(tree.absolute(), with_decoding) for tree in trees]
    if with_decoding:
        for tree, worker in zip(trees, workers, strict=True):
            print(f"{tree}: {_next_number(worker):.0f} µs with decoding and the model")
    rounds = [[_round(worker) for worker in workers] for _ in range(num_rounds)]
    for i, tree in enumerate(trees):
        times = [one[i] for one in rounds]
        ratio = statistics.median(one[i] / one[0] for one in rounds)
        print(
            f"{tree}: median {statistics.median(times):.1f} µs, best {min(times):.1f} µs, "
            f"{ratio:.3f} of the first"
        )
    for worker in workers:
        worker.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="*", type=Path, default=[Path()])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        asyncio.run(_worker(args.decode))
    else:
        compare(args.trees, args.rounds, args.decode)

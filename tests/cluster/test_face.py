"""What stands around the graph, seen through the real ingress: stages, ids, streams, the log,
traces, and bad requests among good ones.
"""

import asyncio
import base64
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.soak import MAX_GROWTH_MIB, soak
from serve_app.telemetry.record import STAGES
from tests.cluster.test_graph import PICTURES
from tests.service import COMMAND, Service, wait_for


def tagged(service: Service, **headers: str) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/tag", content=PICTURES[0], headers=headers, timeout=60)


def test_an_answer_says_where_its_time_went(service: Service) -> None:
    """Every stage in order and the total, which is not less than any of them."""
    parts = dict(
        part.split(";dur=") for part in tagged(service).headers["server-timing"].split(", ")
    )
    assert tuple(parts) == (*STAGES, "total")
    assert all(0 <= float(parts[stage]) <= float(parts["total"]) for stage in STAGES)


def test_the_request_id_is_returned_once_and_logged(service: Service) -> None:
    """Serve returns it, the log has it with the stages, and `siglip-serve serve` shows the line."""
    request_id = f"test-{secrets.token_hex(8)}"
    answer = tagged(service, **{"X-Request-Id": request_id})
    assert answer.headers.get_list("x-request-id") == [request_id]
    wait_for(lambda: any(request_id in line for line in service.lines))
    entry = json.loads(next(line for line in service.lines if request_id in line))
    assert (entry["route"], entry["status"], entry["images"], entry["bytes_in"]) == (
        "/v1/tag",
        200,
        1,
        len(PICTURES[0]),
    )
    assert set(entry["stages_ms"]) == set(STAGES)


async def test_lines_arrive_while_others_are_still_under_way(service: Service) -> None:
    """A stream through the proxy is not gathered up: the first line is there before the last image
    is done.
    """
    images = [base64.b64encode(picture).decode() for picture in PICTURES[:12]] * 4
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream(
            "POST",
            f"{service.url}/v1/tag",
            json={"images": images},
            headers={"Accept": "application/x-ndjson"},
        ) as answer,
    ):
        assert answer.headers["content-type"] == "application/x-ndjson"
        pieces = [piece async for piece in answer.aiter_raw()]
    lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
    assert sorted(line["index"] for line in lines[:-1]) == list(range(len(images)))
    assert lines[-1]["done"] is True
    assert len(pieces) > 2


def test_configuration_is_the_plan_that_runs(service: Service) -> None:
    """GPU shares, CPUs and batch size are numbers, nothing is left auto that the hardware decides,
    and no path is there.
    """
    answer = httpx.get(f"{service.url}/v1/config")
    shown = answer.json()
    assert shown["serving"]["preprocessor"]["num_cpus"] == 0.5
    assert shown["plugins"]["siglip"]["batch_size"] == 16
    assert shown["plugins"]["siglip"]["confidence_threshold"] == 0.5
    assert str(Path.cwd()) not in answer.text


def test_a_request_is_traced_where_its_client_asks(service: Service) -> None:
    """Its stages are spans of the trace that `traceparent` names, below the span that Serve makes
    of the request.
    """
    trace_id = secrets.token_hex(16)
    tagged(service, traceparent=f"00-{trace_id}-{secrets.token_hex(8)}-01")
    wait_for(lambda: set(STAGES) <= {span["name"] for span in spans(service, trace_id)})
    found = spans(service, trace_id)
    (request,) = [
        span for span in found if span["name"].startswith("replica_handle_request Preprocessor")
    ]
    for span in found:
        if span["name"] in STAGES:
            assert span["parent_id"] == request["context"]["span_id"]
            assert (
                request["start_time"]
                <= span["start_time"]
                <= span["end_time"]
                <= request["end_time"]
            )


def spans(service: Service, trace_id: str) -> list[dict[str, Any]]:
    """Return the spans of a trace that the node's replicas have written."""
    (raylet,) = {
        argument
        for p in service.children()
        for argument in _arguments(p)
        if argument.startswith("--log_dir=")
    } or {""}
    folder = Path(raylet.removeprefix("--log_dir=")) / "serve" / "spans"
    found: list[dict[str, Any]] = []
    for path in folder.glob("*.json"):
        decoder = json.JSONDecoder()
        text = path.read_text()
        at = 0
        while (at := text.find("{", at)) >= 0:
            try:
                span, at = decoder.raw_decode(text, at)
            except ValueError:  # still being written
                break
            if span["context"]["trace_id"] == f"0x{trace_id}":
                found.append(span)
    return found


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def test_among_bad_requests_every_answer_is_what_it_should_be(service: Service) -> None:
    """A tenth hostile pictures and broken requests, more clients than are served at once: none
    hangs, none is lost.
    """
    found = await soak(service, 1_500, 0.1, 96)
    assert found.wrong == []
    assert sum(found.answered.values()) == 1_500
    assert found.answered[200] > 1_300
    assert found.replicas_mib[-1] - found.replicas_mib[1] < MAX_GROWTH_MIB


async def test_a_client_that_leaves_takes_nobody_with_it(service: Service) -> None:
    """Requests share calls; of 64 at once every other one is broken off, and those that stay are
    all answered with tags.
    """
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
        for pause_s in (0.005, 0.02, 0.05, 0.1):
            asked = [
                asyncio.create_task(client.post("/v1/tag", content=PICTURES[n % len(PICTURES)]))
                for n in range(64)
            ]
            await asyncio.sleep(pause_s)
            for task in asked[::2]:
                task.cancel()
            answers = await asyncio.gather(*asked[1::2])
            assert [answer.status_code for answer in answers] == [200] * 32
            await asyncio.gather(*asked[::2], return_exceptions=True)


def test_stages_of_tiles_do_not_add_up_to_more_than_the_whole(service: Service) -> None:
    """They are encoded side by side."""
    answer = httpx.post(f"{service.url}/v1/tag?quality=high", content=PICTURES[0], timeout=60)
    parts = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert all(float(parts[stage]) <= float(parts["total"]) for stage in STAGES)


def test_taken_port_is_told_before_anything_starts(running: Service) -> None:
    """A second service on the same port ends with one line that says so."""
    ran = subprocess.run(
        [COMMAND, "serve", str(running.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert f"port {running.config['serving']['port']} is taken" in ran.stderr
    assert "Traceback" not in ran.stderr

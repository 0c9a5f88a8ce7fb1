"""Pods without Kubernetes: network namespaces on one bridge, each with processes, a root and a
temporary folder of its own.

What a pod may reach and be reached by are the NetworkPolicies of the manifests, as rules of
nftables in its namespace. Needs root, iproute2 and nftables; see `why_not`. Not here: what runs in
the pods (`cluster.py`).
"""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
CLONE_NEWNET = 0x40000000
"""Source: linux/sched.h."""
SUBNET = "10.77.0"
BRIDGE = "10.77.0.254"
END_TIMEOUT_S = 10.0
# what a container of the manifests has: a root that cannot be written, an own /tmp and /dev/shm,
# and what is mounted. What this process
# runs from is put back where it is hidden by that
PRELUDE = """
mount -t tmpfs tmpfs /mnt
at=0; for kept in {kept}; do at=$((at + 1)); mkdir /mnt/$at; mount --bind $kept /mnt/$at; done
mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm
at=0; for kept in {kept}; do at=$((at + 1)); mkdir -p $kept; mount --move /mnt/$at $kept; done
mkdir /tmp/.etc /tmp/.work && mount -t overlay overlay \
-o lowerdir=/etc,upperdir=/tmp/.etc,workdir=/tmp/.work /etc
"""
SEAL = "mount -o remount,bind,ro /"


def why_not() -> str | None:
    """Return why no pods can be made on this machine; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in ("ip", "nft", "unshare") if shutil.which(name) is None]:
        return f"{', '.join(missing)} is not installed (iproute2, nftables, util-linux)"
    tried = subprocess.run(
        ["unshare", "-n", "-m", "-p", "-f", "nft", "list", "ruleset"], capture_output=True
    )
    return None if tried.returncode == 0 else "namespaces are not allowed here"


class Pod:
    """A place in the network, with what runs in it."""

    def __init__(
        self,
        network: "PodNetwork",
        name: str,
        number: int,
        namespace: str,
        labels: Mapping[str, str],
    ) -> None:
        self.name = name
        self.namespace = namespace
        self.labels = dict(labels)
        self.address = f"{SUBNET}.{number}"
        self.log = network.folder / f"{name}.log"
        self._network = network
        self._netns = f"{network.prefix}{number}"
        self._process: subprocess.Popen[bytes] | None = None
        _ip("netns", "add", self._netns)
        switch = network.switch
        veth = f"v{number}"
        _ip(
            "-n",
            switch,
            "link",
            "add",
            veth,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self._netns,
        )
        _ip("-n", switch, "link", "set", veth, "master", "br0", "up")
        for words in (
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via {BRIDGE}",
        ):
            _ip("-n", self._netns, *words.split())

    def start(
        self, script: str, env: Mapping[str, str], files: Mapping[str, str] | None = None
    ) -> None:
        """Run a bash script as the pod's only container.

        Args:
            script: Ends with what keeps running.
            env: All of its environment.
            files: Content of files below /etc or /tmp, by their paths.
        """
        assert self._process is None, f"{self.name} runs already"
        made = [
            f"mkdir -p {Path(path).parent}; printf '%s' {_quoted(text)} > {path}"
            for path, text in (files or {}).items()
        ]
        kept = [str(path) for path in (ROOT, Path(sys.prefix)) if path.is_relative_to("/tmp")]
        whole = "\n".join(["set -e", PRELUDE.format(kept=" ".join(kept)), *made, SEAL, script])
        command = [
            "ip",
            "netns",
            "exec",
            self._netns,
            "unshare",
            "-p",
            "-m",
            "--kill-child=KILL",
            "--mount-proc",
            "-f",
            "bash",
            "-c",
            whole,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(env)
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End every process of the pod at once, as the loss of its machine does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_TIMEOUT_S)
            self._process = None

    def call(self, function: Callable[[], T]) -> T:
        """Return what a function returns in the pod's network; it makes its own sockets."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                self.enter()
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return result.result()

    def enter(self) -> None:
        """Move the calling thread, and no other, into the pod's network."""
        with open(f"/var/run/netns/{self._netns}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def listening(self) -> set[int]:
        """Return the TCP ports on which something listens on an address of the network."""
        shown = subprocess.run(
            ["ip", "netns", "exec", self._netns, "ss", "-tlnH"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        addresses = [line.split()[3].rsplit(":", 1) for line in shown.splitlines()]
        return {
            int(port)
            for host, port in addresses
            if not host.startswith(("127.", "[::1]", "[::ffff:127."))
        }

    def obey(self, rules: Sequence[str]) -> None:
        """Filter what comes in and goes out by rules of nftables."""
        subprocess.run(
            ["ip", "netns", "exec", self._netns, "nft", "-f", "-"],
            input="\n".join(rules),
            text=True,
            check=True,
        )

    def remove(self) -> None:
        """End it and its place in the network."""
        self.kill()
        subprocess.run(["ip", "netns", "delete", self._netns], check=False)


class PodNetwork:
    """A bridge in a namespace of its own, and pods on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = f"sg{os.getpid()}-"
        self.switch = f"{self.prefix}sw"
        self.pods: dict[str, Pod] = {}
        _ip("netns", "add", self.switch)
        for words in (
            "link add br0 type bridge",
            "link set br0 up",
            f"addr add {BRIDGE}/24 dev br0",
        ):
            _ip("-n", self.switch, *words.split())

    def add(self, name: str, namespace: str, labels: Mapping[str, str]) -> Pod:
        """Make a pod; it runs nothing yet."""
        self.pods[name] = Pod(self, name, len(self.pods) + 1, namespace, labels)
        return self.pods[name]

    def apply_policies(self, policies: Sequence[dict[str, Any]]) -> None:
        """Let every pod obey the NetworkPolicies that select it, and be reached by everything if
        none does.
        """
        for pod in self.pods.values():
            pod.obey(rules_for(pod, policies, list(self.pods.values())))

    def close(self) -> None:
        """Remove everything that was made here."""
        for pod in self.pods.values():
            pod.remove()
        subprocess.run(["ip", "netns", "delete", self.switch], check=False)


def rules_for(pod: Pod, policies: Sequence[dict[str, Any]], pods: Sequence[Pod]) -> list[str]:
    """Return the nftables rules of a pod: what is not allowed by any policy that selects it is
    dropped.

    Source: Kubernetes' documentation, network policies.
    """
    selecting = [
        p
        for p in policies
        if p["metadata"]["namespace"] == pod.namespace
        and _selects(p["spec"]["podSelector"], pod.labels)
    ]
    rules = ["table inet pods {"]
    for direction, hook, peers, way in (
        ("Ingress", "input", "from", "saddr"),
        ("Egress", "output", "to", "daddr"),
    ):
        chosen = [policy for policy in selecting if direction in policy["spec"]["policyTypes"]]
        rules.append(
            f"chain {hook} {{ type filter hook {hook} priority 0; "
            f"policy {'drop' if chosen else 'accept'};"
        )
        rules += ["ct state established,related accept", "meta l4proto { icmp, icmpv6 } accept"]
        rules.append("iif lo accept" if hook == "input" else "oif lo accept")
        for policy in chosen:
            for rule in policy["spec"].get(direction.lower(), []):
                rules += _allowed(rule, peers, way, policy["metadata"]["namespace"], pods)
        rules.append("}")
    return [*rules, "}"]


def _allowed(
    rule: Mapping[str, Any], peers: str, way: str, namespace: str, pods: Sequence[Pod]
) -> list[str]:
    addresses = [
        pod.address
        for pod in pods
        if any(_is_peer(peer, namespace, pod) for peer in rule.get(peers, []))
    ]
    if peers in rule and not addresses:
        return []
    who = f"ip {way} {{ {', '.join(addresses)} }} " if peers in rule else ""
    if "ports" not in rule:
        return [f"{who}accept"]
    return [
        f"{who}{port['protocol'].lower()} dport {port['port']} accept" for port in rule["ports"]
    ]


def _is_peer(peer: Mapping[str, Any], namespace: str, pod: Pod) -> bool:
    if "ipBlock" in peer:  # addresses outside of the pods' network
        return False
    if "namespaceSelector" in peer:
        in_namespace = _selects(
            peer["namespaceSelector"], {"kubernetes.io/metadata.name": pod.namespace}
        )
    else:
        in_namespace = pod.namespace == namespace
    return in_namespace and _selects(peer.get("podSelector", {}), pod.labels)


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "other selectors are not read here"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _quoted(text: str) -> str:
    escaped = text.replace("'", "'\\''")
    return f"'{escaped}'"

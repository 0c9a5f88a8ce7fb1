"""A wrapper that `siglip-serve serve` starts instead of HAProxy: it tightens the configuration that
Ray wrote, then runs HAProxy.

Ray's template binds the statistics and the metrics to every address, opens the admin socket to
every user, serves `/-/routes` to every client and sets no timeout for request heads. Ray has no
settings for these (`ray/serve/_private/haproxy_templates.py`, Ray 2.60). Ray starts
`RAY_SERVE_HAPROXY_BINARY_PATH -db -f FILE …`, so a script can edit the file first and then exec
HAProxy.
"""

import os
import sys
from pathlib import Path

LOOPBACK = "127.0.0.1"
HEAD_TIMEOUT_S = 10
"""Seconds within which a client must send the head of a request; also how long an idle connection
stays open."""
HOST_VARIABLE = "SIGLIP_HAPROXY_HOST"
CONNECTIONS_VARIABLE = "SIGLIP_HAPROXY_MAX_CONNECTIONS"
PROGRAM_VARIABLE = "SIGLIP_HAPROXY_PROGRAM"


def launcher(python: str) -> str:
    """Return the script that Ray starts; it runs this module with an interpreter that has this
    package.
    """
    return f'#!/bin/sh\nexec "{python}" -I -m {__name__} "$@"\n'


def tightened(configuration: str, host: str, max_connections: int) -> str:
    """Return Ray's configuration with loopback ports, a private admin socket, timeouts and limits
    for each client.

    Args:
        configuration: The configuration that Ray wrote.
        host: Address that the service listens on; Ray itself gets 127.0.0.1, so that its replicas
            listen there.
        max_connections: Maximum number of connections from one address.

    Raises:
        ValueError: A line that must be changed is missing, because this version of Ray writes
            another configuration.
    """
    has_application = any(
        line.split()[:1] == ["use_backend"] for line in configuration.splitlines()
    )
    lines: list[str] = []
    missing = dict.fromkeys(_EXPECTED)
    section = ""
    for line in configuration.splitlines():
        words = line.split()
        if line and not line[0].isspace() and words:
            section = " ".join(words[:2])
        replaced = _replaced(section, words, host)
        if (section, words[:2]) == (
            "backend default_backend",
            ["http-request", "return"],
        ) and not has_application:
            replaced = [_STARTING]
        if replaced is None:
            lines.append(line)
            continue
        missing.pop((section, words[0]), None)
        lines += [f"    {new}" for new in replaced]
        if (section, words[0]) == ("frontend http_frontend", "bind"):
            lines += [f"    {new}" for new in _each_client(max_connections)]
    if missing:
        places = ", ".join(f"{word} in {section}" for section, word in missing)
        raise ValueError(f"Ray's configuration of HAProxy is not as expected: no {places}")
    return "\n".join(lines) + "\n"


_EXPECTED = (
    ("global", "stats"),
    ("defaults", "mode"),
    ("frontend prometheus", "bind"),
    ("frontend http_frontend", "bind"),
    ("frontend http_frontend", "http-request"),
    ("listen stats", "bind"),
)
"""Section and first word of the lines that are replaced; the service does not start if one is
missing."""


_STARTING = (
    "http-request return status 503 content-type application/json hdr Retry-After 1 string "
    '\'{"error":{"code":"unavailable","message":"The service is starting. Retry in one second."}}\''
)
"""The response while HAProxy knows no replica, as after its own restart.

Ray's is 404, which clients do not retry.
"""


def _replaced(section: str, words: list[str], host: str) -> list[str] | None:
    """Return the replacement of a line; None if the line stays."""
    match section, words:
        case "global", ["stats", "socket", path, "mode", _, *rest]:
            return [" ".join(["stats socket", path, "mode 600", *rest])]
        case "defaults", ["mode", "http"]:
            return ["mode http", f"timeout http-request {HEAD_TIMEOUT_S}s"]
        case "frontend prometheus" | "listen stats", ["bind", address]:
            return [f"bind {LOOPBACK}:{address.rpartition(':')[2]}"]
        case "frontend http_frontend", ["bind", address]:
            port = address.rpartition(":")[2]
            if host == "::":
                return [f"bind :::{port} v4v6"]
            return [f"bind {'*' if host == '0.0.0.0' else host}:{port}"]
        case "frontend http_frontend", ["http-request", "return", *_, "if", "routes"]:
            return [
                "http-request deny deny_status 404 if routes"
            ]  # it lists the applications to every client
    return None


def _each_client(max_connections: int) -> list[str]:
    """Return frontend rules: one address cannot hold all connections, and replicas get the client's
    address.
    """
    return [
        "stick-table type ipv6 size 100k expire 60s store conn_cur",
        "tcp-request connection track-sc0 src",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {max_connections} }}",
        # uvicorn reads the client's address from this header if the connection comes from loopback
        "option forwardfor",
    ]


def main(arguments: list[str]) -> None:
    """Tighten the file that follows `-f`, and exec HAProxy."""
    file = Path(arguments[arguments.index("-f") + 1])
    host = os.environ.get(HOST_VARIABLE, LOOPBACK)
    text = tightened(file.read_text(encoding="utf-8"), host, int(os.environ[CONNECTIONS_VARIABLE]))
    beside = file.with_suffix(".tight")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
    program = os.environ[PROGRAM_VARIABLE]
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])

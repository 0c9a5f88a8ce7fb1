"""Hardens the HAProxy configuration that Ray writes, and then runs HAProxy.

Ray's template binds the statistics and the metrics to every address, opens the admin socket to
every user, serves `/-/routes` to every client and sets no timeout for request heads. Ray has no
settings for these (`ray/serve/_private/haproxy_templates.py`, Ray 2.60). Ray starts
`RAY_SERVE_HAPROXY_BINARY_PATH -db -f FILE …`, so `siglip-serve serve` sets that path to a script
that runs this module.
"""

import os
import sys
from pathlib import Path

from serve_app.api.statuses import RETRY_AFTER_S

LOOPBACK = "127.0.0.1"
HEAD_TIMEOUT_S = 10
"""Seconds in which a client must send the head of a request. An idle connection is closed after the
same time."""
HOST_VARIABLE = "SIGLIP_HAPROXY_HOST"
CONNECTIONS_VARIABLE = "SIGLIP_HAPROXY_MAX_CONNECTIONS"
PROGRAM_VARIABLE = "SIGLIP_HAPROXY_PROGRAM"


def launcher(python: str) -> str:
    """Return the script that Ray starts instead of HAProxy; it runs this module.

    Args:
        python: Path of an interpreter that can import this package.
    """
    return f'#!/bin/sh\nexec "{python}" -I -m {__name__} "$@"\n'


def tightened(configuration: str, host: str, max_connections: int) -> str:
    """Return Ray's configuration with private ports and socket, timeouts, and limits per client.

    Args:
        configuration: The configuration that Ray wrote.
        host: Address that HAProxy listens on. Ray's own setting is 127.0.0.1, so that its replicas
            listen on loopback.
        max_connections: Maximum number of connections from one address.

    Raises:
        ValueError: A line that must be changed is missing, because this version of Ray writes a
            different configuration.
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

        replacement = _replacement(section, words, host)
        if not has_application and (section, words[:2]) == _DEFAULT_RESPONSE:
            replacement = [_STARTING]
        if replacement is None:
            lines.append(line)
            continue

        missing.pop((section, words[0]), None)
        lines += [f"    {new}" for new in replacement]
        if (section, words[0]) == ("frontend http_frontend", "bind"):
            lines += [f"    {new}" for new in _client_limits(max_connections)]

    if missing:
        places = ", ".join(f"{word} in {section}" for section, word in missing)
        raise ValueError(f"Ray's HAProxy configuration is not as expected: it has no {places}")
    return "\n".join(lines) + "\n"


_EXPECTED = (
    ("global", "stats"),
    ("defaults", "mode"),
    ("frontend prometheus", "bind"),
    ("frontend http_frontend", "bind"),
    ("frontend http_frontend", "http-request"),
    ("listen stats", "bind"),
)
"""Section and first word of the lines that must be replaced. The service does not start if one of
them is missing."""
_DEFAULT_RESPONSE = ("backend default_backend", ["http-request", "return"])
"""Section and first words of the response to requests that match no application."""

_STARTING = (
    "http-request return status 503 content-type application/json "
    f"hdr Retry-After {RETRY_AFTER_S} string "
    '\'{"error":{"code":"unavailable","message":"The service is starting. Retry in one second."}}\''
)
"""The response while HAProxy knows no replica, for example after it restarted.

Ray responds with 404, which clients do not retry.
"""


def _replacement(section: str, words: list[str], host: str) -> list[str] | None:
    """Return the lines that replace a line; None if the line is not changed."""
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
            # `/-/routes` would list the applications to every client
            return ["http-request deny deny_status 404 if routes"]
    return None


def _client_limits(max_connections: int) -> list[str]:
    """Return frontend rules that limit connections per address and forward the client's address."""
    return [
        "stick-table type ipv6 size 100k expire 60s store conn_cur",
        "tcp-request connection track-sc0 src",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {max_connections} }}",
        # uvicorn reads the client's address from this header if the connection comes from loopback
        "option forwardfor",
    ]


def main(args: list[str]) -> None:
    """Harden the file that follows `-f`, and exec HAProxy."""
    file = Path(args[args.index("-f") + 1])
    host = os.environ.get(HOST_VARIABLE, LOOPBACK)
    text = tightened(file.read_text(encoding="utf-8"), host, int(os.environ[CONNECTIONS_VARIABLE]))
    hardened = file.with_suffix(".tight")
    hardened.write_text(text, encoding="utf-8")
    hardened.replace(file)
    program = os.environ[PROGRAM_VARIABLE]
    os.execv(program, [program, *args])


if __name__ == "__main__":
    main(sys.argv[1:])

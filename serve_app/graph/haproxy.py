"""What `siglip-serve serve` starts in HAProxy's place: the same program, with the configuration that Ray wrote made tighter.

Ray's template binds the statistics and the metrics to every address, opens the admin socket to every user, answers
`/-/routes` to everybody and gives a request's head no time-out; none of this can be set
(`ray/serve/_private/haproxy_templates.py`, Ray 2.60). Ray starts `RAY_SERVE_HAPROXY_BINARY_PATH -db -f FILE …`, so a script
that edits the file first and then becomes HAProxy can set it.
"""

import os
import sys
from pathlib import Path

LOOPBACK = "127.0.0.1"
HEAD_TIMEOUT_S = 10
"""In which a client must send its request's head; also how long an idle connection stays open."""
HOST_VARIABLE = "SIGLIP_HAPROXY_HOST"
CONNECTIONS_VARIABLE = "SIGLIP_HAPROXY_MAX_CONNECTIONS"
PROGRAM_VARIABLE = "SIGLIP_HAPROXY_PROGRAM"


def launcher(python: str) -> str:
    """Return the text of the script that Ray is told to start, run by an interpreter that has this package."""
    return f'#!/bin/sh\nexec "{python}" -I -m {__name__} "$@"\n'


def tightened(configuration: str, host: str, max_connections: int) -> str:
    """Return Ray's configuration with loopback ports, a private admin socket, time-outs and bounds for each client.

    Args:
        configuration: As Ray wrote it.
        host: Address that the service listens on; Ray is told 127.0.0.1, so that its replicas listen there.
        max_connections: That one address may hold.

    Raises:
        ValueError: A line that must be changed is not there: this Ray writes another configuration.
    """
    lines: list[str] = []
    missing = dict.fromkeys(_EXPECTED)
    section = ""
    for line in configuration.splitlines():
        words = line.split()
        if line and not line[0].isspace() and words:
            section = " ".join(words[:2])
        replaced = _replaced(section, words, host)
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
"""Section and first word of the lines that are replaced; the service does not start if one is not there."""


def _replaced(section: str, words: list[str], host: str) -> list[str] | None:
    """Return what stands in a line's place; None for one that stays."""
    match section, words:
        case "global", ["stats", "socket", path, "mode", _, *rest]:
            return [" ".join(["stats socket", path, "mode 600", *rest])]
        case "defaults", ["mode", "http"]:
            return ["mode http", f"timeout http-request {HEAD_TIMEOUT_S}s"]
        case "frontend prometheus" | "listen stats", ["bind", address]:
            return [f"bind {LOOPBACK}:{address.rpartition(':')[2]}"]
        case "frontend http_frontend", ["bind", address]:
            every = host in ("0.0.0.0", "::")
            return [f"bind {'*' if every else host}:{address.rpartition(':')[2]}"]
        case "frontend http_frontend", ["http-request", "return", *_, "if", "routes"]:
            return ["http-request deny deny_status 404 if routes"]  # it names applications to everybody
    return None


def _each_client(max_connections: int) -> list[str]:
    """Return rules of the frontend: one address cannot hold every connection, and replicas are told the client's address."""
    return [
        "stick-table type ipv6 size 100k expire 60s store conn_cur",
        "tcp-request connection track-sc0 src",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {max_connections} }}",
        # uvicorn takes a client's address from here where the connection comes from loopback
        "option forwardfor",
    ]


def main(arguments: list[str]) -> None:
    """Tighten the file that follows `-f`, and become HAProxy."""
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

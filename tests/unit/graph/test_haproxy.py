"""Ray's configuration of HAProxy, made tighter: checked against what the installed Ray writes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private import haproxy as ray_haproxy
from ray.serve.config import HTTPOptions

from serve_app.errors import Unavailable
from serve_app.graph.haproxy import launcher, tightened
from serve_app.graph.profiles import haproxy_program


@pytest.fixture
def written(tmp_path: Path) -> str:
    """The configuration that the installed Ray writes before there is any application."""
    config = ray_haproxy.HAProxyConfig(
        socket_path=str(tmp_path / "admin.sock"),
        http_options=HTTPOptions(host="127.0.0.1", port=8123),
        metrics_port=9111,
        stats_port=8444,
    )
    api: Any = ray_haproxy.HAProxyApi(config, {}, config_file_path=str(tmp_path / "haproxy.cfg"))
    api._generate_config_file_internal()
    return (tmp_path / "haproxy.cfg").read_text()


def binds(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["bind"]]


def test_everything_but_the_service_listens_on_loopback(written: str) -> None:
    """Ray itself binds statistics and metrics to every address."""
    assert sorted(binds(written)) == ["*:8444", "127.0.0.1:8123", ":9111"]
    assert sorted(binds(tightened(written, "127.0.0.1", 100))) == [
        "127.0.0.1:8123",
        "127.0.0.1:8444",
        "127.0.0.1:9111",
    ]
    assert sorted(binds(tightened(written, "0.0.0.0", 100))) == [
        "*:8123",
        "127.0.0.1:8444",
        "127.0.0.1:9111",
    ]
    assert ":::8123" in binds(tightened(written, "::", 100))


def test_the_admin_socket_is_its_users(written: str) -> None:
    """Ray opens it to every user of the machine, at the level that may change servers."""
    assert "mode 666 level admin" in written
    text = tightened(written, "127.0.0.1", 100)
    assert "666" not in text
    assert "mode 600 level admin" in text


def test_heads_have_a_time_and_routes_are_closed(written: str) -> None:
    """No request head may take longer than 10 s, and `/-/routes` says nothing."""
    assert "timeout http-request" not in written
    text = tightened(written, "127.0.0.1", 100)
    assert "timeout http-request 10s" in text
    (routes,) = [line for line in text.splitlines() if "if routes" in line and "deny" in line]
    assert "404" in routes
    assert "return status" not in "".join(
        line for line in text.splitlines() if line.endswith("if routes")
    )


def test_a_service_that_is_starting_is_not_called_unknown(written: str) -> None:
    """503 with `Retry-After` while there is no replica, and 404 for other paths afterwards."""
    assert "return status 404" in written
    text = tightened(written, "127.0.0.1", 100)
    assert "return status 404" not in text
    (line,) = [line for line in text.splitlines() if "unavailable" in line]
    assert "return status 503" in line
    assert "Retry-After 1" in line
    assert json.loads(line.partition("'")[2].removesuffix("'"))["error"]["code"] == Unavailable.code
    with_backend = written.replace(
        "    default_backend default_backend",
        "    use_backend x if TRUE\n    default_backend default_backend",
    )
    assert "return status 404" in tightened(with_backend, "127.0.0.1", 100)


def test_haproxy_takes_what_comes_out(written: str, tmp_path: Path) -> None:
    """The program itself checks the file."""
    path = tmp_path / "tight.cfg"
    path.write_text(tightened(written, "127.0.0.1", 100))
    checked = subprocess.run(
        [haproxy_program(), "-c", "-f", str(path)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("line", ["stats socket", "bind :9111", "bind *:8444", "mode http"])
def test_another_configuration_is_refused(written: str, line: str) -> None:
    """A Ray that writes these lines in another way ends the start, and is not served with them
    open.
    """
    other = written.replace(
        line, line.replace("stats", "statistics").replace("bind", "listen").replace("mode", "modus")
    )
    with pytest.raises(ValueError, match="not as expected"):
        tightened(other, "127.0.0.1", 100)


def test_the_launcher_becomes_haproxy_with_a_tighter_file(written: str, tmp_path: Path) -> None:
    """The script that Ray starts changes the file, and the process is then HAProxy."""
    import os
    import sys

    config = tmp_path / "haproxy.cfg"
    script = tmp_path / "haproxy"
    script.write_text(launcher(sys.executable))
    script.chmod(0o700)
    told = tmp_path / "told"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    program.chmod(0o700)
    variables = {
        "SIGLIP_HAPROXY_PROGRAM": str(program),
        "SIGLIP_HAPROXY_HOST": "0.0.0.0",
        "SIGLIP_HAPROXY_MAX_CONNECTIONS": "7",
    }
    subprocess.run(
        [str(script), "-db", "-f", str(config), "-sf", "12"], env=os.environ | variables, check=True
    )
    assert told.read_text().split() == ["-db", "-f", str(config), "-sf", "12"]
    assert "*:8123" in binds(config.read_text())
    assert "gt 7" in config.read_text()

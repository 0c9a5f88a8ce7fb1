"""Deploys a Serve config to a running cluster through its dashboard."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from serve_app.errors import ConfigError, Unavailable
from serve_app.processes.private_ray import token_for
from serve_app.siglip.user_folders import expand_user
from serve_app.untrusted.bounded_files import FileMissing, read_text, read_within
from serve_app.untrusted.bounded_http import ACCEPTED_ENCODINGS, read_response

APPLICATIONS_PATH = "/api/serve/applications/"
NODES_PATH = "/api/v0/nodes?detail=1&limit=1000"
HTTP_TIMEOUT_S = 30.0
"""Maximum time in which the dashboard sends no byte."""
RESPONSE_TIMEOUT_S = 60.0
"""Maximum time for one whole response, even if bytes keep arriving."""
POLL_S = 0.5
MAX_MESSAGE_CHARACTERS = 2_000
MAX_RESPONSE_BYTES = 64 * 2**20
"""Maximum size of one dashboard response, which repeats the configuration of every application."""
MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster, identified by the URL of its dashboard, such as `http://127.0.0.1:8265`."""

    address: str

    def deploy(self, serve_config: dict[str, Any]) -> None:
        """Send a Serve config to the cluster, and return before it is applied.

        Applications with other names do not change.

        Raises:
            Unavailable: The dashboard does not respond.
            ConfigError: The cluster refuses the config.
        """
        applications = serve_config["applications"]
        ours = {application["name"] for application in applications}
        # Serve deletes applications that a config does not list, so list the others again
        others = [
            application["deployed_app_config"]
            for name, application in self._applications().items()
            if name not in ours and application.get("deployed_app_config")
        ]
        self._send("PUT", json=serve_config | {"applications": [*others, *applications]})

    def application(self, name: str) -> dict[str, Any]:
        """Return what Serve reports about an application; empty if it does not exist."""
        found: dict[str, Any] = self._applications().get(name, {})
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """Return the resources and labels of the living nodes.

        Raises:
            Unavailable: The dashboard does not respond.
        """
        found: Any = self._content("GET", NODES_PATH)
        for key in ("data", "result", "result"):
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, list):
            raise Unavailable(
                f"{self.address} lists no nodes; is it the dashboard of a Ray cluster?"
            )
        alive = [node for node in found if isinstance(node, dict) and node.get("state") == "ALIVE"]
        return [
            {"resources": node.get("resources_total") or {}, "labels": node.get("labels") or {}}
            for node in alive
        ]

    def _applications(self) -> dict[str, dict[str, Any]]:
        found = self._content("GET").get("applications") or {}
        return (
            {name: one for name, one in found.items() if isinstance(one, dict)}
            if isinstance(found, dict)
            else {}
        )

    def wait_until_running(
        self,
        name: str,
        timeout_s: float,
        on_change: Callable[[str], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait until an application runs, or until `stopped` returns True.

        Args:
            name: Name of the application.
            timeout_s: Maximum time in seconds.
            on_change: Called with each new state of its deployments.
            stopped: Returns whether to stop waiting.

        Raises:
            ConfigError: The application cannot be deployed; the message has Serve's reason.
            Unavailable: The application does not run within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        last_state = ""
        while time.monotonic() < deadline and not stopped():
            application = self.application(name)
            state = _summary(application)
            if state != last_state:
                on_change(state)
                last_state = state
            match application.get("status"):
                case "RUNNING":
                    return
                case "DEPLOY_FAILED" | "UNHEALTHY":
                    raise ConfigError(f"the service cannot start: {_reason(application)}")
            time.sleep(POLL_S)
        if not stopped():
            raise Unavailable(
                f"the service did not start within {timeout_s:.0f} s; "
                f"its last state was: {last_state}"
            )

    def _content(self, method: str, path: str = APPLICATIONS_PATH) -> dict[str, Any]:
        """Return the JSON object in the dashboard's response."""
        try:
            content = self._send(method, path).json()
        except (ValueError, RecursionError) as error:
            raise Unavailable(
                f"{self.address} does not respond with JSON; is it the dashboard of a Ray cluster?"
            ) from error
        return content if isinstance(content, dict) else {}

    def _send(self, method: str, path: str = APPLICATIONS_PATH, **content: Any) -> httpx.Response:
        try:
            url = self.address.rstrip("/") + path
            headers = {"Accept-Encoding": ACCEPTED_ENCODINGS} | _authorization(self.address)
            response = read_within(
                lambda: _exchange(method, url, headers, content), RESPONSE_TIMEOUT_S
            )
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise Unavailable(
                f"no Ray dashboard responds at {self.address} ({type(error).__name__}); "
                "is the cluster running?"
            ) from error
        if response.status_code in (401, 403):
            raise ConfigError(
                f"the cluster at {self.address} requires a token; "
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
            )
        if response.is_error:
            raise ConfigError(
                f"the cluster refused the request ({response.status_code}): "
                f"{response.text[:MAX_MESSAGE_CHARACTERS]}"
            )
        return response


def _exchange(
    method: str, url: str, headers: dict[str, str], content: dict[str, Any]
) -> httpx.Response:
    with httpx.stream(method, url, timeout=HTTP_TIMEOUT_S, headers=headers, **content) as streamed:
        return read_response(streamed, MAX_RESPONSE_BYTES, RESPONSE_TIMEOUT_S)


def _authorization(address: str) -> dict[str, str]:
    """Return the header for a cluster with token authentication.

    If this user runs the service on this machine, its token is used. Otherwise the token comes from
    the variables and the file that Ray itself reads, in the same order.
    """
    token = token_for(address) or ""
    if not token and os.environ.get("RAY_AUTH_MODE") == "token":
        token = os.environ.get("RAY_AUTH_TOKEN", "")
        if not token:
            path = expand_user(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"))
            with contextlib.suppress(FileMissing):
                token = read_text(path, MAX_TOKEN_BYTES).strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _summary(application: dict[str, Any]) -> str:
    deployments = application.get("deployments", {})
    ready = [
        name for name, deployment in deployments.items() if deployment.get("status") == "HEALTHY"
    ]
    return f"{len(ready)} of {len(deployments)} deployments ready" if deployments else "starting"


def _reason(application: dict[str, Any]) -> str:
    """Return the last error of this package in Serve's message, or else the end of the message."""
    messages = [
        application.get("message", ""),
        *(
            deployment.get("message", "")
            for deployment in application.get("deployments", {}).values()
        ),
    ]
    text: str = max(messages, key=len)
    ours = [line for line in text.splitlines() if "serve_app.errors." in line]
    return ours[-1].split("serve_app.errors.")[-1] if ours else text[-MAX_MESSAGE_CHARACTERS:]

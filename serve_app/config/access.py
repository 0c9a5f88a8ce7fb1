"""The `access`, `fetch` and `telemetry` blocks: API keys, fetching by URL, logs and traces.

Not here: the code that applies them (`api/keys.py`, `api/fetching.py`, `api/app.py`,
`graph/tracing.py`).
"""

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from serve_app.config.settings import Count, Seconds, Settings


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def _origin(text: str) -> str:
    scheme, separator, host = text.partition("://")
    plain = (
        scheme in ("http", "https")
        and separator
        and host
        and not set(host) & set("/*")
        and text == text.lower()
    )
    if text != "*" and not plain:
        raise ValueError(
            "an origin is * or scheme://host in lower case, with :port where it has one, "
            "and nothing after it"
        )
    return text


class Access(Settings):
    """Who may use the service, and which pages it has.

    Attributes:
        api_keys: A file of keys, or `env` for the variable SIGLIP_API_KEYS; None for no keys.
        cors_origins: Origins that browsers may call from, such as `https://app.example.org`; `*`
            for all.
        page: Whether `/` shows the web page.
        docs: Whether `/docs` and `/openapi.json` exist.
    """

    api_keys: str | None = None
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    page: bool = True
    docs: bool = True


class Fetching(Settings):
    """Whether images are fetched by URL, and from which hosts.

    Attributes:
        enabled: Off by default, because clients can make a service that fetches URLs probe the
            network that it runs in.
        allow_http: Whether http is allowed besides https.
        hosts: Allowed host names, `*.example.org` for subdomains; empty for every public host.
        networks: Allowed networks that are not public, such as `10.20.0.0/16`.
        ports: Allowed ports.
        timeout_s: Time limit of one image in seconds, including redirects.
        max_redirects: Maximum number of redirects for one image; each is checked like the first
            URL.
        max_concurrent: Maximum number of images that one replica fetches at the same time.
    """

    enabled: bool = False
    allow_http: bool = False
    hosts: tuple[str, ...] = ()
    networks: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (443, 80)
    timeout_s: Seconds = 10.0
    max_redirects: Annotated[int, Field(ge=0, le=10)] = 3
    max_concurrent: Count = 32


class Tracing(Settings):
    """OpenTelemetry traces through Serve's tracing hook; the keys are Serve's `TracingConfig`.

    Attributes:
        enabled: Off by default.
        exporter_import_path: Function that returns span processors, such as
            `serve_app.graph.tracing:otlp`. If empty, Serve writes files next to its logs.
        sampling_ratio: Fraction of the requests without a sampling decision of their own that are
            traced, in [0, 1].
    """

    enabled: bool = False
    exporter_import_path: str = ""
    sampling_ratio: float = Field(0.01, ge=0, le=1)


class Telemetry(Settings):
    """What is recorded about requests besides the metrics.

    Attributes:
        request_log: One line for each request, as JSON or for reading on a console.
        tracing: Traces with a span for each stage.
    """

    request_log: Literal["json", "console", "off"] = "json"
    tracing: Tracing = Tracing()

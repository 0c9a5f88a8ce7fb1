"""Settings of who may ask, from where images may be fetched, and what is told of requests.

Not here: how they are carried out (`api/keys.py`, `api/fetching.py`, `api/edge.py`,
`graph/tracing.py`).
"""

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from serve_app.config.serving import Count, Seconds, Settings


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
            "an origin is * or scheme://host in lower case, with :port where it has one, and nothing after it"
        )
    return text


class Access(Settings):
    """Who may ask for what.

    Attributes:
        api_keys: Where keys are read: a file, `env` for the variable SIGLIP_API_KEYS, None for a
            service without keys.
        cors_origins: Origins whose pages may ask, such as `https://app.example.org`; `*` for all.
        page: Whether `/` shows the web page.
        docs: Whether `/docs` and `/openapi.json` are there.
    """

    api_keys: str | None = None
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()
    page: bool = True
    docs: bool = True


class Fetching(Settings):
    """Whether images are fetched by URL, and from where.

    Attributes:
        enabled: Off unless asked for: a service that fetches is one that can be made to look around
            in its own network.
        allow_http: Whether http is taken beside https.
        hosts: Names that may be fetched from, `*.example.org` for those below one; none for every
            public host.
        networks: Networks that may be fetched from although they are not public, such as
            `10.20.0.0/16`.
        ports: That are connected to.
        timeout_s: Of one image, redirects included.
        max_redirects: Followed for one image; each is checked like the first address.
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
    """OpenTelemetry by Serve's tracing hook; names are Serve's `TracingConfig`.

    Attributes:
        enabled: Off unless asked for.
        exporter_import_path: Function that returns span processors, such as
            `serve_app.graph.tracing:otlp`; Serve's own one, which writes files beside its logs, if
            it is empty.
        sampling_ratio: Of requests that bring no decision with them.
    """

    enabled: bool = False
    exporter_import_path: str = ""
    sampling_ratio: float = Field(0.01, ge=0, le=1)


class Telemetry(Settings):
    """What is told of requests, besides the metrics.

    Attributes:
        request_log: One line for each request, as JSON or for people.
        tracing: Traces with a span for each stage.
    """

    request_log: Literal["json", "console", "off"] = "json"
    tracing: Tracing = Tracing()

"""A span for each stage of a request, below the span that Serve's tracing hook starts.

Without `telemetry.tracing.enabled` there is no recording span, and this module does nothing.
"""

import time
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from serve_app.errors import ConfigError
from serve_app.telemetry import record as telemetry
from serve_app.telemetry.record import FinishedRequest

_TRACER = "siglip-serve"


def trace_stages(request: FinishedRequest) -> None:
    """Add the stages of every image of a finished request to its trace."""
    span = trace.get_current_span()
    record = telemetry.current()
    if record is None or not span.is_recording():
        return
    tracer = trace.get_tracer(_TRACER)
    shift_ns = time.time_ns() - time.perf_counter_ns()
    span.set_attributes(
        {
            "http.route": request.route,
            "http.response.status_code": request.status,
            "siglip.images": request.images,
        }
    )
    if request.code is not None:
        span.set_attribute("error.type", request.code)
    for i, image in enumerate(record.images):
        for stage, started_s, ended_s in image.spans:
            child = tracer.start_span(
                stage, start_time=int(started_s * 1e9) + shift_ns, attributes={"siglip.image": i}
            )
            child.end(int(ended_s * 1e9) + shift_ns)


def otlp() -> list[Any]:
    """Return a processor that sends spans by OTLP over HTTP.

    The standard `OTEL_EXPORTER_OTLP_*` variables set the destination. Serve calls this function if
    `telemetry.tracing.exporter_import_path` is `serve_app.graph.tracing:otlp`.

    Raises:
        ConfigError: The exporter is not installed.
    """
    try:
        # imported here, because the package is in the optional extra `tracing`
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigError(
            "sending traces needs the extra tracing: pip install 'siglip-serve[tracing]'."
        ) from error
    return [BatchSpanProcessor(OTLPSpanExporter())]

"""An observer that logs one line for each request, as JSON for machines or in columns for people.

A line never contains image content, an API key, a query string or an address.
"""

import sys
from datetime import UTC, datetime
from typing import TextIO

from serve_app.telemetry.record import FinishedRequest, Observer
from serve_app.terminal.printable import json_text, printable


def request_log(style: str, out: TextIO | None = None) -> Observer:
    """Return an observer that writes a line for each request.

    Args:
        style: `json` or `console`.
        out: The stream to write to. The default is the process's original standard output, since
            Serve may have replaced `sys.stdout`.
    """
    line = json_line if style == "json" else console_line

    def write(answered: FinishedRequest) -> None:
        """Write one line at once, so that processes that share the file do not mix their lines."""
        stream = out or sys.__stdout__
        if stream is not None:  # it is None under pythonw
            # not `print`, which Ray replaces in its workers
            stream.write(line(answered, datetime.now(UTC)) + "\n")
            stream.flush()

    return write


def json_line(answered: FinishedRequest, now: datetime) -> str:
    """Return a request as one JSON object; times are milliseconds."""
    entry = {
        "time": now.isoformat(timespec="milliseconds"),
        "event": "request",
        "request_id": answered.request_id,
        "key": answered.key,
        "method": answered.method,
        "route": answered.route,
        "status": answered.status,
        "code": answered.code,
        "duration_ms": _ms(answered.seconds),
        "bytes_in": answered.bytes_in,
        "images": answered.images,
        "stages_ms": {stage: _ms(seconds) for stage, seconds in answered.stages.items()} or None,
    }
    return json_text({name: value for name, value in entry.items() if value is not None})


def console_line(answered: FinishedRequest, now: datetime) -> str:
    """Return a request as one line for people."""
    stages = "".join(f" {stage}={_ms(seconds):g}" for stage, seconds in answered.stages.items())
    code = f" {answered.code}" if answered.code else ""
    what = f"{answered.method} {answered.route} {answered.status}{code}"
    whose = f" key={answered.key}" if answered.key else ""
    measured = f"{_ms(answered.seconds):g} ms images={answered.images}{stages}"
    return printable(f"{now:%H:%M:%S} {what} {measured}{whose} id={answered.request_id}")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)

"""Requests made from the OpenAPI document by schemathesis: no 5xx, and no answer that the document
does not name.
"""

import re
import subprocess
import sys
from pathlib import Path

SECONDS = 20
COMMAND = str(Path(sys.executable).with_name("schemathesis"))


def fuzz(address: str, seconds: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run schemathesis against a service for some seconds, all its checks but two.

    One wants every request accepted that fits the schema; no schema says which text is the base64
    of a picture. The other wants every request refused that does not; it sends `false` as a form's
    label, which is a text in a form like any other.
    """
    command = [
        COMMAND,
        "run",
        f"{address}/openapi.json",
        "--max-time",
        str(seconds),
        "--seed",
        "1",
        "--no-color",
    ]
    options = [
        "--exclude-checks",
        "positive_data_acceptance,negative_data_rejection",
        "--request-timeout",
        "30",
    ]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=folder, timeout=seconds + 120
    )


def test_the_document_holds(server: str, tmp_path: Path) -> None:
    """Status, content type, headers and body of every answer are documented; bad requests are
    refused; nothing ends in 5xx.
    """
    run = fuzz(server, SECONDS, tmp_path)
    assert run.returncode == 0, run.stdout[-6000:]
    generated = re.search(r"^ +([\d,]+) generated", run.stdout, re.MULTILINE)
    assert generated is not None, run.stdout[-2000:]
    assert int(generated[1].replace(",", "")) > 50  # several hundred on a quiet machine


if __name__ == "__main__":  # python -m tests.clients.test_openapi http://127.0.0.1:8000 600
    found = fuzz(sys.argv[1], int(sys.argv[2]), Path.cwd())
    print(found.stdout[-6000:], found.stderr[-2000:])
    sys.exit(found.returncode)

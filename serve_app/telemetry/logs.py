"""Configures the logging of commands and replicas: one line per event, at level WARNING.

Commands with `--verbose` also log at level INFO.
"""

import logging
import sys
import textwrap
import warnings
from typing import Any

from serve_app.terminal.printable import printable, printable_lines

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NOISY = ("httpx", "transformers", "huggingface_hub", "PIL")


class SafeFormatter(logging.Formatter):
    """Writes every event as one line with hidden characters escaped, and indents its traceback.

    Otherwise, a label or a file name that contains a newline could imitate log lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        """Return the line of an event."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return an indented traceback."""
        return textwrap.indent(printable_lines(super().formatException(ei)), "  ")


def configure_logging(verbose: bool) -> None:
    """Configure a command's root logger: warnings, and with `verbose` this package's INFO logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter(FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("serve_app").setLevel(logging.INFO if verbose else logging.WARNING)
    if not verbose:
        warnings.simplefilter("ignore", FutureWarning)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)


def configure_replica_logging() -> None:
    """Configure this package's logger in a replica: warnings, to the process's original stderr.

    Serve may replace `sys.stderr` with a logger that buffers a thousand lines, so errors would be
    written too late or never.
    """
    logger = logging.getLogger("serve_app")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(SafeFormatter(FORMAT))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False

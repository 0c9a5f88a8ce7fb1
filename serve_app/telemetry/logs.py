"""The logging set-up of commands and replicas: one line for each event, warnings and errors only.

Commands with `--verbose` also log information.
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

    A label or a file name with a newline in it could otherwise write lines that look like events.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        """Return an event's line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return a traceback, indented."""
        return textwrap.indent(printable_lines(super().formatException(ei)), "  ")


def configure_logging(verbose: bool) -> None:
    """Set up the root logger of a command: warnings, or this package's own logs with `verbose`."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter(FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("serve_app").setLevel(logging.INFO if verbose else logging.WARNING)
    if not verbose:
        warnings.simplefilter("ignore", FutureWarning)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)


def configure_replica_logging() -> None:
    """Set up this package's logger in a replica: warnings, to the process's original stderr.

    Serve may replace `sys.stderr` by a logger of its own that buffers a thousand lines, so errors
    would be written too late or never.
    """
    logger = logging.getLogger("serve_app")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(SafeFormatter(FORMAT))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False

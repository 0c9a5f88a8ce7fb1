"""How this package logs, on a command line and in a replica: one line an event, warnings and errors unless asked for more."""

import logging
import sys
import warnings

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NOISY = ("httpx", "transformers", "huggingface_hub", "PIL")


def configure_logging(verbose: bool) -> None:
    """Set the root logger up for a command: warnings, or everything from here with `verbose`."""
    logging.basicConfig(format=FORMAT, level=logging.WARNING)
    logging.getLogger("serve_app").setLevel(logging.INFO if verbose else logging.WARNING)
    if not verbose:
        warnings.simplefilter("ignore", FutureWarning)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)


def configure_replica_logging() -> None:
    """Set this package's logger up in a process of the graph: warnings, to the process's own standard error.

    Serve may put its own logger in place of `sys.stderr`, one that keeps a thousand lines before it writes any: what
    went wrong would be read too late, or never.
    """
    logger = logging.getLogger("serve_app")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False

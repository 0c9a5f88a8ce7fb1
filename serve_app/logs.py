"""How this package logs on a command line: one line an event, warnings and errors only unless asked for more."""

import logging
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

"""The program `siglip-serve`, also as `python -m serve_app`."""

import sys


def run() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, also during the imports."""
    try:
        from serve_app.cli import main  # here, so that Ctrl-C during this import is caught

        sys.exit(main(is_program=True))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()

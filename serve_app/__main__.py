"""The program `siglip-serve`, also as `python -m serve_app`."""

import sys


def run() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, also while the package is being
    imported.
    """
    try:
        from serve_app.cli import main  # takes half a second

        sys.exit(main(is_program=True))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()

"""`python -m serve_app.batch`: the command `siglip-serve batch`, as a Ray job calls it."""

import sys

from serve_app.cli import main

if __name__ == "__main__":
    sys.exit(main(["batch", *sys.argv[1:]]))

"""Folders as people have them: odd names, links in circles, pipes, sockets, litter, and what cannot
be read.
"""

import os
import socket
from pathlib import Path

ODD_NAMES = (
    *(
        b"plain.png",
        b"_DSC0001.JPG",
        b"UPPER.HEIC",
        b"caf\xe9.png",
        b"caf\xc3\xa9.png",
        b"new\nline.png",
        b"esc\x1b[2J.png",
    ),
    *(
        b"10:30.png",
        b"a#b.png",
        b"what?.png",
        b"100%25.png",
        b"a+b.png",
        b"back\\slash.png",
        b" space .png",
        b"two.dots..png",
    ),
)
"""Names of images that are all found."""
LITTER = (
    *(
        "._plain.png",
        ".hidden.png",
        ".thumbnails/a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/a.png",
        "@eaDir/a.png",
    ),
    *(
        "#recycle/a.png",
        "$RECYCLE.BIN/a.png",
        ".Trash-1000/files/a.png",
        "System Volume Information/a.png",
        "Thumbs.db",
        "Icon\r",
    ),
)
"""Paths of files that no folder's images are; each is in a folder of its own or none."""


def write(folder: Path, name: bytes | str, data: bytes = b"x") -> None:
    """Write a file, and the folders above it."""
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def make_obstacles(folder: Path, outside: Path) -> None:
    """Put in a folder what a listing may stumble over, under the names of images."""
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to("gone")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "circle").symlink_to(".")
    (folder / "outside").symlink_to(outside)
    here = os.getcwd()
    try:
        os.chdir(folder)  # the name of a socket has 107 bytes at most
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.png")
    finally:
        os.chdir(here)
    make_too_deep(folder)


def make_too_deep(folder: Path) -> None:
    """Make folders so deep that their paths are longer than the system takes: reading them fails,
    for root too.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("d" * 250, dir_fd=descriptor)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)


def make_unreadable(path: Path) -> None:
    """Make a file that opens and cannot be read, for root neither."""
    path.symlink_to("/proc/self/mem")

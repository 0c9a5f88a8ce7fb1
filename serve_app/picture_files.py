"""Which files are pictures, by their suffix; whether they can be read is seen when they are."""

from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures of a folder and of the folders in it, by their suffix, in a fixed order."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())

"""What names of files and folders mean: images, parts of a split, and classes in order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
    )
)
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
OUTPUT_MARKERS = ("leaderboard.json", "state.json", "comparison.json", "probe.json")
"""Files that tell our own results from images; a plan alone may be anybody's."""

_MOST_DIGITS = 100  # of a class name that is taken for a number


def is_image_name(name: str | PurePath) -> bool:
    """Return whether a file's name is one of an image, and not of a hidden file."""
    path = name if isinstance(name, PurePath) else PurePath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def is_helper_folder(name: str) -> bool:
    """Return whether a folder is a program's own: hidden, `__MACOSX`, `@eaDir` and the like."""
    is_hidden = name.startswith((".", "__")) and name != ".."
    return is_hidden or name == "@eaDir"


def is_image_member(name: str | PurePath) -> bool:
    """Return whether a path within a folder or an archive is an image, in no helper folder."""
    path = PurePath(name)
    return is_image_name(path) and not any(map(is_helper_folder, path.parts[:-1]))


def printable_name(name: str) -> str:
    """Return a name that can be written as UTF-8, whatever bytes the file system has for it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def natural_order(labels: Iterable[str]) -> list[str]:
    """Return class names in their order: by value where all are numbers, else by name."""
    names = set(labels)
    if all(name.isdecimal() and len(name) < _MOST_DIGITS for name in names):
        return sorted(names, key=int)
    return sorted(names)


def is_own_output(folder: Path) -> bool:
    """Return whether a folder is a run, a comparison or a probe of ours, finished or not."""
    return any((folder / name).exists() for name in OUTPUT_MARKERS)

"""Folders of class folders as datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from regraft.data.dataset import Dataset
from regraft.data.listing import LabelledFile, dataset_from_files
from regraft.data.names import (
    PART_NAMES,
    is_helper_folder,
    is_image_member,
    is_image_name,
    is_own_output,
    printable_name,
)
from regraft.errors import UserError, join_truncated


def load_folder(root: Path, name: str | None = None) -> Dataset:
    """Return the images under `{train,val,test}/<class>/` or `<class>/`.

    Classes are in the order of their names. What stands alone in a folder is opened, since an
    archive often holds one folder with everything in it.

    Args:
        root: The folder.
        name: What the dataset is called; the folder's name without one.

    Raises:
        UserError: When there are no class folders with images, or they are links in a circle.
    """
    if name is None:
        has_name = bool(root.name.strip("."))  # "." and ".." are no names
        name = root.name if has_name else root.resolve().name
    only = _find_only_folder(root)
    if only is not None:
        return load_folder(only, name)
    files: list[LabelledFile] = []
    classes: set[str] = set()
    for top, part in _find_part_folders(root).items():
        for class_folder in _find_folders(top):
            _check_link(class_folder, root)
            classes.add(printable_name(class_folder.name))
            files += _list_class(class_folder, root, part)
    if not files:
        raise _no_images(root)
    return dataset_from_files(name, files, sorted(classes))


def _find_only_folder(root: Path) -> Path | None:
    """Return the folder that holds everything, or None where there is no such folder."""
    folders = _find_folders(root)
    if len(folders) != 1 or any(_is_image(path) for path in root.iterdir()):
        return None
    only = folders[0]
    holds_folders = any(path.is_dir() for path in only.iterdir())
    if only.name.lower() in PART_NAMES or not holds_folders:
        return None
    return only


def _find_part_folders(root: Path) -> dict[Path, str]:
    """Return the folders that hold class folders, each with its part; "" where there are none.

    A folder of images beside other classes is a class, even if it is called like a part.
    """
    folders = _find_folders(root)
    parts = {}
    for path in folders:
        if path.name.lower() in PART_NAMES:
            parts[path] = PART_NAMES[path.name.lower()]
    has_others = len(parts) < len(folders)
    holds_classes = any(map(_find_folders, parts))
    if has_others and not holds_classes:
        return {root: ""}  # a class may be called "test", too
    if has_others:
        others = join_truncated(path.name for path in folders if path not in parts)
        raise UserError(
            f"{root} mixes part folders ({join_truncated(path.name for path in parts)}) with "
            f"others ({others}). Expected train, val and test folders only, or class folders only. "
            "Move the others away."
        )
    return parts


def _list_class(class_folder: Path, root: Path, part: str) -> Iterator[LabelledFile]:
    """Yield the images of a class, in the order of their paths."""
    label = printable_name(class_folder.name)
    for path in sorted(class_folder.rglob("*")):
        if _is_image(path) and is_image_member(path.relative_to(class_folder)):
            key = printable_name(path.relative_to(root).as_posix())
            yield LabelledFile(str(path), label, key, part)


def _no_images(root: Path) -> UserError:
    loose = sum(_is_image(path) for path in root.iterdir())
    if loose:
        problem = f"holds {loose:,} images but no class folders"
    else:
        problem = "holds no images"
    return UserError(
        f"{root} {problem}. Expected one folder a class, as in {root / 'cat/1.jpg'}, "
        "or train, val and test folders with class folders. Sort the images into such folders."
    )


def _find_folders(top: Path) -> list[Path]:
    """Return the folders in one that may hold images, sorted; no helper folders, no results."""
    folders = []
    for path in top.iterdir():
        if path.is_dir() and not is_helper_folder(path.name) and not _is_result(path):
            folders.append(path)
    return sorted(folders)


def _is_result(path: Path) -> bool:
    """Return whether a folder is a run or comparison, or holds some."""
    return is_own_output(path) or any(is_own_output(inner) for inner in path.glob("*/"))


def _is_image(path: Path) -> bool:
    return is_image_name(path) and (path.is_file() or path.is_symlink())


def _check_link(class_folder: Path, root: Path) -> None:
    """Raise `UserError` for a class folder that links to a place around or within the root.

    Its images would be in several classes.
    """
    if not class_folder.is_symlink():
        return
    target = class_folder.resolve()
    top = root.resolve()
    if target.is_relative_to(top) or top.is_relative_to(target):
        raise UserError(
            f"{class_folder} is a link to {target}, which is around or within {root}. "
            "Expected every image in one class only. Remove the link."
        )

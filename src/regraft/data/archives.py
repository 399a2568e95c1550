"""Zip and tar files of class folders as datasets, unpacked once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from regraft.data.dataset import Dataset
from regraft.data.folders import load_folder
from regraft.data.names import is_image_name, printable_name
from regraft.data.packed import UNPACK_ERRORS, check_growth
from regraft.errors import DiskFull, UserError, join_truncated
from regraft.system.disk import is_disk_full
from regraft.system.files import make_scratch_dir, stale_dirs

_TAR_HEADER = 512  # bytes of each member's header


def unpack_archive(path: Path, target: Path) -> None:
    """Unpack folders and images of an archive; whatever else it holds stays packed.

    Raises:
        UserError: When a member would lie outside of `target`, or the files are too large.
    """
    if path.name.lower().endswith(".zip"):  # decided by name: a tar that holds a zip looks like one
        _unpack_zip(path, target)
    else:
        _unpack_tar(path, target)


def load_archive(
    path: Path, home: Path, *, unpack: Callable[[Path, Path], None] = unpack_archive
) -> Dataset:
    """Return the images in a zip or tar of a folder, unpacked once.

    Args:
        path: The archive.
        home: The cache folder, below which it is unpacked.
        unpack: Unpacks an archive into an empty folder.

    Raises:
        UserError: When it cannot be unpacked, or does not hold class folders of images.
    """
    stat = path.stat()
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    target = home / "archives" / digest
    if not target.is_dir():
        try:
            _unpack_whole(path, target, unpack)
        except UNPACK_ERRORS as error:
            raise _explain(path, target.parent, error) from error
    return load_folder(target, path.name)


def _unpack_whole(path: Path, target: Path, unpack: Callable[[Path, Path], None]) -> None:
    """Unpack into a scratch folder, and give it its name when everything is there."""
    scratch = make_scratch_dir(target)
    try:
        for leftover in stale_dirs(target.parent):
            shutil.rmtree(leftover, ignore_errors=True)
        unpack(path, scratch)
        _rename(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, target: Path) -> None:
    """Give an unpacked folder its name, unless another process was faster."""
    try:
        os.replace(scratch, target)
    except OSError:
        if not target.is_dir():
            raise


def _explain(path: Path, folder: Path, error: BaseException) -> UserError:
    if is_disk_full(error):
        return DiskFull(
            f"{path} cannot be unpacked into {folder}: no space left on its disk. "
            "Expected room for all its images. Make room, or set REGRAFT_CACHE to another disk."
        )
    return UserError(
        f"{path} cannot be unpacked ({error}). Expected a whole zip or tar of class folders. "
        "Fetch or pack it again."
    )


def _unpack_zip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as packed:
        members = []
        for member in packed.infolist():
            if member.filename.endswith("/") or is_image_name(member.filename):
                members.append(member)
        unpacked = sum(member.file_size for member in members)
        _check_members([member.filename for member in members], unpacked, path, target)
        packed.extractall(target, members)  # noqa: S202  zipfile drops absolute paths and '..'


def _unpack_tar(path: Path, target: Path) -> None:
    with tarfile.open(path) as packed:
        members = []
        n_bytes = 0
        for member in packed:
            n_bytes += _TAR_HEADER + member.size
            check_growth(path, n_bytes)  # to find the next one, this one must be unpacked
            if member.isdir() or is_image_name(member.name):
                members.append(member)
        unpacked = sum(member.size for member in members)
        _check_members([member.name for member in members], unpacked, path, target)
        packed.extractall(target, members, filter="data")


def _check_members(names: Sequence[str], unpacked: int, path: Path, target: Path) -> None:
    """Raise `UserError` for members that lead out of the target, or are too large for it."""
    outside = [printable_name(name) for name in names if _leads_out(name)]
    if outside:
        raise UserError(
            f"{path} cannot be unpacked: {join_truncated(outside)} would lie outside of it. "
            "Expected class folders of images. Pack the folder itself."
        )
    check_growth(path, unpacked)
    free = shutil.disk_usage(target).free
    if unpacked > free:
        raise UserError(
            f"{path} unpacks to {unpacked / 1e6:,.0f} MB, but {target.parent} has "
            f"{free / 1e6:,.0f} MB free. Make room, or set REGRAFT_CACHE to another disk."
        )


def _leads_out(name: str) -> bool:
    return ".." in PurePosixPath(name.replace("\\", "/")).parts

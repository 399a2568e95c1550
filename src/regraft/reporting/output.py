"""Where a page is written, and where not."""

from __future__ import annotations

from pathlib import Path

from regraft.errors import UserError
from regraft.system.disk import check_writable, unwritable_error
from regraft.system.output import write_text


def require_new_page(out: Path, overwrite: bool) -> None:
    """Raise `UserError` where a page cannot be written.

    The file exists and is not to be overwritten, or its folder does not exist.
    """
    if out.is_dir():
        raise UserError(
            f"{out} is a folder. Expected a file for the page. Give a file name, such as "
            f"{out / 'report.html'}."
        )
    if out.exists() and not overwrite:
        raise UserError(
            f"{out} exists already. Expected a new file. Pass --overwrite to replace it, or "
            "another --out."
        )
    if not out.absolute().parent.is_dir():
        raise UserError(
            f"{out} cannot be written: {out.parent} is no folder. Make it first, or give another "
            "--out."
        )
    check_writable(out.parent, out)


def write_page(path: Path, text: str) -> None:
    """Write a page; raises `UserError` where the disk refuses."""
    try:
        write_text(path, text)
    except OSError as error:
        raise unwritable_error(path, error) from error

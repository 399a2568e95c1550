"""How far a packed file may grow, and what the readers of damaged ones raise."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from regraft.errors import UserError

MOST_GROWTH = 200  # times its packed size that something may unpack to; images hardly shrink
_ALWAYS_ALLOWED = 2**28  # bytes that anything may unpack to
UNPACK_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,  # encrypted
)


def check_growth(path: Path, unpacked: int) -> None:
    """Raise `UserError` where a file unpacks to more than images would.

    Args:
        path: The packed file.
        unpacked: The bytes it unpacks to; allowed are 268 MB, or 200 times its own size.
    """
    size = path.stat().st_size
    if unpacked > max(_ALWAYS_ALLOWED, MOST_GROWTH * size):
        raise UserError(
            f"{path} has {size / 1e6:,.1f} MB and unpacks to {unpacked / 1e6:,.0f} MB or more. "
            "Expected images, which hardly shrink when they are packed; files that grow so much "
            "are made to fill a disk. If you trust it, unpack it yourself and give the folder."
        )

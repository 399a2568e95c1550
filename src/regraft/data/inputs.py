"""Images as Python hands them over, an array or a list of paths, checked before anything is read.

Refuses to guess: what is neither says what was expected instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import ArrayImages, Images
from regraft.data.decode import EncodedImages, read_bytes
from regraft.errors import UserError


def images_from_input(given: NDArray[Any] | Iterable[str | Path], what: str) -> Images:
    """Return images from an array `(n, h, w, 3)` uint8 or from paths; `what` is what the caller calls them.

    Raises:
        UserError: For anything else. A file that cannot be read says so when it is.
    """
    if isinstance(given, (str, Path)):
        raise UserError(
            f"{what} is the single path {str(given)!r}. Expected an array (n, h, w, 3) of uint8, or a list of paths. Put it into a list."
        )
    if isinstance(given, np.ndarray) and given.dtype.kind not in "OUT":
        if given.ndim != 4 or given.shape[3] != 3 or given.dtype != np.uint8:
            raise UserError(
                f"{what} has the shape {given.shape} and the type {given.dtype}. Expected images (n, h, w, 3) of uint8, or paths. "
                "Put a single image into a batch with x[None]; repeat a grey channel three times; turn numbers from 0 to 1 into (x * 255).astype('uint8')."
            )
        return ArrayImages(given)
    paths = list(given)
    strange = next((one for one in paths if not isinstance(one, (str, Path))), None)
    if strange is not None:
        kind = type(strange).__name__
        raise UserError(
            f"{what} holds {kind}. Expected paths of image files, or one array (n, h, w, 3) of uint8. Stack arrays with numpy.stack."
        )
    files = [Path(one).expanduser() for one in paths]
    return EncodedImages(
        [str(one) for one in files], lambda row: read_bytes(files[row]), np.arange(len(files))
    )

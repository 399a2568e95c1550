"""Images as Python hands them over, an array or a list of paths, checked before they are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.decode import EncodedImages, read_bytes
from regraft.data.images import ArrayImages, Images
from regraft.errors import UserError


def images_from_input(given: NDArray[Any] | Iterable[str | Path], what: str) -> Images:
    """Return images from an array `(n, h, w, 3)` uint8 or from paths.

    Args:
        given: The array or the paths.
        what: What the caller calls them, for messages.

    Raises:
        UserError: For anything else. A file that cannot be read says so when it is read.
    """
    if isinstance(given, (str, Path)):
        raise UserError(
            f"{what} is the single path {str(given)!r}. Expected an array (n, h, w, 3) of uint8, "
            "or a list of paths. Put it into a list."
        )
    if isinstance(given, np.ndarray) and given.dtype.kind not in "OUT":
        return _of_array(given, what)
    files = []
    for path in given:
        if not isinstance(path, (str, Path)):
            raise UserError(
                f"{what} holds {type(path).__name__}. Expected paths of image files, or one array "
                "(n, h, w, 3) of uint8. Stack arrays with numpy.stack."
            )
        files.append(Path(path).expanduser())
    names = [str(file) for file in files]
    return EncodedImages(names, lambda row: read_bytes(files[row]), np.arange(len(files)))


def _of_array(array: NDArray[Any], what: str) -> ArrayImages:
    has_shape = array.ndim == 4 and array.shape[3] == 3
    if not has_shape or array.dtype != np.uint8:
        raise UserError(
            f"{what} has the shape {array.shape} and the type {array.dtype}. Expected images "
            "(n, h, w, 3) of uint8, or paths. Put a single image into a batch with x[None]; "
            "repeat a grey channel three times; turn numbers from 0 to 1 into "
            "(x * 255).astype('uint8')."
        )
    return ArrayImages(array)

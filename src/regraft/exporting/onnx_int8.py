"""An ONNX graph in int8: weights and activations of the network, ranges from training images.

The drop of accuracy on validation images is measured and reported each time; a larger one than
allowed is refused.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import UserError
from regraft.evaluation.scores import Scores, compute_scores
from regraft.exporting.onnx import onnx_answers
from regraft.exporting.onnx_resize import RESIZE_PREFIX
from regraft.exporting.parity import Pixels, run_answers

_SMALLEST = 1e-12  # probability whose logarithm is taken


@dataclass(frozen=True)
class AccuracyDrop:
    """What int8 costs on the same validation images.

    Args:
        before: Scores in float32.
        after: Scores in int8.
        other_class: Images that get another class.
    """

    before: Scores
    after: Scores
    other_class: int

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data; `drop` is a difference of accuracies in 0 … 1."""
        return {
            "float32": self.before.to_json(),
            "int8": self.after.to_json(),
            "drop": self.before.accuracy - self.after.accuracy,
            "other_class": self.other_class,
            "n": self.before.n,
        }


def write_int8(source: Path, path: Path, images: Sequence[Pixels]) -> None:
    """Write an int8 copy of an ONNX graph; preprocessing and softmax stay as they are.

    Args:
        source: The graph in float32.
        path: Where the copy goes.
        images: Decoded training images of any sizes, to find the ranges on.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _quiet(), TemporaryDirectory() as folder:
        inferred = Path(folder) / "inferred.onnx"
        quant_pre_process(
            str(source), str(inferred), skip_symbolic_shape=True, skip_optimization=True
        )
        _quantise(inferred, path, images)
        _copy_metadata(source, path)


def measure_drop(
    before: Path, after: Path, images: Sequence[Pixels], targets: NDArray[np.int64]
) -> AccuracyDrop:
    """Return what int8 costs.

    Args:
        before: The graph in float32.
        after: The graph in int8.
        images: Decoded images of any sizes.
        targets: Their classes, `(n,)`.
    """
    exact = _log_probabilities(before, images)
    rounded = _log_probabilities(after, images)
    is_other = exact.argmax(axis=1) != rounded.argmax(axis=1)
    return AccuracyDrop(
        compute_scores(exact, targets), compute_scores(rounded, targets), int(is_other.sum())
    )


def check_drop(drop: AccuracyDrop, most: float) -> None:
    """Refuse an int8 graph that lost too much.

    Args:
        drop: What int8 costs.
        most: Percentage points of accuracy that it may cost.

    Raises:
        UserError: When it costs more.
    """
    before, after = drop.before.accuracy, drop.after.accuracy
    points = (before - after) * 100
    if points <= most:
        return
    raise UserError(
        f"int8 has accuracy {after:.4f} instead of {before:.4f} on {drop.before.n:,} validation "
        f"images, a drop of {points:.2f} points. Expected at most {most:g}; nothing was written. "
        f"Export without --int8, or allow it with --max-drop {math.ceil(points)}."
    )


def _quantise(source: Path, path: Path, images: Sequence[Pixels]) -> None:
    """Write the int8 copy of a graph whose shapes are inferred."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Pixels] = iter(images)

        def get_next(self) -> dict[str, Pixels] | None:
            image = next(self.rest, None)
            return None if image is None else {"images": image[None]}

    quantization.quantize_static(
        str(source),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        nodes_to_exclude=_exact_nodes(source),
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )


def _exact_nodes(source: Path) -> list[str]:
    """Return the names of the nodes that stay in float: preprocessing and softmax."""
    import onnx

    names = []
    for node in onnx.load(source).graph.node:
        if node.name.startswith(RESIZE_PREFIX) or node.op_type == "Softmax":
            names.append(node.name)
    return names


def _copy_metadata(source: Path, path: Path) -> None:
    """Give the int8 copy the metadata of its source."""
    import onnx

    original = onnx.load(source, load_external_data=False)
    properties = {entry.key: entry.value for entry in original.metadata_props}
    properties["arithmetic"] = "int8"
    model = onnx.load(path)
    onnx.helper.set_model_props(model, properties)
    model.producer_name = "regraft"
    onnx.save(model, path)


def _log_probabilities(path: Path, images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Return what a graph answers, `(n, classes)`."""
    probabilities = run_answers(onnx_answers(path), images)
    logarithms: NDArray[np.float64] = np.log(np.maximum(probabilities, _SMALLEST))
    return logarithms


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's remarks from the user; it speaks through the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)

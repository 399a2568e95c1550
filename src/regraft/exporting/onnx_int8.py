"""An ONNX graph in whole numbers: weights and activations of the network in int8, their ranges found on training images.

Refuses to promise accuracy: the drop on validation is measured and reported, each time.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.evaluation.scores import Scores, compute_scores
from regraft.exporting.onnx import onnx_answers
from regraft.exporting.onnx_resize import RESIZE_PREFIX
from regraft.exporting.parity import Pixels

_AT_ONCE = 16


@dataclass(frozen=True)
class AccuracyDrop:
    """What int8 costs: accuracy on the same validation images before and after, and how many of them get another class."""

    before: Scores
    after: Scores
    other_class: int

    def plain(self) -> dict[str, Any]:
        """Return it as plain data; `drop` is in shares, as accuracy is."""
        return {
            "float32": self.before.plain(),
            "int8": self.after.plain(),
            "drop": self.before.accuracy - self.after.accuracy,
            "other_class": self.other_class,
            "n": self.before.n,
        }


def write_int8(source: Path, path: Path, images: Sequence[Pixels]) -> None:
    """Write an int8 copy of an ONNX graph; what stands before the network, and the softmax, stay as they are.

    Args:
        source: The graph in float32.
        path: Where the copy goes.
        images: Decoded training images of any sizes, to find the ranges on.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Pixels] = iter(images)

        def get_next(self) -> dict[str, Pixels] | None:
            image = next(self.rest, None)
            return None if image is None else {"images": image[None]}

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # the quantiser speaks through the root logger
    try:
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ready = Path(folder) / "ready.onnx"
            quant_pre_process(
                str(source), str(ready), skip_symbolic_shape=True, skip_optimization=True
            )
            kept = [
                node.name
                for node in onnx.load(ready).graph.node
                if node.name.startswith(RESIZE_PREFIX) or node.op_type == "Softmax"
            ]
            quantization.quantize_static(
                str(ready),
                str(path),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                nodes_to_exclude=kept,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        made = onnx.load(path)
        props = {
            one.key: one.value for one in onnx.load(source, load_external_data=False).metadata_props
        }
        onnx.helper.set_model_props(made, {**props, "arithmetic": "int8"})
        made.producer_name = "regraft"
        onnx.save(made, path)
    finally:
        logging.root.setLevel(level)


def measure_drop(
    before: Path, after: Path, images: Sequence[Pixels], targets: NDArray[np.int64]
) -> AccuracyDrop:
    """Return what int8 costs on labelled images of any sizes."""
    from regraft.exporting.parity import run_answers

    logits = [
        np.log(np.maximum(run_answers(onnx_answers(path), images), 1e-12))
        for path in (before, after)
    ]
    other = int((logits[0].argmax(axis=1) != logits[1].argmax(axis=1)).sum())
    return AccuracyDrop(
        compute_scores(logits[0], targets), compute_scores(logits[1], targets), other
    )

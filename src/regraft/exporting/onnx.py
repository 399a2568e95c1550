"""A run as an ONNX graph: decoded pixels in, probabilities out, everything between them inside.

Refuses a graph that needs anything else: no file beside it, no operator of a private domain.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from regraft.errors import UserError, join_truncated
from regraft.exporting.model_card import model_facts
from regraft.exporting.module import model_core
from regraft.exporting.onnx_resize import resize_graph
from regraft.exporting.parity import Answered, Answers, Pixels
from regraft.runs.folder import Run

if TYPE_CHECKING:
    import onnx

OPSET = 18
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_MAX_BYTES = 2**31 - 1  # of a protobuf

_SOFTMAX = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
answer (float[batch, {classes}] logits) => (float[batch, {classes}] probabilities)
{{ probabilities = Softmax <axis = -1> (logits) }}
"""


def require_onnx() -> None:
    """Raise `UserError` where the packages for ONNX are not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to onnx needs {join_truncated(missing)}, which cannot be imported. "
            "Expected the packages of the extra: pip install 'regraft[export]'"
        )


def write_onnx(finished: Run, path: Path) -> None:
    """Write the whole network, with class names and digests in the graph's metadata.

    The number of images in a batch is free, and so is their size, which is one within a batch.
    """
    import onnx
    from onnx import compose, helper

    preprocess, network = model_core(finished)
    main = _export_network(network, preprocess.resolution)
    resize = resize_graph(preprocess, main.ir_version, OPSET)
    classes = len(finished.classes)
    softmax = onnx.parser.parse_model(
        _SOFTMAX.format(ir=main.ir_version, opset=OPSET, classes=classes)
    )
    whole = compose.merge_models(resize, main, [("seen", "seen")], name="regraft")
    whole = compose.merge_models(whole, softmax, [("logits", "logits")], name="regraft")
    del whole.opset_import[1:]  # merging lists the same one once for each piece
    facts = model_facts(finished)
    whole.producer_name = "regraft"
    whole.producer_version = facts["regraft"]
    helper.set_model_props(whole, {name: _to_text(value) for name, value in facts.items()})
    onnx.checker.check_model(whole, full_check=True)
    onnx.save(whole, path)


def onnx_session(path: Path) -> Any:
    """Return an ONNX Runtime session on the CPU that reports nothing but errors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_answers(path: Path) -> Answers:
    """Return the file as a function from images of one size to probabilities."""
    runtime = onnx_session(path)

    def answer(images: Pixels) -> Answered:
        return np.asarray(runtime.run(["probabilities"], {"images": images})[0])

    return answer


def _export_network(network: torch.nn.Module, side: int) -> onnx.ModelProto:
    """Return the graph from preprocessed images to logits, with a free batch size."""
    try:
        model = _run_exporter(network, side)
    except Exception as error:  # the exporter fails in as many ways as there are networks
        lines = str(error).strip().splitlines()
        reason = lines[0][:200] if lines else type(error).__name__
        raise UserError(
            f"This network cannot be written as ONNX ({reason}). "
            "Expected operations that torch.onnx knows. Export it to torchscript or safetensors."
        ) from error
    _remove_notes(model.graph)
    return model


def _run_exporter(network: torch.nn.Module, side: int) -> onnx.ModelProto:
    """Return what torch's exporter makes of a network; raises `ValueError` for too large a one."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["seen"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
            optimize=True,
        )
        assert program is not None
        model: onnx.ModelProto = program.model_proto
    size = model.ByteSize()
    if size > _MAX_BYTES:
        raise ValueError(f"{size / 1e9:.1f} GB are more than the 2 GB that one file can hold")
    return model


def _remove_notes(graph: onnx.GraphProto) -> None:
    """Remove what the exporter notes of where code lies on this machine."""
    values = [*graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for item in [graph, *graph.node, *values]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own working from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""A run as an ONNX graph: decoded pixels in, probabilities out, everything between them inside.

Refuses a graph that leans on anything else: no file beside it, no operator of a private domain.
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
from regraft.exporting.parity import Answers
from regraft.runs.folder import Run

if TYPE_CHECKING:
    import onnx

OPSET = 18
_MOST = 2**31 - 1  # bytes of a protobuf

_ANSWER = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
answer (float[batch, {classes}] logits) => (float[batch, {classes}] probabilities)
{{ probabilities = Softmax <axis = -1> (logits) }}
"""


def require_onnx() -> None:
    """Raise `UserError` where the packages are not installed."""
    lacking = [
        name
        for name in ("onnx", "onnxruntime", "onnxscript")
        if importlib.util.find_spec(name) is None
    ]
    if lacking:
        raise UserError(
            f"--to onnx needs {join_truncated(lacking)}, which cannot be imported. Expected the packages of the extra: pip install 'regraft[export]'"
        )


def write_onnx(finished: Run, path: Path) -> None:
    """Write the whole network, with class names and digests in the graph's metadata; the batch, and the size of images within it, are free."""
    import onnx
    from onnx import compose, helper

    model, network = model_core(finished)
    made = _network(network, model.resolution)
    before = resize_graph(model, made.ir_version, OPSET)
    after = onnx.parser.parse_model(
        _ANSWER.format(ir=made.ir_version, opset=OPSET, classes=len(finished.classes))
    )
    whole = compose.merge_models(before, made, [("seen", "seen")], name="regraft")
    whole = compose.merge_models(whole, after, [("logits", "logits")], name="regraft")
    del whole.opset_import[1:]  # merging lists the same one once for each piece
    whole.producer_name, whole.producer_version = "regraft", model_facts(finished)["regraft"]
    facts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in model_facts(finished).items()
    }
    helper.set_model_props(whole, facts)
    onnx.checker.check_model(whole, full_check=True)
    onnx.save(whole, path)


def onnx_session(path: Path) -> Any:
    """Return an ONNX Runtime session on the processor that says nothing but errors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_answers(path: Path) -> Answers:
    """Return the file as a function from images of one size to probabilities."""
    made = onnx_session(path)
    return lambda images: np.asarray(made.run(["probabilities"], {"images": images})[0])


def _network(network: torch.nn.Module, side: int) -> onnx.ModelProto:
    """Return the graph from what the network sees to logits, with a free batch and nothing in it that tells of this machine."""

    try:
        with _quiet(), torch.no_grad():
            batch = torch.export.Dim("batch")
            found = torch.onnx.export(
                network,
                (torch.zeros(2, 3, side, side),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["seen"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
                verbose=False,
                optimize=True,
            )
            assert found is not None
            made: onnx.ModelProto = found.model_proto
            if made.ByteSize() > _MOST:
                raise ValueError(
                    f"{made.ByteSize() / 1e9:.1f} GB are more than the 2 GB that one file can hold"
                )
    except Exception as error:  # the exporter fails in as many ways as there are networks
        first = str(error).strip().splitlines()
        raise UserError(
            f"This network cannot be written as ONNX ({first[0][:200] if first else type(error).__name__}). Expected operations that torch.onnx knows. "
            "Export it to torchscript or safetensors."
        ) from error
    _strip(made.graph)
    return made


def _strip(graph: onnx.GraphProto) -> None:
    """Remove what the exporter notes of where code stands on this machine."""
    for one in (
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        one.ClearField("metadata_props")
        one.ClearField("doc_string")


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

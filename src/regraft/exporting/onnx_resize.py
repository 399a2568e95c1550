"""The first nodes of an ONNX graph: preprocessing as `Preprocess` does it, to the last bit.

ONNX's own Resize is not used: as ONNX Runtime runs it, one number in a thousand comes out a grey
level or two apart, which moved probabilities of CIFAR-10 images by up to 8e-3. So the graph
computes the weights as PyTorch does (aten/src/ATen/native/cpu/UpSampleKernel.cpp) and applies them
as a product.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from regraft.models.transforms import Preprocess

if TYPE_CHECKING:
    import onnx

RESIZE_PREFIX = "prepare/"  # what the names of these nodes begin with
_POWERS = [2.0**power for power in range(23)]

# The shorter side becomes `side`, the centre is cut out; all images of a batch have one size.
_GRAPH = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
prepare (uint8[batch, height, width, 3] images) => (float[batch, 3, {side}, {side}] seen)
<double side = {{{side}.0}}, int64 zero_row = {{0}}, int64 one_row = {{1}},
 int64[1] first_axis = {{1}}, int64[1] row_axis = {{0}}, int64[1] rows = {{{side}}},
 double[22] doubled = {{{doubled}}}, double[23] units = {{{units}}},
 double zero = {{0.0}}, double one = {{1.0}}, double half = {{0.5}}, double reach = {{{reach}}},
 double most = {{32768.0}}, double white = {{255.0}},
 double a = {{-0.5}}, double a2 = {{1.5}}, double a3 = {{2.5}}, double a4 = {{-2.0}},
 double a5 = {{-2.5}}, double a8 = {{-4.0}},
 float[1, 3, 1, 1] mean = {{{mean}}}, float[1, 3, 1, 1] std = {{{std}}}>
{{
  maps = Transpose <perm = [0, 3, 1, 2]> (images)
  pixels = Cast <to = 11> (maps)
  height_list = Shape <start = 2, end = 3> (maps)
  width_list = Shape <start = 3, end = 4> (maps)
  height_count = Squeeze (height_list)
  width_count = Squeeze (width_list)
  height_long = Cast <to = 11> (height_count)
  width_long = Cast <to = 11> (width_count)
  height_factor = Div (side, height_long)
  width_factor = Div (side, width_long)
  factor = Max (height_factor, width_factor)
  {width}
  wide = MatMul (pixels, width_across)
  wide_share = Div (wide, width_unit)
  wide_up = Add (wide_share, half)
  wide_whole = Floor (wide_up)
  wide_ready = Clip (wide_whole, zero, white)
  {height}
  tall = MatMul (height_weights, wide_ready)
  tall_share = Div (tall, height_unit)
  tall_up = Add (tall_share, half)
  tall_whole = Floor (tall_up)
  tall_ready = Clip (tall_whole, zero, white)
  ready = Cast <to = 1> (tall_ready)
  centred = Sub (ready, mean)
  seen = Div (centred, std)
}}
"""
# Weights of one axis, whole numbers `(side, length)` in units of 2^-p; p as large as lets the
# largest weight of all rows, cut off or not, stay below 2^15.
_AXIS = """
  {0}_scaled = Mul ({0}_long, factor)
  {0}_rounded = Round ({0}_scaled)
  {0}_larger = Max ({0}_rounded, side)
  {0}_spare = Sub ({0}_larger, side)
  {0}_halved = Mul ({0}_spare, half)
  {0}_start = Floor ({0}_halved)
  {0}_scale = Div ({0}_long, {0}_larger)
  {0}_stretch = Max ({0}_scale, one)
  {0}_support = Mul ({0}_stretch, reach)
  {0}_shrink = Div (one, {0}_stretch)
  {0}_places = Range (zero, {0}_larger, one)
  {0}_upright = Unsqueeze ({0}_places, first_axis)
  {0}_middle = Add ({0}_upright, half)
  {0}_centre = Mul ({0}_middle, {0}_scale)
  {0}_lower = Sub ({0}_centre, {0}_support)
  {0}_lower_up = Add ({0}_lower, half)
  {0}_lower_cut = Max ({0}_lower_up, zero)
  {0}_first = Floor ({0}_lower_cut)
  {0}_upper = Add ({0}_centre, {0}_support)
  {0}_upper_up = Add ({0}_upper, half)
  {0}_upper_cut = Min ({0}_upper_up, {0}_long)
  {0}_last = Floor ({0}_upper_cut)
  {0}_range = Range (zero_row, {0}_count, one_row)
  {0}_columns = Cast <to = 11> ({0}_range)
  {0}_from = GreaterOrEqual ({0}_columns, {0}_first)
  {0}_to = Less ({0}_columns, {0}_last)
  {0}_inside = And ({0}_from, {0}_to)
  {0}_apart = Sub ({0}_columns, {0}_centre)
  {0}_away = Add ({0}_apart, half)
  {0}_signed = Mul ({0}_away, {0}_shrink)
  {0}_x = Abs ({0}_signed)
  {0}_near = Less ({0}_x, one)
  {filter}
  {0}_kept = Where ({0}_inside, {0}_curve, zero)
  {0}_total = ReduceSum <keepdims = 1> ({0}_kept, first_axis)
  {0}_share = Div ({0}_kept, {0}_total)
  {0}_peak = ReduceMax <keepdims = 0> ({0}_share)
  {0}_peaks = Mul ({0}_peak, doubled)
  {0}_peaks_up = Add ({0}_peaks, half)
  {0}_below = Less ({0}_peaks_up, most)
  {0}_below_count = Cast <to = 7> ({0}_below)
  {0}_precision = ReduceSum <keepdims = 0> ({0}_below_count)
  {0}_unit = Gather (units, {0}_precision)
  {0}_size = Abs ({0}_share)
  {0}_sign = Sign ({0}_share)
  {0}_large = Mul ({0}_size, {0}_unit)
  {0}_large_up = Add ({0}_large, half)
  {0}_large_whole = Floor ({0}_large_up)
  {0}_every = Mul ({0}_large_whole, {0}_sign)
  {0}_from_row = Cast <to = 7> ({0}_start)
  {0}_begin = Unsqueeze ({0}_from_row, row_axis)
  {0}_finish = Add ({0}_begin, rows)
  {0}_weights = Slice ({0}_every, {0}_begin, {0}_finish, row_axis)
"""
_BILINEAR = """
  {0}_fall = Sub (one, {0}_x)
  {0}_curve = Where ({0}_near, {0}_fall, zero)
"""
_BICUBIC = """
  {0}_n1 = Mul (a2, {0}_x)
  {0}_n2 = Sub ({0}_n1, a3)
  {0}_n3 = Mul ({0}_n2, {0}_x)
  {0}_n4 = Mul ({0}_n3, {0}_x)
  {0}_n5 = Add ({0}_n4, one)
  {0}_f1 = Mul (a, {0}_x)
  {0}_f2 = Sub ({0}_f1, a5)
  {0}_f3 = Mul ({0}_f2, {0}_x)
  {0}_f4 = Add ({0}_f3, a8)
  {0}_f5 = Mul ({0}_f4, {0}_x)
  {0}_f6 = Sub ({0}_f5, a4)
  {0}_limit = Add (one, one)
  {0}_far = Less ({0}_x, {0}_limit)
  {0}_tail = Where ({0}_far, {0}_f6, zero)
  {0}_curve = Where ({0}_near, {0}_n5, {0}_tail)
"""


def resize_graph(preprocess: Preprocess, version: int, opset: int) -> onnx.ModelProto:
    """Return the graph from decoded images to what the network sees.

    In: `images`, uint8 `(batch, height, width, 3)`. Out: `seen`, float32 `(batch, 3, side, side)`.

    Args:
        preprocess: Side and input rules.
        version: Of ONNX's file format.
        opset: Of its operators.
    """
    import onnx

    rules = preprocess.rules
    is_cubic = rules.interpolation == "bicubic"
    kernel = _BICUBIC if is_cubic else _BILINEAR
    width = _AXIS.format("width", filter=kernel.format("width"))
    height = _AXIS.format("height", filter=kernel.format("height"))
    text = _GRAPH.format(
        ir=version,
        opset=opset,
        side=preprocess.resolution,
        doubled=_numbers(_POWERS[1:]),
        units=_numbers(_POWERS),
        reach=2.0 if is_cubic else 1.0,
        mean=_per_channel(rules.mean),
        std=_per_channel(rules.std),
        width=width + "\n  width_across = Transpose <perm = [1, 0]> (width_weights)",
        height=height,
    )
    parsed: onnx.ModelProto = onnx.parser.parse_model(text)
    for number, node in enumerate(parsed.graph.node):
        node.name = f"{node.op_type}_{number}"
    _remove_unused(parsed.graph)
    return onnx.compose.add_prefix(parsed, RESIZE_PREFIX, rename_inputs=False, rename_outputs=False)


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove the constants that only the other kernel takes."""
    used: set[str] = set()
    for node in graph.node:
        used.update(node.input)
    constants = [constant for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _per_channel(values: tuple[float, float, float]) -> str:
    """Return numbers for pixels of 0 … 1 as the numbers for 0 … 255, rounded as torch does."""
    return _numbers((torch.tensor(values) * 255).tolist())


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(repr(float(value)) for value in values)

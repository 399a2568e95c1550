"""Where the layers of a backbone are: their first and last operation, their order and depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from regraft.errors import UserError, close_matches
from regraft.models.backbone import Backbone
from regraft.models.stages import Stages, is_inside


def layer_span(source: Backbone, place: str, named: Stages | None = None) -> tuple[str, str]:
    """Return the names of the first and the last node of a layer.

    Args:
        source: The backbone.
        place: A stage, block or module.
        named: The names that stand for several modules: by default stages and blocks. A last block
            is itself; the stage of that name has the tail of the network too.

    Raises:
        UserError: For a layer that does not exist or does not run.
    """
    if named is None:
        named = {**source.stages, **source.blocks}
    modules = (*named.get(place, ()), place)
    nodes = []
    for node, path in source.trace.path.items():
        belongs = any(is_inside(path, module) for module in modules)
        if belongs and node in source.values:
            nodes.append(node)
    if not nodes:
        near = close_matches(place, source.facts.places) or list(source.stages)[-3:]
        raise UserError(
            f"{source.name} has no stage {place!r}. Nearest: {', '.join(near)}. "
            f"`regraft backbones show {source.name}` lists its stages."
        )
    tensors = [node for node in nodes if isinstance(source.values[node], torch.Size)]
    return nodes[0], tensors[-1]


def input_node(source: Backbone) -> str:
    """Return the name of the node that stands for the images."""
    node = next(iter(source.trace.eval.nodes))
    return str(node.name)


def output_node(source: Backbone) -> str:
    """Return the name of the node whose value is the output of the network."""
    *_, output = source.trace.eval.nodes
    return str(output.all_input_nodes[0].name)


def feature_layout(source: Backbone, node: str) -> str:
    """Return how the value of a node becomes a vector, see `halves.gather`."""
    shape = source.values[node]
    model: Any = source.model
    if len(shape) == 4:
        return "map-last" if _has_channels_last(source, shape) else "map"
    if len(shape) != 3:
        return "vector"
    if getattr(model, "global_pool", "") == "token":
        return "class-token"
    prefix_tokens = getattr(model, "num_prefix_tokens", 0)
    return f"tokens-{prefix_tokens}" if prefix_tokens else "tokens"


def earliest_layer(source: Backbone, trains: Sequence[str]) -> str:
    """Return which of several values of `train` starts first: "all" does, and "head" is last."""
    names = list(source.trace.path)

    def get_start(train: str) -> int:
        if train == "all":
            return -1
        if train == "head":
            return len(names)
        return names.index(layer_span(source, train)[0])

    return min(trains, key=get_start)


def distance_to_head(source: Backbone) -> Callable[[str], int]:
    """Return a function that says how far a parameter is from the head, in stages.

    It takes the parameter's name; the answer is 1 for the last stage.
    """
    number_of = {}
    for number, modules in enumerate(source.stages.values()):
        for module in modules:
            number_of[module] = number
    count = len(source.stages)

    def get_depth(parameter: str) -> int:
        owner, _, _ = parameter.rpartition(".")
        return count - number_of.get(owner, 0)

    return get_depth


def matching_stage(own: Backbone, place: str, other: Backbone, first: bool) -> str:
    """Return the stage of another backbone with the stride nearest to that of a layer.

    Where there are no feature maps, as in a transformer, it is the last stage.

    Args:
        own: The backbone that has the layer.
        place: A stage or module of it.
        other: The backbone to find a stage in.
        first: The first such stage, to train from; else the last one, to take features from, which
            is called "end" where it is the last of all.
    """
    wanted = _get_stride(own, place)
    strides = {stage: _get_stride(other, stage) for stage in other.stages}
    last = list(other.stages)[-1]
    distances: dict[str, float] = {}
    for stage, stride in strides.items():
        if wanted is None or stride is None:
            return last if first else "end"
        distances[stage] = abs(math.log(stride / wanted)) if stride else math.inf
    best = min(distances, key=distances.__getitem__)
    same = [stage for stage in strides if strides[stage] == strides[best]]
    chosen = same[0] if first else same[-1]
    return "end" if chosen == last and not first else chosen


def _get_stride(source: Backbone, place: str) -> int | None:
    """Return the stride at a layer in pixels; None where it gives no feature map."""
    node = layer_span(source, place)[1]
    shape = source.values[node]
    if len(shape) != 4:
        return None
    has_channels_last = feature_layout(source, node) == "map-last"
    side = shape[1] if has_channels_last else shape[2]
    return round(source.resolution / int(side))


def _has_channels_last(source: Backbone, shape: torch.Size) -> bool:
    """Whether a feature map is `(n, h, w, c)`: images are square, so equal sides tell."""
    is_first_pair = shape[1] == shape[2]
    is_last_pair = shape[2] == shape[3]
    if is_first_pair != is_last_pair:
        return is_first_pair
    return str(getattr(source.model, "output_fmt", "NCHW")).endswith("NHWC")

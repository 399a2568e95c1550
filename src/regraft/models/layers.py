"""The ladder of places at which a backbone can be cut, with what each costs to compute and to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from regraft.errors import UserError, close_matches
from regraft.models.backbone import Backbone
from regraft.models.cut import Prefix, Suffix, cut_graph, gather_features


@dataclass(frozen=True)
class LayerInfo:
    """One rung: a stage, what comes out of it, and what it takes to get there."""

    name: str
    shape: tuple[int, ...]  # of one image's output
    parameters: int  # of this stage
    multiply_adds: int  # of this stage, for one image
    map_bytes: int  # an image's cache entry when all up to here is frozen, float16
    pooled_bytes: int  # the same when only the pooled features are kept


def describe_layers(source: Backbone, fine: bool = False) -> list[LayerInfo]:
    """Return the places of a backbone in order of depth, for one image at its resolution.

    Args:
        source: The backbone.
        fine: Every block and not only every stage.
    """
    named = source.blocks if fine else source.stages
    values, works = source.values, layer_multiply_adds(source, fine)
    spans = [layer_span(source, stage) for stage in named]
    rungs = []
    for number, (stage, modules) in enumerate(named.items()):
        last = spans[number][1]
        parameters = sum(
            p.numel()
            for name, p in source.model.named_parameters()
            if name.rpartition(".")[0] in modules
        )
        following = spans[number + 1][0] if number + 1 < len(spans) else None
        pooled = (
            gather_features([torch.zeros(values[last])], [feature_layout(source, last)])
            .shape[1:]
            .numel()
            * 2
        )
        crossing = _bytes(source, following, _end(source)) if following else pooled
        rungs.append(
            LayerInfo(stage, tuple(values[last][1:]), parameters, works[stage], crossing, pooled)
        )
    return rungs


def layer_multiply_adds(source: Backbone, fine: bool = False) -> dict[str, int]:
    """Return the multiply-adds of every stage, or of every block, for one image at the backbone's resolution, in order of depth."""
    named = source.blocks if fine else source.stages
    flops = _multiply_adds(source)
    names = [node.name for node in source.trace.eval.nodes]
    starts = [
        0,
        *(names.index(layer_span(source, stage, named)[0]) for stage in list(named)[1:]),
        len(names),
    ]
    return {
        stage: sum(flops.get(name, 0) for name in names[starts[number] : starts[number + 1]])
        for number, stage in enumerate(named)
    }


def cut_backbone(
    source: Backbone, train: str, until: Sequence[str] = (), flatten: bool = False
) -> tuple[Prefix, Suffix]:
    """Return the frozen and the trained part of a backbone.

    Args:
        source: The backbone; both halves share its parameters.
        train: "head" (nothing of the backbone is trained), "all", or the stage from which on it is trained.
        until: Where features are taken; the end of the network when empty, or called "end" among others; several are concatenated.
        flatten: Take the last map as it is, in a row, instead of its average.

    Raises:
        UserError: For a stage that does not exist or lies after `until`.
    """
    taken, layouts = _taken(source, until, flatten)
    first = None
    if train == "all":
        first = next(iter(source.trace.eval.nodes)).name
    elif train != "head":
        first = layer_span(source, train)[0]
        names = [node.name for node in source.trace.eval.nodes]
        if names.index(first) > max(names.index(name) for name in taken):
            raise UserError(
                f"Training was to start at {train!r}, which lies after {' and '.join(map(repr, until))}, where features are taken. "
                "Train an earlier stage, or take features later."
            )
    return cut_graph(source.trace, source.values, first, taken, layouts)


def feature_width(source: Backbone, until: Sequence[str] = (), flatten: bool = False) -> int:
    """Return how many features a backbone gives an image, taken where and as in `cut`."""
    taken, layouts = _taken(source, until, flatten)
    return gather_features([torch.zeros(source.values[name]) for name in taken], layouts).shape[1]


def _taken(source: Backbone, until: Sequence[str], flatten: bool) -> tuple[list[str], list[str]]:
    """Return the names of the nodes whose values are the features, and how each becomes a vector."""
    if until:
        taken = [
            _end(source) if place == "end" else layer_span(source, place)[1] for place in until
        ]
    else:
        taken = [
            layer_span(source, list(source.stages)[-1], source.stages)[1]
            if flatten
            else _end(source)
        ]  # the stage with its tail
    return taken, ["flat" if flatten else feature_layout(source, name) for name in taken]


def layer_span(
    source: Backbone, place: str, named: dict[str, tuple[str, ...]] | None = None
) -> tuple[str, str]:
    """Return the names of the first and the last node of a stage or module."""
    named = (
        {**source.stages, **source.blocks} if named is None else named
    )  # a last block is itself; the stage of that name has the tail too
    modules = (*named.get(place, ()), place)
    mine = [
        name
        for name, path in source.trace.path.items()
        if any(path == module or path.startswith(module + ".") for module in modules)
    ]
    alive = [name for name in mine if name in source.values]
    if not alive:
        near = close_matches(place, source.facts.places) or list(source.stages)[-3:]
        raise UserError(
            f"{source.name} has no stage {place!r}. Nearest: {', '.join(near)}. `regraft backbones show {source.name}` lists its stages."
        )
    tensors = [name for name in alive if isinstance(source.values[name], torch.Size)]
    return alive[0], tensors[-1]


def feature_layout(source: Backbone, node: str) -> str:
    """Return how the value of a node becomes a vector, see `halves.gather`."""
    shape = source.values[node]
    dimensions = len(shape)
    model: Any = source.model
    if dimensions == 4:  # images are square here, so equal sides tell where the channels are
        if (shape[1] == shape[2]) != (shape[2] == shape[3]):
            return "map-last" if shape[1] == shape[2] else "map"
        return "map-last" if str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC") else "map"
    if dimensions == 3:
        if getattr(model, "global_pool", "") == "token":
            return "class-token"
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        return f"tokens-{prefix}" if prefix else "tokens"
    return "vector"


def _end(source: Backbone) -> str:
    output = next(node for node in source.trace.eval.nodes if node.op == "output")
    return str(output.all_input_nodes[0].name)


def _bytes(source: Backbone, first: str, end: str) -> int:
    try:
        prefix, _ = cut_graph(
            source.trace, source.values, first, [end], [feature_layout(source, end)]
        )
    except UserError:
        return 0
    return sum(shape.numel() * 2 for shape in prefix.shapes)


def _multiply_adds(source: Backbone) -> dict[str, int]:
    """Return the multiply-adds of each node for one image."""
    found: dict[str, int] = {}

    class Count(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            with FlopCounterMode(display=False) as counter:
                out = super().run_node(node)
            found[node.name] = counter.get_total_flops() // 2
            return out

    device = next(source.model.parameters()).device
    was_training = source.model.training
    with torch.no_grad():
        Count(fx.GraphModule(source.model.eval(), source.trace.eval)).run(
            torch.zeros(1, 3, source.resolution, source.resolution, device=device)
        )
    source.model.train(was_training)
    return found


def earliest_layer(source: Backbone, trains: Sequence[str]) -> str:
    """Return which of several values of `train` starts first: "all" before every stage, "head" after all of them."""
    names = list(source.trace.path)

    def start(train: str) -> int:
        return (
            -1
            if train == "all"
            else len(names)
            if train == "head"
            else names.index(layer_span(source, train)[0])
        )

    return min(trains, key=start)


def matching_stage(own: Backbone, place: str, other: Backbone, first: bool) -> str:
    """Return the stage of another backbone at which images have shrunk as much as at a place of the first one.

    Where nothing shrinks, as in a transformer, it is the last stage; to end with the last stage is called "end".

    Args:
        own: The backbone that has the place.
        place: A stage or module of it.
        other: The backbone to find a stage in.
        first: The first such stage, to train from; else the last one, to end with.
    """
    wanted = _stride(own, place)
    strides = {stage: _stride(other, stage) for stage in other.stages}
    last = list(other.stages)[-1]
    if wanted is None or None in strides.values():
        return last if first else "end"
    nearest = min(
        strides.values(), key=lambda stride: abs(math.log(stride / wanted)) if stride else math.inf
    )
    same = [stage for stage, stride in strides.items() if stride == nearest]
    return same[0] if first else "end" if same[-1] == last else same[-1]


def _stride(source: Backbone, place: str) -> int | None:
    """Return how many pixels of the image one cell of the map that a place gives stands for; None where it gives no map."""
    node = layer_span(source, place)[1]
    shape = source.values[node]
    if len(shape) != 4:
        return None
    side = int(shape[1] if feature_layout(source, node) == "map-last" else shape[2])
    return round(source.resolution / side)


def distance_to_head(source: Backbone) -> Callable[[str], int]:
    """Return a function from a parameter's name to how many stages lie between it and the head: 1 for the last stage."""
    owners = {
        module: number
        for number, modules in enumerate(source.stages.values())
        for module in modules
    }
    count = len(source.stages)

    def below(parameter: str) -> int:
        return count - owners.get(parameter.rpartition(".")[0], 0)

    return below

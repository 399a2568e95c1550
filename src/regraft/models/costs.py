"""What every stage of a backbone costs to compute and to keep in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from regraft.errors import UserError
from regraft.models.backbone import Backbone
from regraft.models.cut import cut_graph
from regraft.models.layers import feature_layout, layer_span, output_node
from regraft.models.parts import gather_features

_BYTES_PER_NUMBER = 2  # the cache holds float16


@dataclass(frozen=True)
class LayerInfo:
    """A stage or block: what comes out of it, and what it costs."""

    name: str
    shape: tuple[int, ...]  # of one image's output
    parameters: int  # of this stage
    multiply_adds: int  # of this stage, for one image
    map_bytes: int  # an image's cache entry when all up to here is frozen, float16
    pooled_bytes: int  # the same when only the pooled features are kept


def describe_layers(source: Backbone, fine: bool = False) -> list[LayerInfo]:
    """Return the stages of a backbone in order of depth, with costs for one image.

    Args:
        source: The backbone.
        fine: Every block and not only every stage.
    """
    stages = source.blocks if fine else source.stages
    multiply_adds = layer_multiply_adds(source, fine)
    spans = [layer_span(source, stage) for stage in stages]
    following: list[str | None] = [first for first, _ in spans[1:]]
    following.append(None)
    places = []
    for (stage, modules), (_, last), next_first in zip(
        stages.items(), spans, following, strict=True
    ):
        pooled_bytes = _count_pooled_bytes(source, last)
        map_bytes = pooled_bytes
        if next_first:
            map_bytes = _count_crossing_bytes(source, next_first)
        place = LayerInfo(
            stage,
            tuple(source.values[last][1:]),
            _count_parameters(source, modules),
            multiply_adds[stage],
            map_bytes,
            pooled_bytes,
        )
        places.append(place)
    return places


def layer_multiply_adds(source: Backbone, fine: bool = False) -> dict[str, int]:
    """Return the multiply-adds of every stage for one image at the backbone's resolution.

    Args:
        source: The backbone.
        fine: Of every block and not only every stage.
    """
    stages = source.blocks if fine else source.stages
    by_node = _count_multiply_adds(source)
    names = [node.name for node in source.trace.eval.nodes]
    starts = [0]
    for stage in list(stages)[1:]:
        first, _ = layer_span(source, stage, stages)
        starts.append(names.index(first))
    ends = [*starts[1:], len(names)]
    work_of: dict[str, int] = {}
    for stage, start, end in zip(stages, starts, ends, strict=True):
        work_of[stage] = sum(by_node.get(name, 0) for name in names[start:end])
    return work_of


def _count_parameters(source: Backbone, modules: tuple[str, ...]) -> int:
    count = 0
    for name, parameter in source.model.named_parameters():
        if name.rpartition(".")[0] in modules:
            count += parameter.numel()
    return count


def _count_pooled_bytes(source: Backbone, node: str) -> int:
    """Return the bytes of a node's value for one image when it is made a vector."""
    blank = torch.zeros(source.values[node])
    vectors = gather_features([blank], [feature_layout(source, node)])
    return vectors.shape[1:].numel() * _BYTES_PER_NUMBER


def _count_crossing_bytes(source: Backbone, first: str) -> int:
    """Return the bytes for one image of what crosses before a node; 0 where no cut is possible."""
    end = output_node(source)
    layout = feature_layout(source, end)
    try:
        prefix, _ = cut_graph(source.trace, source.values, first, [end], [layout])
    except UserError:
        return 0
    return sum(shape.numel() * _BYTES_PER_NUMBER for shape in prefix.shapes)


def _count_multiply_adds(source: Backbone) -> dict[str, int]:
    """Return the multiply-adds of each node for one image."""
    counts: dict[str, int] = {}

    class Count(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            with FlopCounterMode(display=False) as counter:
                value = super().run_node(node)
            counts[node.name] = counter.get_total_flops() // 2
            return value

        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            value = super().get_attr(target, args, kwargs)
            # the counter fails on views of a tensor that needs gradients
            return value.detach() if isinstance(value, Tensor) else value

    model = source.model
    device = next(model.parameters()).device
    was_training = model.training
    image = torch.zeros(1, 3, source.resolution, source.resolution, device=device)
    with torch.no_grad():
        Count(fx.GraphModule(model.eval(), source.trace.eval)).run(image)
    model.train(was_training)
    return counts

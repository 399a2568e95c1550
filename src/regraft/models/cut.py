"""Cutting a network in two, at a place that is found by dataflow over its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from regraft.errors import UserError
from regraft.models.backbone import Backbone
from regraft.models.border import find_border, find_flowing
from regraft.models.layers import feature_layout, input_node, layer_span, output_node
from regraft.models.parts import Prefix, Suffix, gather_features
from regraft.models.subgraph import BatchSize, end_in_features, extract_part, find_ancestors
from regraft.models.trace import Trace, compute_values


def cut_backbone(
    source: Backbone, train: str, until: Sequence[str] = (), flatten: bool = False
) -> tuple[Prefix, Suffix]:
    """Return the frozen and the trained part of a backbone.

    Args:
        source: The backbone; both parts share its parameters.
        train: "head" (nothing of the backbone is trained), "all", or the first trained stage.
        until: Where features are taken: the end of the network when empty, or called "end" among
            others; several are concatenated.
        flatten: Take the last map as it is, in a row, instead of its average.

    Raises:
        UserError: For a stage that does not exist or lies after `until`.
    """
    nodes, layouts = _find_features(source, until, flatten)
    first = _find_first_trained(source, train)
    names = [node.name for node in source.trace.eval.nodes]
    last_taken = max(names.index(name) for name in nodes)
    if first is not None and names.index(first) > last_taken:
        places = " and ".join(map(repr, until))
        raise UserError(
            f"Training was to start at {train!r}, which lies after {places}, "
            "where features are taken. Train an earlier stage, or take features later."
        )
    return cut_graph(source.trace, source.values, first, nodes, layouts)


def feature_width(source: Backbone, until: Sequence[str] = (), flatten: bool = False) -> int:
    """Return how many features a backbone gives an image, taken where and as in `cut`."""
    nodes, layouts = _find_features(source, until, flatten)
    blank = [torch.zeros(source.values[name]) for name in nodes]
    return gather_features(blank, layouts).shape[1]


def cut_graph(
    traced: Trace,
    values: dict[str, Any],
    first: str | None,
    nodes: Sequence[str],
    layouts: Sequence[str],
) -> tuple[Prefix, Suffix]:
    """Return what stays frozen and what is trained, over the network's own parameters.

    Args:
        traced: The network.
        values: What flows through it, from `graph.flow`.
        first: Name of the first trained node: the images themselves where everything is trained,
            None where nothing of the network is.
        nodes: Names of the nodes whose values are the features.
        layouts: How each of those values becomes a vector, see `gather`.

    Returns:
        Two parts with `suffix(*prefix(x))` equal to the features; each parameter and buffer that
        the features need is owned by exactly one of them.

    Raises:
        UserError: When a module is used on both sides of the cut.
    """
    trained = end_in_features(traced.train, nodes, layouts)
    evaluated = end_in_features(traced.eval, nodes, layouts)
    images = next(node for node in trained.nodes if node.op == "placeholder").name
    end = next(node for node in trained.nodes if node.op == "output").all_input_nodes[0].name
    features = gather_features([torch.zeros(values[name]) for name in nodes], layouts)
    values = {**values, end: features.shape}
    flowing = find_flowing(trained) | find_flowing(evaluated)
    border = find_border(traced, trained, first, values, flowing)
    scalars = _resolve_scalars(traced, border, values)
    crossing = [name for name in border if name not in scalars]
    frozen = extract_part(traced.model, evaluated, [images], crossing)
    prefix = Prefix(frozen, [values[name][1:] for name in crossing])
    shared = _compute_shared(traced.model, evaluated, crossing, flowing, prefix)
    constants = scalars | shared
    suffix = Suffix(
        extract_part(traced.model, trained, crossing, [end], constants),
        extract_part(traced.model, evaluated, crossing, [end], constants),
    )
    _check_owned_once(prefix, suffix)
    return prefix, suffix


def _find_features(
    source: Backbone, until: Sequence[str], flatten: bool
) -> tuple[list[str], list[str]]:
    """Return the names of the nodes whose values are the features, and the layout of each."""
    if until:
        nodes = [_find_taken(source, place) for place in until]
    elif flatten:
        last = list(source.stages)[-1]  # the stage, which has the tail of the network
        nodes = [layer_span(source, last, source.stages)[1]]
    else:
        nodes = [output_node(source)]
    if flatten:
        return nodes, ["flat"] * len(nodes)
    return nodes, [feature_layout(source, name) for name in nodes]


def _find_taken(source: Backbone, place: str) -> str:
    return output_node(source) if place == "end" else layer_span(source, place)[1]


def _find_first_trained(source: Backbone, train: str) -> str | None:
    """Return the name of the first trained node; None where nothing of the network is trained."""
    if train == "head":
        return None
    if train == "all":
        return input_node(source)
    return layer_span(source, train)[0]


def _resolve_scalars(traced: Trace, border: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Return the plain numbers that would cross: constants, or `BatchSize` where they follow it.

    Raises:
        UserError: For a number that depends on the batch size in another way.
    """
    names = [name for name in border if not isinstance(values[name], torch.Size)]
    if not names:
        return {}
    images = next(node.name for node in traced.eval.nodes if node.op == "placeholder")
    batch_of_three = compute_values(traced, (3, *values[images][1:]))
    scalars: dict[str, Any] = {}
    for name in names:
        pair = (values[name], batch_of_three[name])
        if pair[0] == pair[1]:
            scalars[name] = pair[0]
        elif pair == (2, 3):
            scalars[name] = BatchSize
        else:
            raise UserError(
                f"The network cannot be cut here: {name} depends on the batch size in a way that "
                "cannot be carried over. Cut at another stage."
            )
    return scalars


def _compute_shared(
    model: nn.Module, graph: fx.Graph, crossing: list[str], flowing: set[str], prefix: Prefix
) -> dict[str, Any]:
    """Return values that both parts read but that do not depend on the images, by node name."""
    output = [node for node in graph.nodes if node.op == "output"]
    needed = find_ancestors(output, set(crossing))
    owned = {id(tensor) for tensor in (*prefix.parameters(), *prefix.buffers())}
    shared = {}
    for node in graph.nodes:
        if node.name not in needed or node.name in flowing or node.op == "output":
            continue
        if not any(user.name in flowing or user.op == "output" for user in node.users):
            continue
        part = extract_part(model, graph, [], [node.name])
        if any(id(tensor) in owned for tensor in (*part.parameters(), *part.buffers())):
            with torch.no_grad():
                shared[node.name] = part()[0].clone()
    return shared


def _check_owned_once(prefix: Prefix, suffix: Suffix) -> None:
    """Raise `UserError` where a tensor is in both parts."""
    frozen = {id(tensor) for tensor in (*prefix.parameters(), *prefix.buffers())}
    for name, tensor in (*suffix.named_parameters(), *suffix.named_buffers()):
        if id(tensor) in frozen:
            raise UserError(
                f"{name.removeprefix('body.')} is used on both sides of the cut, so it cannot be "
                "frozen and trained at once. Cut at another stage."
            )

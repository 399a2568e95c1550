"""Where a graph is cut: the fewest numbers that can cross from the frozen to the trained part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from regraft.errors import UserError
from regraft.models.trace import Trace

_RANDOM_FUNCTIONS = ("dropout", "drop_path", "drop_block")
_RANDOM_METHODS = ("bernoulli", "normal", "uniform", "random")


def find_border(
    traced: Trace,
    graph: fx.Graph,
    first: str | None,
    values: dict[str, Any],
    flowing: set[str],
) -> list[str]:
    """Return the names of the values that cross from the frozen to the trained part.

    Everything that runs before the node `first` is frozen. Operations without state or randomness
    that follow are frozen too where less crosses then: pooling, for example.

    Args:
        traced: The network.
        graph: Its graph in train mode, ending in the features.
        first: Name of the first trained node; None where nothing is trained.
        values: What flows through it, from `graph.flow`.
        flowing: Names of the nodes whose value depends on the images, from `find_flowing`.

    Raises:
        UserError: Where something else than batches of tensors and numbers would cross.
    """
    nodes = [node for node in graph.nodes if node.op != "output" and node.name in flowing]
    if first is None:
        return [nodes[-1].name]
    if first == nodes[0].name:
        return [first]
    frozen = _get_names_before(first, traced) & {node.name for node in nodes}
    movable = _find_movable(nodes, frozen, traced.model, flowing)
    border: list[str] | None = None
    fewest = 0
    for crossing in _iterate_crossings(nodes, frozen, movable):
        if not all(_can_cross(values.get(name)) for name in crossing):
            continue
        count = _count_numbers(crossing, values)
        if border is None or count <= fewest:
            border, fewest = crossing, count
    if border is None:
        raise UserError(
            f"The network cannot be cut before {traced.path.get(first, first)!r}: "
            "what crosses there is not a batch of tensors. Cut at another stage."
        )
    return border


def find_flowing(graph: fx.Graph) -> set[str]:
    """Return the names of the nodes whose value depends on the images."""
    images = next(node.name for node in graph.nodes if node.op == "placeholder")
    flowing = {images}
    for node in graph.nodes:
        if any(source.name in flowing for source in node.all_input_nodes):
            flowing.add(node.name)
    return flowing


def _get_names_before(first: str, traced: Trace) -> set[str]:
    names = [node.name for node in traced.train.nodes]
    return set(names[: names.index(first)])


def _find_movable(
    nodes: list[fx.Node], frozen: set[str], model: nn.Module, flowing: set[str]
) -> list[str]:
    """Return the free nodes after frozen ones, which may be frozen as well, in running order."""
    movable = []
    reached = set(frozen)
    for node in nodes:
        if node.name in reached or not _is_free(node, model, flowing):
            continue
        if all(source.name in reached for source in node.all_input_nodes):
            movable.append(node.name)
            reached.add(node.name)
    return movable


def _iterate_crossings(
    nodes: list[fx.Node], frozen: set[str], movable: list[str]
) -> Iterator[list[str]]:
    """Yield what crosses when none, one, two ... of the movable nodes are frozen as well."""
    inside = set(frozen)
    yield _get_crossing(nodes, inside)
    for name in movable:
        inside.add(name)
        yield _get_crossing(nodes, inside)


def _get_crossing(nodes: list[fx.Node], inside: set[str]) -> list[str]:
    """Return the names of the nodes inside that a node outside reads."""
    crossing = []
    for node in nodes:
        if node.name in inside and any(user.name not in inside for user in node.users):
            crossing.append(node.name)
    return crossing


def _can_cross(value: Any) -> bool:
    """Whether a value is a batch of two, as `graph.flow` makes them, or a number.

    There is no value where a node exists in train mode only.
    """
    if isinstance(value, torch.Size):
        return len(value) >= 1 and value[0] == 2
    return isinstance(value, (int, float))


def _count_numbers(crossing: list[str], values: dict[str, Any]) -> int:
    shapes = [values[name] for name in crossing]
    return sum(shape.numel() for shape in shapes if isinstance(shape, torch.Size))


def _is_free(node: fx.Node, model: nn.Module, flowing: set[str]) -> bool:
    """Whether a node has neither state nor active randomness, so that it may be computed once."""
    if any(source.name not in flowing for source in node.all_input_nodes):
        return False  # reads a parameter, or something computed from one
    if node.op == "call_module":
        return _is_free_module(model.get_submodule(str(node.target)))
    if node.op == "call_function":
        return not any(word in str(node.target) for word in _RANDOM_FUNCTIONS)
    if node.op == "call_method":
        return not any(word in str(node.target) for word in _RANDOM_METHODS)
    return False


def _is_free_module(module: nn.Module) -> bool:
    has_state = any(True for _ in (*module.parameters(), *module.buffers()))
    return not has_state and not any(_is_random(part) for part in module.modules())


def _is_random(module: nn.Module) -> bool:
    """Whether a module drops values at a rate above 0."""
    if "drop" not in type(module).__name__.lower():
        return False
    for name in ("p", "drop_prob", "prob"):
        if hasattr(module, name):
            return bool(getattr(module, name))
    return False

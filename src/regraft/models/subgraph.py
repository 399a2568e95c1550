"""Parts of a traced network as modules of their own, over the same parameters."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from regraft.models.parts import gather_features


class BatchSize:
    """Stands for the number of images in the batch among the constants of `extract`."""


def end_in_features(graph: fx.Graph, nodes: Sequence[str], layouts: Sequence[str]) -> fx.Graph:
    """Return a copy of the graph that ends in `gather` of some nodes' values.

    What these do not need is left out.

    Args:
        graph: The whole network.
        nodes: Names of the nodes whose values are the features.
        layouts: How each of those values becomes a vector, see `gather`.
    """
    copy = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "output":
            copied[node] = copy.node_copy(node, copied.__getitem__)
            copied[node].name = node.name
    by_name = {node.name: node for node in copy.nodes}
    values = [by_name[name] for name in nodes]
    end = copy.call_function(gather_features, (values, tuple(layouts)))
    end.name = "features_taken"
    copy.output((end,))
    # not eliminate_dead_code: it keeps what it takes for impure
    for node in reversed(list(copy.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            copy.erase_node(node)
    return copy


def find_ancestors(nodes: Iterable[fx.Node], stop: set[str]) -> set[str]:
    """Return the names of all nodes that some nodes need, not looking beyond those in `stop`."""
    ancestors: set[str] = set()
    queue = list(nodes)
    while queue:
        for source in queue.pop().all_input_nodes:
            if source.name not in ancestors and source.name not in stop:
                ancestors.add(source.name)
                queue.append(source)
    return ancestors


def extract_part(
    model: nn.Module,
    graph: fx.Graph,
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: dict[str, Any] | None = None,
) -> fx.GraphModule:
    """Return the part of a network from some values to a tuple of others.

    Args:
        model: The network; the part shares its parameters and modules.
        graph: Its graph.
        inputs: Names of the nodes whose values the part is given.
        outputs: Names of the nodes whose values it returns.
        constants: Values by name of nodes that are not computed; `BatchSize` for the number of
            images.
    """
    constants = constants or {}
    by_name = {node.name: node for node in graph.nodes}
    stop = {*inputs, *constants}
    computed = [by_name[name] for name in outputs if name not in stop]
    needed = find_ancestors(computed, stop).union(outputs)
    part = fx.Graph()
    copied: dict[fx.Node, Any] = {}
    for name in inputs:
        copied[by_name[name]] = part.placeholder(name)
    tensors: dict[str, Tensor] = {}
    for number, (name, value) in enumerate(constants.items()):
        if name not in by_name:
            continue
        if isinstance(value, Tensor):
            tensors[f"_constant_{number}"] = value
            value = part.get_attr(f"_constant_{number}")
        elif value is BatchSize:
            shape = part.call_function(getattr, (copied[by_name[inputs[0]]], "shape"))
            value = part.call_function(operator.getitem, (shape, 0))
        copied[by_name[name]] = value
    root = _share_modules(model, tensors)
    for node in graph.nodes:
        if node.name in needed and node not in copied and node.op != "output":
            copied[node] = part.node_copy(node, copied.__getitem__)
    part.output(tuple(copied[by_name[name]] for name in outputs))
    return _to_module(root, part, tensors)


def _share_modules(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a module that has the modules, parameters and buffers of another, and some tensors."""
    root = nn.Module()
    root._modules = model._modules
    root._parameters = dict(model._parameters)
    root._buffers = dict(model._buffers)
    root._non_persistent_buffers_set = set(model._non_persistent_buffers_set)
    for name, value in vars(model).items():
        if name.startswith("_tensor_constant"):  # what fx found written into the code
            setattr(root, name, value)
    for name, value in tensors.items():
        root.register_buffer(name, value, persistent=False)
    return root


def _to_module(root: nn.Module, graph: fx.Graph, tensors: dict[str, Tensor]) -> fx.GraphModule:
    module = fx.GraphModule(root, graph, class_name="Part")
    # GraphModule copies buffers and forgets which of them are not part of the state dict
    unsaved = [name for name in tensors if name in module._buffers]
    module._non_persistent_buffers_set.update(unsaved)
    return module

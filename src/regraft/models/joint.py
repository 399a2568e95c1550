"""Several frozen parts of one network merged, so that one pass gives what each hands over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from regraft.models.parts import Prefix


def merge_prefixes(prefixes: Sequence[Prefix]) -> Prefix:
    """Return one frozen part that hands over what each of several does, in their order.

    Operations that they share run once.

    Args:
        prefixes: Frozen parts cut from the same network; those of others would share nothing.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    graph = fx.Graph()
    copied: dict[tuple[Any, ...], fx.Node] = {}  # by what an operation is and reads
    owned: dict[str, Any] = {}
    outputs: list[fx.Node] = []
    for prefix in prefixes:
        here: dict[fx.Node, fx.Node] = {}
        for node in prefix.body.graph.nodes:
            if node.op == "output":
                outputs += [here[source] for source in node.args[0]]
                continue
            if node.op in ("call_module", "get_attr"):
                owned[str(node.target)] = _get_attribute(prefix.body, str(node.target))
            key = (
                node.op,
                node.target,
                repr(fx.map_arg(node.args, here.__getitem__)),
                repr(fx.map_arg(node.kwargs, here.__getitem__)),
            )
            if key not in copied:
                copied[key] = graph.node_copy(node, here.__getitem__)
            here[node] = copied[key]
    graph.output(tuple(outputs))
    shapes = [shape for prefix in prefixes for shape in prefix.shapes]
    return Prefix(fx.GraphModule(owned, graph, class_name="Part"), shapes)


def _get_attribute(body: fx.GraphModule, target: str) -> Any:
    value: Any = body
    for name in target.split("."):
        value = getattr(value, name)
    return value

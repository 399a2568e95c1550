"""Several frozen parts of one network as one, so that a single pass through it gives what each of them hands over.

Refuses parts of different networks: they would share nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from regraft.models.cut import Prefix


def merge_prefixes(prefixes: Sequence[Prefix]) -> Prefix:
    """Return one frozen part that hands over what each of the given ones does, in their order; what they share runs once.

    Args:
        prefixes: Frozen parts cut from the same network.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    graph = fx.Graph()
    made: dict[tuple[Any, ...], fx.Node] = {}
    owned: dict[str, Any] = {}
    crossing: list[fx.Node] = []
    for prefix in prefixes:
        here: dict[fx.Node, fx.Node] = {}
        for node in prefix.body.graph.nodes:
            if node.op == "output":
                crossing += [here[one] for one in node.args[0]]
                continue
            if node.op in ("call_module", "get_attr"):
                owned[str(node.target)] = _owned(prefix.body, str(node.target))
            key = (
                node.op,
                node.target,
                repr(fx.map_arg(node.args, here.__getitem__)),
                repr(fx.map_arg(node.kwargs, here.__getitem__)),
            )
            if key not in made:
                made[key] = graph.node_copy(node, here.__getitem__)
            here[node] = made[key]
    graph.output(tuple(crossing))
    return Prefix(
        fx.GraphModule(owned, graph, class_name="Part"),
        [shape for prefix in prefixes for shape in prefix.shapes],
    )


def _owned(body: fx.GraphModule, target: str) -> Any:
    found: Any = body
    for name in target.split("."):
        found = getattr(found, name)
    return found

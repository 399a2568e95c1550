"""Cutting a network in two: what is frozen and computed once, and what is trained.

Refuses `requires_grad`: frozen is a place here, not a flag. The place is found by dataflow over a `torch.fx` graph, never from a
table of model families.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from regraft.errors import UserError
from regraft.models import trace
from regraft.models.trace import Trace

Features = tuple[Tensor, ...]


class Prefix(nn.Module):
    """The frozen part: always in eval mode, never with gradients, its parameters handed to no optimizer."""

    def __init__(self, body: fx.GraphModule, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.body = body
        self.shapes = tuple(shapes)  # of what it hands over, for one image
        self.eval()

    def train(self, mode: bool = True) -> Prefix:
        """Stay in eval mode whatever is asked."""
        return super().train(False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is frozen, so that the trained part takes the images themselves."""
        return all(node.op in ("placeholder", "output") for node in self.body.graph.nodes)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(
            (tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu")
        )

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Features:
        out: Features = self.body(images)
        return out

    def digest(self, tensors: dict[str, str] | None = None) -> str:
        """Name of this very function: its code, weights and buffers; `tensors` are its `digests` where they are at hand."""
        settings = re.sub(
            r" at 0x[0-9a-f]+", "", repr(self.body)
        )  # strides, paddings, epsilons, kinds of activation
        named = sorted((self.digests() if tensors is None else tensors).items())
        return hashlib.blake2b(
            f"{self.body.code}\n{settings}\n{named}".encode(), digest_size=16
        ).hexdigest()

    def digests(self) -> dict[str, str]:
        """Return a digest of every parameter and buffer by name, so that what changed can be told."""
        named = [*self.named_parameters(), *self.named_buffers()]
        return {
            name: hashlib.blake2b(_named(name, tensor), digest_size=16).hexdigest()
            for name, tensor in named
        }


class Suffix(nn.Module):
    """The trained part of the backbone: everything that it owns is trained.

    It was traced twice, because functional dropout is baked into a graph when it is traced.
    """

    def __init__(self, train: fx.GraphModule, evaluate: fx.GraphModule) -> None:
        super().__init__()
        self.body = train
        self.__dict__["_evaluate"] = (
            evaluate  # the same modules again: kept out of sight of state_dict and parameters
        )

    @property
    def evaluating(self) -> fx.GraphModule:
        """The graph of eval mode, from what crosses to a tuple with the features."""
        made: fx.GraphModule = self.__dict__["_evaluate"]
        return made

    def forward(self, *features: Tensor) -> Tensor:
        body = self.body if self.training else self.__dict__["_evaluate"]
        out: Tensor = body(*features)[0]
        return out


def _named(name: str, tensor: Tensor) -> bytes:
    """Return a tensor's name, kind and bytes."""
    return (
        f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    )


def gather_features(values: Sequence[Tensor], layouts: Sequence[str]) -> Tensor:
    """Return the features `(n, d)`: each value made a vector as its layout says, side by side.

    Layouts: "vector" as it is, "map" `(n, c, h, w)` averaged over space, "map-last" `(n, h, w, c)` likewise, "tokens" `(n, t, d)` averaged,
    "tokens-1" averaged without the first one, "class-token" the first one only, "flat" everything in a row, channels first.
    """
    vectors = []
    for value, layout in zip(values, layouts, strict=True):
        if layout == "map":
            vector = value.mean(dim=(2, 3))
        elif layout == "map-last":
            vector = value.mean(dim=(1, 2))
        elif layout.startswith("tokens"):
            vector = value[:, int(layout.partition("-")[2] or 0) :].mean(dim=1)
        elif layout == "class-token":
            vector = value[:, 0]
        else:
            vector = value.flatten(1)
        vectors.append(vector)
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


def cut_graph(
    traced: Trace,
    values: dict[str, Any],
    first: str | None,
    taken: Sequence[str],
    layouts: Sequence[str],
) -> tuple[Prefix, Suffix]:
    """Return what stays frozen and what is trained, as two modules over the network's own parameters.

    Everything that runs before the node `first` is frozen. Operations without state or randomness that follow are moved over the border where that
    makes what crosses it smaller: a frozen network hands over its pooled features, not its last map.

    Args:
        traced: The network.
        values: What flows through it, from `flow`.
        first: Name of the first trained node, the images themselves where everything is trained; None where nothing of the network is.
        taken: Names of the nodes whose values are the features.
        layouts: How each of those values becomes a vector, see `gather`.

    Returns:
        Two halves with `suffix(*prefix(x))` equal to the features; each parameter and buffer that the features need is owned by exactly one of them.

    Raises:
        UserError: When a module is used on both sides of the cut.
    """
    trained, evaluated = (
        _with_output(graph, taken, layouts) for graph in (traced.train, traced.eval)
    )
    values = dict(values)
    images = next(node for node in trained.nodes if node.op == "placeholder").name
    flowing = _flowing(trained, images) | _flowing(evaluated, images)
    end = next(node for node in trained.nodes if node.op == "output").all_input_nodes[0]
    values[end.name] = gather_features([torch.zeros(values[name]) for name in taken], layouts).shape
    crossing = _border(trained, first, flowing, values, traced)
    constants = _sizes(traced, crossing, values)
    prefix = Prefix(
        _part(traced.model, evaluated, [images], crossing, {}),
        [values[name][1:] for name in crossing],
    )
    owned = {id(tensor) for tensor in (*prefix.parameters(), *prefix.buffers())}
    constants |= _shared_constants(traced.model, evaluated, crossing, flowing, owned)
    suffix = Suffix(
        *(
            _part(traced.model, graph, crossing, [end.name], constants)
            for graph in (trained, evaluated)
        )
    )
    twice = [
        name
        for name, tensor in (*suffix.named_parameters(), *suffix.named_buffers())
        if id(tensor) in owned
    ]
    if twice:
        raise UserError(
            f"{twice[0].removeprefix('body.')} is used on both sides of the cut, so it cannot be frozen and trained at once. Cut at another stage."
        )
    return prefix, suffix


def _with_output(graph: fx.Graph, taken: Sequence[str], layouts: Sequence[str]) -> fx.Graph:
    """Return a copy of the graph that ends in `gather` of the named values; what they do not need is cut off."""
    copy = fx.Graph()
    environment: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "output":
            environment[node] = copy.node_copy(node, environment.__getitem__)
            environment[node].name = node.name
    by_name = {node.name: node for node in copy.nodes}
    end = copy.call_function(gather_features, ([by_name[name] for name in taken], tuple(layouts)))
    end.name = "features_taken"
    copy.output((end,))
    for node in reversed(
        list(copy.nodes)
    ):  # not eliminate_dead_code: it keeps what it thinks impure
        if not node.users and node.op not in ("output", "placeholder"):
            copy.erase_node(node)
    return copy


def _flowing(graph: fx.Graph, images: str) -> set[str]:
    """Return the names of the nodes whose value depends on the images."""
    found = {images}
    for node in graph.nodes:
        if any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def _border(
    graph: fx.Graph, first: str | None, flowing: set[str], values: dict[str, Any], traced: Trace
) -> list[str]:
    """Return the names of the values that cross from the frozen to the trained part, fewest numbers first choice."""
    nodes = [node for node in graph.nodes if node.op != "output" and node.name in flowing]
    names = [node.name for node in nodes]
    if first is None:
        return [names[-1]]
    if first == names[0]:
        return [first]
    every = [node.name for node in traced.train.nodes]
    early = set(every[: every.index(first)])
    frozen = [node for node in nodes if node.name in early]
    slid: list[fx.Node] = []
    reached = {node.name for node in frozen}
    for node in nodes:
        if node.name in reached or not _is_free(node, traced.model, flowing):
            continue
        if all(source.name in reached for source in node.all_input_nodes if source.name in flowing):
            slid.append(node)
            reached.add(node.name)
    best: tuple[int, list[str]] | None = None
    inside = {node.name for node in frozen}
    for moved in [None, *slid]:
        if moved is not None:
            inside.add(moved.name)
        crossing = _crossing(nodes, inside, graph)
        if any(name not in values for name in crossing):
            continue  # exists in train mode only
        tensors = [name for name in crossing if isinstance(values[name], torch.Size)]
        if any(len(values[name]) < 1 or values[name][0] != 2 for name in tensors) or any(
            not isinstance(values[name], (torch.Size, int, float)) for name in crossing
        ):
            continue
        size = sum(values[name].numel() for name in tensors)
        if best is None or size <= best[0]:
            best = (size, crossing)
    if best is None:
        raise UserError(
            f"The network cannot be cut before {traced.path.get(first, first)!r}: what crosses there is no batch of tensors. Cut at another stage."
        )
    return best[1]


def _crossing(nodes: list[fx.Node], inside: set[str], graph: fx.Graph) -> list[str]:
    return [
        node.name
        for node in nodes
        if node.name in inside and any(user.name not in inside for user in node.users)
    ]


def _is_free(node: fx.Node, model: nn.Module, flowing: set[str]) -> bool:
    """Whether a node has neither state nor active randomness, so that it may be computed once."""
    if any(source.name not in flowing for source in node.all_input_nodes):
        return False  # reads a parameter, or something computed from one
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        stateless = not list(module.parameters()) and not list(module.buffers())
        return stateless and not any(_is_random(part) for part in module.modules())
    if node.op == "call_function":
        return (
            "dropout" not in str(node.target)
            and "drop_path" not in str(node.target)
            and "drop_block" not in str(node.target)
        )
    return node.op == "call_method" and not any(
        word in str(node.target) for word in ("bernoulli", "normal", "uniform", "random")
    )


def _is_random(module: nn.Module) -> bool:
    rate = getattr(module, "p", getattr(module, "drop_prob", getattr(module, "prob", 0.0)))
    return "drop" in type(module).__name__.lower() and bool(rate)


def _sizes(traced: Trace, crossing: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Take plain numbers out of `crossing`: those that follow the batch become its size, the others constants."""
    numbers = [name for name in crossing if not isinstance(values[name], torch.Size)]
    if not numbers:
        return {}
    images = next(node.name for node in traced.eval.nodes if node.op == "placeholder")
    other = trace.values(traced, (3, *values[images][1:]))
    found: dict[str, Any] = {}
    for name in numbers:
        crossing.remove(name)
        if values[name] == other[name]:
            found[name] = values[name]
        elif (values[name], other[name]) == (2, 3):
            found[name] = _BatchSize
        else:
            raise UserError(
                f"The network cannot be cut here: {name} depends on the batch size in a way that cannot be carried over. Cut at another stage."
            )
    return found


class _BatchSize:
    """Stands for the number of images in the batch, whatever it is."""


def _shared_constants(
    model: nn.Module, graph: fx.Graph, crossing: list[str], flowing: set[str], owned: set[int]
) -> dict[str, Any]:
    """Values that do not depend on the images but are read by both halves, computed here and now for the second."""
    needed = _ancestors([node for node in graph.nodes if node.op == "output"], set(crossing))
    shared = {}
    for node in graph.nodes:
        if node.name not in needed or node.name in flowing or node.op == "output":
            continue
        if not any(user.name in flowing or user.op == "output" for user in node.users):
            continue
        part = _part(model, graph, [], [node.name], {})
        if any(id(tensor) in owned for tensor in (*part.parameters(), *part.buffers())):
            with torch.no_grad():
                shared[node.name] = part()[0].clone()
    return shared


def _ancestors(nodes: Iterable[fx.Node], stop: set[str]) -> set[str]:
    found: set[str] = set()
    queue = list(nodes)
    while queue:
        for source in queue.pop().all_input_nodes:
            if source.name not in found and source.name not in stop:
                found.add(source.name)
                queue.append(source)
    return found


def _part(
    model: nn.Module,
    graph: fx.Graph,
    inputs: list[str],
    outputs: list[str],
    constants: dict[str, Any],
) -> fx.GraphModule:
    """Return the sub-network from `inputs` to a tuple of `outputs`, over the same parameters and modules."""
    by_name = {node.name: node for node in graph.nodes}
    stop = set(inputs) | set(constants)
    needed = _ancestors([by_name[name] for name in outputs if name not in stop], stop) | set(
        outputs
    )
    made = fx.Graph()
    environment: dict[fx.Node, Any] = {}
    for name in inputs:
        environment[by_name[name]] = made.placeholder(name)
    tensors = {}
    for number, (name, value) in enumerate(constants.items()):
        if name not in by_name:
            continue
        if value is _BatchSize:
            shape = made.call_function(getattr, (environment[by_name[inputs[0]]], "shape"))
            environment[by_name[name]] = made.call_function(operator.getitem, (shape, 0))
        elif isinstance(value, Tensor):
            tensors[f"_constant_{number}"] = value
            environment[by_name[name]] = made.get_attr(f"_constant_{number}")
        else:
            environment[by_name[name]] = value
    root = nn.Module()
    root.__dict__["_modules"] = model._modules
    root.__dict__["_parameters"] = dict(model._parameters)
    root.__dict__["_buffers"] = dict(model._buffers)
    root.__dict__["_non_persistent_buffers_set"] = set(model._non_persistent_buffers_set)
    for name, value in vars(model).items():
        if name.startswith("_tensor_constant"):  # what fx found written into the code
            setattr(root, name, value)
    for name, value in tensors.items():
        root.register_buffer(name, value, persistent=False)
    for node in graph.nodes:
        if node.name in needed and node not in environment and node.op != "output":
            environment[node] = made.node_copy(node, lambda n: environment[n])
    made.output(tuple(environment[by_name[name]] for name in outputs))
    part = fx.GraphModule(root, made, class_name="Part")
    for name in (
        tensors
    ):  # GraphModule copies buffers as plain attributes where they are no longer registered
        if name in part._buffers:
            part._non_persistent_buffers_set.add(name)
    return part

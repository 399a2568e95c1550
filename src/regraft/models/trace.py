"""A network as a graph of operations, in train and in eval mode, with what flows through it.

Refuses to know where anyone cuts; `halves` does.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from regraft.errors import UserError


@dataclass(frozen=True)
class Trace:
    """A network as two graphs over the same modules, in train and in eval mode; nodes that correspond have the same name."""

    model: nn.Module
    train: fx.Graph
    eval: fx.Graph
    path: dict[
        str, str
    ]  # node name → dotted path of the module that it belongs to, in running order


def trace_model(model: nn.Module) -> Trace:
    """Return the network's graphs in train and eval mode; raises `UserError` where `torch.fx` cannot trace it.

    Operations that write into their input no longer do: whoever takes that value in the middle of the network would get another one.
    """
    was_training = model.training
    try:
        evaluated, _, keys = _trace_once(model.eval())
        trained, path, names = _trace_once(model.train())
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot be traced by torch.fx ({_first_line(error)}), so it cannot be cut. Choose another backbone; "
            "`regraft backbones` lists those that ship with timm."
        ) from error
    finally:
        model.train(was_training)
    for graph in (evaluated, trained):
        _stop_writing_in_place(model, graph)
    same = {key: name for name, key in names.items()}
    for node in (
        evaluated.nodes
    ):  # the two traces differ where train mode does more, as stochastic depth does
        node.name = (
            same.get(keys[node.name], f"only_eval_{node.name}")
            if node.op != "output"
            else node.name
        )
    return Trace(model, trained, evaluated, path)


def propagate_shapes(traced: Trace, resolution: int) -> dict[str, Any]:
    """Return by node name what flows through the network in eval mode: a tensor's shape for a batch of two, other values as they are.

    Raises:
        UserError: When the network cannot take images of this size.
    """
    try:
        return values(traced, (2, 3, resolution, resolution))
    except Exception as error:
        raise UserError(
            f"{type(traced.model).__name__} cannot take images of {resolution} px ({_first_line(error)}). Expected a side that its strides and windows divide; "
            "try the resolution of its weights, or another backbone."
        ) from error


def _trace_once(model: nn.Module) -> tuple[fx.Graph, dict[str, str], dict[str, tuple[str, ...]]]:
    """Return the graph, the module path of each node, and for each node a key that it has in every mode."""
    tracer = NodePathTracer(
        autowrap_functions=tuple(get_notrace_functions()), leaf_modules=list(get_notrace_modules())
    )
    tracer.proxy_buffer_attributes = (
        True  # or buffers that are read as attributes end up in the code
    )
    optional = list(inspect.signature(model.forward).parameters.values())[1:]
    graph = tracer.trace(
        model,
        concrete_args={one.name: one.default for one in optional if one.default is not one.empty},
    )
    _, *rest = [node for node in graph.nodes if node.op == "placeholder"]
    leftover = set(rest)  # placeholders of the optional arguments, and assertions about them
    for node in graph.nodes:
        if leftover.intersection(node.all_input_nodes):
            leftover.add(node)
    for node in [node for node in reversed(graph.nodes) if node in leftover]:
        graph.erase_node(node)
    modules = {name for name, _ in model.named_modules()}
    path: dict[str, str] = {}
    keys: dict[str, tuple[str, ...]] = {}
    count = Counter[tuple[str, str, str]]()
    for node in graph.nodes:
        path[node.name] = _module(tracer.node_to_qualname.get(node, ""), modules)
        target = (
            "_tensor_constant"
            if str(node.target).startswith("_tensor_constant")
            else str(node.target)
        )
        key = (path[node.name], node.op, target)
        count[key] += 1
        keys[node.name] = (*key, str(count[key]))
    return graph, path, keys


def _stop_writing_in_place(model: nn.Module, graph: fx.Graph) -> None:
    for node in graph.nodes:
        if (
            node.op == "call_module"
            and getattr(model.get_submodule(str(node.target)), "inplace", False) is True
        ):
            setattr(model.get_submodule(str(node.target)), "inplace", False)  # noqa: B010  mypy takes modules for tensors
        elif "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}


def _module(place: str, modules: set[str]) -> str:
    """Return the path of the module that a node belongs to: `place` without the operation or the number of a repeated call."""
    if place in modules:
        return place
    parent, _, last = place.rpartition(".")
    again = f"{parent}.{last.rpartition('_')[0]}".lstrip(".")
    return again if again in modules else parent


def values(traced: Trace, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what each node gives in eval mode for blank images of this shape; see `flow`."""
    values: dict[str, Any] = {}

    class Record(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            out = super().run_node(node)
            values[node.name] = shape_of(out)
            return out

    was_training = traced.model.training
    device = next(iter(traced.model.parameters())).device
    try:
        with torch.inference_mode():
            Record(fx.GraphModule(traced.model.eval(), traced.eval)).run(
                torch.zeros(shape, device=device)
            )
    finally:
        traced.model.train(was_training)
    return values


def shape_of(value: Any) -> Any:
    """Return a tensor's shape, and anything else as it is."""
    return torch.Size(value.shape) if isinstance(value, Tensor) else value


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__

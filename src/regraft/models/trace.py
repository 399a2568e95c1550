"""A network as a graph of operations, in train and in eval mode, with what flows through it."""

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
    """A network as two graphs over the same modules; nodes that correspond have the same name."""

    model: nn.Module
    train: fx.Graph
    eval: fx.Graph
    path: dict[str, str]  # node name → dotted path of the module it belongs to, in running order


@dataclass(frozen=True)
class _ModeTrace:
    """A network as a graph in one mode."""

    graph: fx.Graph
    path: dict[str, str]  # node name → dotted path of its module
    keys: dict[str, tuple[str, ...]]  # node name → a key that the node has in every mode


def trace_model(model: nn.Module) -> Trace:
    """Return the network's graphs in train and eval mode.

    Operations that write into their input no longer do: else a value that is taken in the middle
    of the network would be overwritten by what follows.

    Raises:
        UserError: Where `torch.fx` cannot trace the network.
    """
    was_training = model.training
    try:
        evaluation = _trace_mode(model.eval())
        training = _trace_mode(model.train())
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot be traced by torch.fx ({_first_line(error)}), "
            "so it cannot be cut. Choose another backbone; "
            "`regraft backbones` lists those that ship with timm."
        ) from error
    finally:
        model.train(was_training)
    _stop_writing_in_place(model, evaluation.graph)
    _stop_writing_in_place(model, training.graph)
    _rename_nodes(evaluation, training)
    return Trace(model, training.graph, evaluation.graph, training.path)


def propagate_shapes(traced: Trace, resolution: int) -> dict[str, Any]:
    """Return by node name what flows through the network in eval mode.

    Returns:
        A tensor's shape for a batch of two images, other values as they are.

    Raises:
        UserError: When the network cannot take images of this size.
    """
    try:
        return compute_values(traced, (2, 3, resolution, resolution))
    except Exception as error:
        raise UserError(
            f"{type(traced.model).__name__} cannot take images of {resolution} px "
            f"({_first_line(error)}). Expected a side that its strides and windows divide; "
            "try the resolution of its weights, or another backbone."
        ) from error


def compute_values(traced: Trace, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what each node gives in eval mode for blank images of this shape; see `flow`."""
    values: dict[str, Any] = {}

    class Record(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            values[node.name] = get_shape(value)
            return value

    model = traced.model
    was_training = model.training
    device = next(iter(model.parameters())).device
    try:
        with torch.inference_mode():
            interpreter = Record(fx.GraphModule(model.eval(), traced.eval))
            interpreter.run(torch.zeros(shape, device=device))
    finally:
        model.train(was_training)
    return values


def get_shape(value: Any) -> Any:
    """Return a tensor's shape, and anything else as it is."""
    return torch.Size(value.shape) if isinstance(value, Tensor) else value


def _trace_mode(model: nn.Module) -> _ModeTrace:
    """Return the graph of the mode that the model is in."""
    tracer = NodePathTracer(
        autowrap_functions=tuple(get_notrace_functions()), leaf_modules=list(get_notrace_modules())
    )
    # or buffers that are read as attributes end up in the code
    tracer.proxy_buffer_attributes = True
    graph = tracer.trace(model, concrete_args=_get_default_arguments(model))
    _erase_optional_inputs(graph)
    modules = {name for name, _ in model.named_modules()}
    path: dict[str, str] = {}
    keys: dict[str, tuple[str, ...]] = {}
    count = Counter[tuple[str, str, str]]()
    for node in graph.nodes:
        path[node.name] = _get_module_path(tracer.node_to_qualname.get(node, ""), modules)
        target = str(node.target)
        if target.startswith("_tensor_constant"):
            target = "_tensor_constant"  # these are numbered differently in each mode
        key = (path[node.name], node.op, target)
        count[key] += 1
        keys[node.name] = (*key, str(count[key]))
    return _ModeTrace(graph, path, keys)


def _get_default_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the defaults of the arguments that `forward` takes besides the images."""
    _, *optional = inspect.signature(model.forward).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in optional}
    return {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}


def _erase_optional_inputs(graph: fx.Graph) -> None:
    """Remove the placeholders of all inputs but the images, and assertions about them."""
    _, *optional = [node for node in graph.nodes if node.op == "placeholder"]
    leftover = set(optional)
    for node in graph.nodes:
        if leftover.intersection(node.all_input_nodes):
            leftover.add(node)
    for node in reversed(list(graph.nodes)):
        if node in leftover:
            graph.erase_node(node)


def _rename_nodes(evaluation: _ModeTrace, training: _ModeTrace) -> None:
    """Give each node of eval mode the name of its counterpart in train mode.

    The two graphs differ where train mode does more, as stochastic depth does.
    """
    train_names = {key: name for name, key in training.keys.items()}
    for node in evaluation.graph.nodes:
        if node.op != "output":
            key = evaluation.keys[node.name]
            node.name = train_names.get(key, f"only_eval_{node.name}")


def _stop_writing_in_place(model: nn.Module, graph: fx.Graph) -> None:
    for node in graph.nodes:
        module: Any = None
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
        if getattr(module, "inplace", False) is True:
            module.inplace = False
        elif "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}


def _get_module_path(qualified_name: str, modules: set[str]) -> str:
    """Return the path of the module that a node belongs to.

    Args:
        qualified_name: As the tracer gives it: the path of a module, of an operation in it, or of
            a module that is called again, with a number at the end.
        modules: The paths of all modules.
    """
    if qualified_name in modules:
        return qualified_name
    parent, _, last = qualified_name.rpartition(".")
    called_again = f"{parent}.{last.rpartition('_')[0]}".lstrip(".")
    return called_again if called_again in modules else parent


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

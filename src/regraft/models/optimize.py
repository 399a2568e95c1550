"""The frozen part made faster: each BatchNorm is fused into the convolution before it.

The fused network is a copy for computing; digests are those of the original.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from regraft.models.parts import Prefix

_BATCH_NORM_ARGUMENTS = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


@dataclass(frozen=True)
class _BatchNorm:
    """What a BatchNorm computes with in eval mode."""

    mean: Any
    variance: Any
    epsilon: float
    weight: Any
    bias: Any


def fuse_conv_bn(prefix: Prefix) -> Prefix:
    """Return a copy of the frozen part with BatchNorm in the convolutions where the graph allows.

    It is in channels-last memory. Its outputs agree with those of the original to float32 rounding
    (under 1e-4 of their norm).
    """
    fused = Prefix(copy.deepcopy(prefix.body), prefix.shapes)
    body = fused.body
    for node in list(body.graph.nodes):
        norm = _read_batch_norm(body, node)
        if norm is not None:
            _fuse(body, node, norm)
    body.graph.eliminate_dead_code()
    body.delete_all_unused_submodules()
    body.recompile()
    use_channels_last(fused)
    return fused


def use_channels_last(module: nn.Module) -> None:
    """Lay tensors of rank 4 out in channels-last memory; other ranks have no such layout."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def cast_bfloat16(prefix: Prefix) -> Prefix:
    """Return the frozen part with the weights of convolutions and linear layers in bfloat16.

    Autocast would cast them to it for every batch.
    """
    for module in prefix.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(torch.bfloat16)
    return prefix


def _fuse(body: fx.GraphModule, node: fx.Node, norm: _BatchNorm) -> None:
    """Put a BatchNorm into the convolution before it, if it is alone in reading its output."""
    source = node.all_input_nodes[0]
    if source.op != "call_module" or len(source.users) != 1:
        return
    conv = body.get_submodule(str(source.target))
    if not isinstance(conv, nn.Conv2d) or _count_calls(body.graph, source.target) != 1:
        return
    if not _uses_stored_weight(conv):
        return
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.mean, norm.variance, norm.epsilon, norm.weight, norm.bias
        )
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    rest = _get_activation(body, node)
    if rest is None:
        node.replace_all_uses_with(source)
        body.graph.erase_node(node)
    else:
        body.set_submodule(str(node.target), rest)


def _uses_stored_weight(conv: nn.Conv2d) -> bool:
    """Whether no hook and no parametrization (weight_norm, spectral_norm) makes the weight."""
    return not is_parametrized(conv) and not conv._forward_pre_hooks


def _read_batch_norm(body: fx.GraphModule, node: fx.Node) -> _BatchNorm | None:
    """Return the BatchNorm in eval mode that a node computes, None where it is none."""
    if node.op == "call_module":
        module: Any = body.get_submodule(str(node.target))
        if type(module) not in (nn.BatchNorm2d, BatchNormAct2d) or module.running_mean is None:
            return None
        return _BatchNorm(
            module.running_mean, module.running_var, module.eps, module.weight, module.bias
        )
    if node.op == "call_function" and node.target is functional.batch_norm:
        return _read_functional(body, node)
    return None


def _read_functional(body: fx.GraphModule, node: fx.Node) -> _BatchNorm | None:
    arguments = dict(zip(_BATCH_NORM_ARGUMENTS, node.args, strict=False)) | node.kwargs
    names = ("running_mean", "running_var", "weight", "bias")
    values = [_get_value(body, arguments.get(name)) for name in names]
    if arguments.get("training") is not False:
        return None
    if not all(isinstance(value, Tensor) for value in values):
        return None
    mean, variance, weight, bias = values
    epsilon: Any = arguments.get("eps", 1e-5)
    return _BatchNorm(mean, variance, epsilon, weight, bias)


def _get_activation(body: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return what a node does after normalising, None where that is nothing."""
    if node.op != "call_module":
        return None
    module: Any = body.get_submodule(str(node.target))
    return nn.Sequential(module.drop, module.act) if type(module) is BatchNormAct2d else None


def _get_value(body: fx.GraphModule, node: Any) -> Any:
    """Return the tensor that a node reads from the network, None where it reads none."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    return getattr(body.get_submodule(owner), name, None)


def _count_calls(graph: fx.Graph, target: Any) -> int:
    return sum(node.op == "call_module" and node.target == target for node in graph.nodes)

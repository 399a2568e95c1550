"""The layers of a network one by one, as model summaries list them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from regraft.models.network import TransferNetwork

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Args:
        name: Its name.
        kind: Its class.
        shape: Shape of one image's output; None where it is not known.
        parameters: Number of parameters.
        statistics: Moving statistics of BatchNorm, which Keras counts as parameters.
        frozen: Whether no phase trains it.
    """

    name: str
    kind: str
    shape: list[int] | None
    parameters: int
    statistics: int
    frozen: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def summarize_layers(network: TransferNetwork) -> list[LayerRow]:
    """Return a row for each layer with weights, in running order, the head last."""
    cut = network.final_cut()
    shapes = network.backbone.values
    rows = list(_backbone_rows(cut.frozen.body, shapes, frozen=True))
    rows += _backbone_rows(cut.trained.body, shapes, frozen=False)
    rows += _head_rows(network)
    return rows


def _backbone_rows(
    body: fx.GraphModule, shapes: dict[str, Any], frozen: bool
) -> Iterator[LayerRow]:
    seen = set()
    for node in body.graph.nodes:
        if node.op not in ("call_module", "get_attr") or node.target in seen:
            continue
        seen.add(node.target)
        owner, _, attribute = str(node.target).rpartition(".")
        value: Any = getattr(body.get_submodule(owner), attribute)
        if not _has_weights(value):
            continue
        shape = shapes.get(node.name)
        known = None
        if isinstance(shape, torch.Size) and node.op == "call_module":
            known = list(shape[1:])
        yield _row(str(node.target), value, known, frozen)


def _has_weights(value: object) -> bool:
    if isinstance(value, nn.Module):
        return bool(value.state_dict())
    return not isinstance(value, Tensor) or isinstance(value, nn.Parameter)


def _head_rows(network: TransferNetwork) -> Iterator[LayerRow]:
    head = network.head.cpu().eval()
    sized = (nn.Linear, nn.BatchNorm1d, nn.LayerNorm)
    width = next(layer.weight.shape[-1] for layer in head if isinstance(layer, sized))
    features = torch.zeros(2, width)
    pooling = "flatten" if network.plan.flattens else "average"
    yield LayerRow(pooling, "features", [width], 0, 0, False)
    with torch.inference_mode():
        for number, layer in enumerate(head):
            features = layer(features)
            yield _row(f"head.{number}", layer, list(features.shape[1:]), False)


def _row(name: str, value: Any, shape: list[int] | None, frozen: bool) -> LayerRow:
    if isinstance(value, nn.Module):
        parameters = sum(parameter.numel() for parameter in value.parameters())
        statistics = _count_statistics(value)
    else:
        parameters = value.numel()
        statistics = 0
    return LayerRow(name, type(value).__name__, shape, parameters, statistics, frozen)


def _count_statistics(module: nn.Module) -> int:
    total = 0
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2] in _STATISTICS:
            total += buffer.numel()
    return total

"""The layers of a plan's network, one by one, as model summaries list them: what comes out, how many parameters, frozen or trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from regraft.models.backbone import Backbone
from regraft.plans.schema import Plan
from regraft.workflow.story import final_cut, new_head


def layers(model: Backbone, plan: Plan, classes: int) -> list[dict[str, Any]]:
    """Return a row for each layer that owns something, in running order, the head last.

    Args:
        model: The plan's backbone at the plan's resolution.
        plan: The plan; frozen is what no phase trains.
        classes: Number of classes.

    Returns:
        `name`, `kind`, `shape` of one image's output (None where it is not known), `parameters`, `statistics` (moving ones of BatchNorm, which Keras
        counts as parameters), `frozen`.
    """
    rows: list[dict[str, Any]] = []
    prefix, suffix = final_cut(model, plan)
    for half, frozen in ((prefix.body, True), (suffix.body, False)):
        rows += _owning(half, model.values, frozen)
    top = new_head(model, plan, classes).cpu()
    x = torch.zeros(
        2,
        next(
            layer.weight.shape[-1]
            for layer in top
            if isinstance(layer, (nn.Linear, nn.BatchNorm1d, nn.LayerNorm))
        ),
    )
    rows.append(
        {
            "name": "flatten" if plan.flattens else "average",
            "kind": "features",
            "shape": list(x.shape[1:]),
            **_size(nn.Identity()),
            "frozen": False,
        }
    )
    with torch.inference_mode():
        for number, layer in enumerate(top.eval()):
            x = layer(x)
            rows.append(
                {
                    "name": f"head.{number}",
                    "kind": type(layer).__name__,
                    "shape": list(x.shape[1:]),
                    **_size(layer),
                    "frozen": False,
                }
            )
    return rows


def _owning(half: fx.GraphModule, values: dict[str, Any], frozen: bool) -> list[dict[str, Any]]:
    rows, seen = [], set()
    for node in half.graph.nodes:
        if node.op not in ("call_module", "get_attr") or node.target in seen:
            continue
        seen.add(node.target)
        owner, _, name = str(node.target).rpartition(".")
        there: Any = getattr(half.get_submodule(owner), name)
        if isinstance(there, nn.Module) and not there.state_dict():
            continue
        if isinstance(there, Tensor) and not isinstance(there, nn.Parameter):
            continue
        size = (
            _size(there)
            if isinstance(there, nn.Module)
            else {"parameters": there.numel(), "statistics": 0}
        )
        shape = values.get(node.name)
        known = (
            list(shape[1:]) if isinstance(shape, torch.Size) and node.op == "call_module" else None
        )
        rows.append(
            {
                "name": str(node.target),
                "kind": type(there).__name__,
                "shape": known,
                **size,
                "frozen": frozen,
            }
        )
    return rows


def _size(module: nn.Module) -> dict[str, int]:
    statistics = sum(
        buffer.numel()
        for name, buffer in module.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    )
    return {"parameters": sum(p.numel() for p in module.parameters()), "statistics": statistics}

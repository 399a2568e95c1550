"""The stages and blocks of a network, named and grouped as timm does it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.models import group_parameters
from torch import nn

from regraft.plans.schema import RESERVED_LAYERS

Stages = dict[str, tuple[str, ...]]  # name → the paths of the modules that belong to it


def find_stages(model: nn.Module, path: dict[str, str], coarse: bool = True) -> Stages:
    """Return the stages of a network in order of depth, each with the modules that belong to it.

    Depth and grouping are timm's (`group_matcher`). A stage is called by the first module in it
    that is its own ("layer4", "blocks.6"), never "head", "all" or "end", which mean something else
    in a plan.

    Args:
        model: The network.
        path: Node name → path of its module, in running order, from `graph.trace`.
        coarse: Stages; else blocks, with what lies behind the last one apart.
    """
    owners = _get_owners(model)
    running_order: dict[str, int] = {}
    for module in path.values():
        running_order.setdefault(module, len(running_order))
    owners.sort(key=lambda owner: _get_rank(owner, running_order))
    group_of = _get_groups(model, owners, coarse)
    members: dict[Any, list[str]] = {}
    for owner in owners:
        group = group_of.get(owner)
        members.setdefault(group, []).append(owner)
    stages: Stages = {}
    for modules in members.values():
        others = [owner for owner in owners if owner not in modules]
        name = _choose_name(modules[0], others)
        stages[name] = tuple(modules)
    return stages if coarse else _split_tail(stages)


def is_inside(module: str, path: str) -> bool:
    """Whether a module is the one at a path, or inside it."""
    return module == path or module.startswith(path + ".")


def _get_owners(model: nn.Module) -> list[str]:
    """Return the paths of the modules that own parameters themselves, each once."""
    owners: dict[str, None] = {}
    for parameter, _ in model.named_parameters():
        owner = _get_owner(parameter)
        if owner:
            owners[owner] = None
    return list(owners)


def _get_owner(parameter: str) -> str:
    """Return the path of the module that owns a parameter; empty for the network itself."""
    return parameter.rpartition(".")[0]


def _get_groups(model: Any, owners: list[str], coarse: bool) -> dict[str, Any]:
    """Return the group of each module that owns parameters.

    It is timm's, or where timm has none, it follows the tree of modules.
    """
    try:
        by_parameter = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    except (AttributeError, AssertionError, NotImplementedError):
        return _get_groups_by_path(model, owners, coarse)
    groups = {}
    for parameter, group in by_parameter.items():
        owner = _get_owner(parameter)
        if owner:
            groups[owner] = group
    return groups


def _get_groups_by_path(model: nn.Module, owners: list[str], coarse: bool) -> dict[str, str]:
    """Return as group of each module its own path.

    Where coarse, it is the path of a child of the network, or of a grandchild in a list.
    """
    lists = set()
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            lists.add(name)
    groups = {}
    for owner in owners:
        parts = owner.split(".")
        if coarse:
            depth = 2 if parts[0] in lists else 1
            parts = parts[:depth]
        groups[owner] = ".".join(parts)
    return groups


def _get_rank(module: str, running_order: dict[str, int]) -> int:
    """Return when a module first runs; of one inside a leaf of the trace, when that leaf does."""
    below = [rank for path, rank in running_order.items() if is_inside(path, module)]
    if below:
        return min(below)
    above = [path for path in running_order if path and is_inside(module, path)]
    if above:
        leaf = max(above, key=len)
        return running_order[leaf]
    return len(running_order)


def _choose_name(module: str, others: Iterable[str]) -> str:
    """Return the shortest path that covers a module and none of another group."""
    parts = module.split(".")
    for depth in range(1, len(parts)):
        path = ".".join(parts[:depth])
        is_shared = any(is_inside(other, path) for other in others)
        if path not in RESERVED_LAYERS and not is_shared:
            return path
    return module


def _split_tail(blocks: Stages) -> Stages:
    """Return the blocks with what timm counts to the last one, but lies behind it, apart.

    That is a last convolution or a last norm.
    """
    last = list(blocks)[-1]
    own = [module for module in blocks[last] if is_inside(module, last)]
    tail = [module for module in blocks[last] if module not in own]
    if not own or not tail:
        return blocks
    others = list(own)
    for name, modules in blocks.items():
        if name != last:
            others += modules
    tail_name = _choose_name(tail[0], others)
    return {**blocks, last: tuple(own), tail_name: tuple(tail)}

"""Source models: any timm name, with the weights that it is asked for and the input rules that follow them.

Refuses to read files; `weights` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import timm
import torch
from timm.models import group_parameters, split_model_name_tag
from torch import Tensor, nn

from regraft.errors import unknown_name_error
from regraft.models.trace import Trace, propagate_shapes, trace_model
from regraft.models.weights import build_model, describe_weights, fill_weights
from regraft.plans.schema import RESERVED_LAYERS, InputRules, ModelInfo


@dataclass(frozen=True)
class Backbone:
    """A source model without its classifier, that can be cut anywhere."""

    name: str
    model: nn.Module
    rules: InputRules
    weights: str  # where they came from, in words
    resolution: int
    native: int
    fixed: bool

    def at(self, resolution: int) -> Backbone:
        """Return the same network, over the same weights, for another side in pixels; what does not depend on the side is not found out again."""
        if resolution == self.resolution:
            return self
        other = replace(self, resolution=resolution)
        other.__dict__.update({"trace": self.trace, "stages": self.stages, "blocks": self.blocks})
        return other

    @cached_property
    def trace(self) -> Trace:
        """The network as a graph."""
        return trace_model(self.model)

    @cached_property
    def values(self) -> dict[str, Any]:
        """What flows through it at this resolution."""
        return propagate_shapes(self.trace, self.resolution)

    @cached_property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Stage names in order of depth, each with the modules that timm groups under it."""
        return find_stages(self, coarse=True)

    @cached_property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """The same, finer: every block of every stage."""
        return find_stages(self, coarse=False)

    @cached_property
    def facts(self) -> ModelInfo:
        """What a technique may know of this model; needs no trace at a resolution."""
        places = {
            ".".join(path.split(".")[:depth])
            for path in self.trace.path.values()
            for depth in range(1, path.count(".") + 2)
        }
        modules = {name for name, _ in self.model.named_modules()}
        blocks = tuple(self.blocks)
        known = ((places & modules) | set(self.stages) | set(blocks)) - set(RESERVED_LAYERS)
        return ModelInfo(
            self.name, tuple(self.stages), blocks, frozenset(known), self.native, self.fixed
        )


def list_backbones(pattern: str = "") -> list[str]:
    """Return the names of all backbones, or of those that match a pattern with `*`."""
    return list(timm.list_models(pattern))


def check_backbone_name(name: str) -> None:
    """Raise `UserError` with near names where timm knows no such backbone."""
    if not timm.is_model(split_model_name_tag(name)[0]):
        raise unknown_name_error(
            "backbone",
            name,
            timm.list_models(),
            "`regraft backbones` lists all names, `regraft backbones list 'resnet*'` some.",
        )


def load_backbone(
    name: str, weights: str = "pretrained", resolution: int | None = None, seed: int = 0
) -> Backbone:
    """Return a source model ready to be cut.

    Args:
        name: Any timm name, with or without its weight tag ("resnet50.a1_in1k").
        weights: "pretrained" (those in the wheel for the embedded default, else timm's own loading), "random", or a
            safetensors or state-dict file.
        resolution: Side in pixels; the one of the weights when not given.
        seed: Of random weights.

    Raises:
        UserError: For an unknown name, weights that cannot be had or do not fit, an impossible resolution.
    """
    check_backbone_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(name, weights, resolution)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    fill_weights(model, name, weights)
    native = int(config["input_size"][-1])
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    rules = InputRules(tuple(config["mean"]), tuple(config["std"]), interpolation)
    return Backbone(
        name,
        model,
        rules,
        describe_weights(name, weights),
        resolution or native,
        native,
        bool(config.get("fixed_input_size")),
    )


@lru_cache(maxsize=32)
def model_info(name: str) -> ModelInfo:
    """Return what a technique may know of a model, whatever its weights; raises `UserError` for an unknown name."""
    return load_backbone(name, "random").facts


def restore_weights(source: Backbone, tensors: dict[str, Tensor]) -> None:
    """Put trained tensors back into a backbone; raises `ValueError` for names that it does not have."""
    fault = source.model.load_state_dict(tensors, strict=False)  # what a plan cut off was not kept
    if fault.unexpected_keys:
        raise ValueError(f"unknown weights {', '.join(fault.unexpected_keys[:3])}")


def find_stages(source: Backbone, coarse: bool) -> dict[str, tuple[str, ...]]:
    """Return the places at which people cut, in order of depth, each with the modules that belong to it.

    Depth and grouping are timm's (`group_matcher`); a stage is called by the first module in it that is its own ("layer4", "blocks.6"),
    never "head", "all" or "end", which mean something else in a plan.
    """
    owners = list(
        dict.fromkeys(
            name.rpartition(".")[0] for name, _ in source.model.named_parameters() if "." in name
        )
    )
    order = {module: rank for rank, module in enumerate(dict.fromkeys(source.trace.path.values()))}
    group_of = _groups(source.model, owners, coarse)
    members: dict[Any, list[str]] = {}
    for owner in sorted(owners, key=lambda name: _rank(name, order)):
        members.setdefault(group_of.get(owner), []).append(owner)
    found: dict[str, tuple[str, ...]] = {}
    for group, modules in members.items():
        others = [
            module for other, theirs in members.items() if other != group for module in theirs
        ]
        found[_called(modules, others)] = tuple(modules)
    return found if coarse else _tail_apart(found)


def _tail_apart(blocks: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the blocks with the last one apart from what timm counts to it but lies behind it: a last convolution, a last norm."""
    *_, (name, modules) = blocks.items()
    own = tuple(module for module in modules if module == name or module.startswith(name + "."))
    tail = [module for module in modules if module not in own]
    if not own or not tail:
        return blocks
    return {
        **blocks,
        name: own,
        _called(
            tail, [module for theirs in blocks.values() for module in theirs if module not in tail]
        ): tuple(tail),
    }


def _groups(model: Any, owners: list[str], coarse: bool) -> dict[str, Any]:
    """Return the group of each module that owns parameters: timm's, or where timm has none, by the module tree."""
    try:
        by_parameter = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        return {
            name.rpartition(".")[0]: group for name, group in by_parameter.items() if "." in name
        }
    except (AttributeError, AssertionError, NotImplementedError):
        listed_in = {
            name
            for name, child in model.named_children()
            if isinstance(child, (nn.Sequential, nn.ModuleList))
        }
        return {
            owner: ".".join(
                owner.split(".")[
                    : (2 if owner.split(".")[0] in listed_in else 1) if coarse else None
                ]
            )
            for owner in owners
        }


def _rank(module: str, order: dict[str, int]) -> int:
    """Return when a module first runs; of one inside a leaf of the trace, when that leaf does."""
    below = [
        rank for path, rank in order.items() if path == module or path.startswith(module + ".")
    ]
    if below:
        return min(below)
    above = [path for path in order if path and module.startswith(path + ".")]
    return order[max(above, key=len)] if above else len(order)


def _called(modules: list[str], others: list[str]) -> str:
    """Return the shortest dotted path that covers the first module and no module of another group."""
    parts = modules[0].split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        if path not in RESERVED_LAYERS and not any(
            other == path or other.startswith(path + ".") for other in others
        ):
            return path
    return modules[0]

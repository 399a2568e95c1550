"""Source models: any timm name, with weights and the input rules that follow them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import timm
import torch
from timm.models import split_model_name_tag
from torch import Tensor, nn

from regraft.errors import unknown_name_error
from regraft.models.stages import Stages, find_stages
from regraft.models.trace import Trace, propagate_shapes, trace_model
from regraft.models.weights import (
    are_built_in,
    build_model,
    copy_tensors,
    describe_weights,
    fill_weights,
)
from regraft.plans.schema import RESERVED_LAYERS, InputRules, ModelInfo


class TracedModel:
    """A network with its graphs and the names of its stages.

    None of these depends on its weights, or on the resolution of the images. They are computed
    when they are first asked for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @cached_property
    def trace(self) -> Trace:
        """The network as a graph."""
        return trace_model(self.model)

    @cached_property
    def stages(self) -> Stages:
        """Stage names in order of depth, each with the modules that timm groups under it."""
        return find_stages(self.model, self.trace.path, coarse=True)

    @cached_property
    def blocks(self) -> Stages:
        """The same, finer: every block of every stage."""
        return find_stages(self.model, self.trace.path, coarse=False)

    @cached_property
    def places(self) -> frozenset[str]:
        """The names of all modules at which the network can be cut."""
        paths = set()
        for path in self.trace.path.values():
            parts = path.split(".")
            for depth in range(1, len(parts) + 1):
                paths.add(".".join(parts[:depth]))
        modules = {name for name, _ in self.model.named_modules()}
        places = (paths & modules) | set(self.stages) | set(self.blocks)
        return frozenset(places - set(RESERVED_LAYERS))


@dataclass(frozen=True)
class Backbone:
    """A source model without its classifier, that can be cut anywhere."""

    name: str
    traced: TracedModel
    rules: InputRules
    weights: str  # where they came from, in words
    resolution: int  # side in pixels of the images
    native: int  # the resolution of the weights
    fixed: bool  # whether another resolution needs the network built anew

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.traced.model

    @property
    def trace(self) -> Trace:
        """The network as a graph."""
        return self.traced.trace

    @property
    def stages(self) -> Stages:
        """Stage names in order of depth, each with the modules that timm groups under it."""
        return self.traced.stages

    @property
    def blocks(self) -> Stages:
        """The same, finer: every block of every stage."""
        return self.traced.blocks

    @cached_property
    def values(self) -> dict[str, Any]:
        """What flows through the network at this resolution, see `graph.flow`."""
        return propagate_shapes(self.trace, self.resolution)

    @property
    def facts(self) -> ModelInfo:
        """What a technique may know of this model."""
        return ModelInfo(
            self.name,
            tuple(self.stages),
            tuple(self.blocks),
            self.traced.places,
            self.native,
            self.fixed,
        )

    def at(self, resolution: int) -> Backbone:
        """Return the same network, over the same weights, for images of another side in pixels."""
        return self if resolution == self.resolution else replace(self, resolution=resolution)


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
        weights: "pretrained" (those in the wheel for the embedded default, else timm's own
            loading), "random", or a safetensors or state-dict file.
        resolution: Side in pixels; the one of the weights when not given.
        seed: Of random weights.

    Raises:
        UserError: For an unknown name, weights that cannot be had or do not fit, an impossible
            resolution.
    """
    check_backbone_name(name)
    model = _build(name, weights, resolution, seed)
    fill_weights(model, name, weights)
    config: Any = model.pretrained_cfg
    native = int(config["input_size"][-1])
    return Backbone(
        name=name,
        traced=TracedModel(model),
        rules=_to_rules(config),
        weights=describe_weights(name, weights),
        resolution=resolution or native,
        native=native,
        fixed=bool(config.get("fixed_input_size")),
    )


def replace_weights(
    source: Backbone, weights: str = "pretrained", resolution: int | None = None, seed: int = 0
) -> Backbone:
    """Return a backbone with other weights, tensor for tensor those that `load` would give it.

    The weights are written into the network of `source`, whose trace and stage names stay. Only
    a network of fixed resolution that is to take another one is built and traced anew.

    Args:
        source: The backbone; its own weights are lost.
        weights: As for `load`.
        resolution: As for `load`.
        seed: Of random weights.

    Raises:
        UserError: For weights that cannot be had or do not fit, an impossible resolution.
    """
    side = resolution or source.native
    if source.fixed and side != source.resolution:
        return load_backbone(source.name, weights, resolution, seed)
    if are_built_in(source.name, weights):
        other = _build(source.name, weights, resolution, seed)
        copy_tensors(other, source.model)
    else:
        fill_weights(source.model, source.name, weights)
    return replace(source, weights=describe_weights(source.name, weights), resolution=side)


def get_input_rules(name: str) -> InputRules:
    """Return what a network expects of its input, without building it.

    A deprecated name for which timm has no configuration is built after all.

    Raises:
        UserError: For an unknown name.
    """
    check_backbone_name(name)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        model: Any = timm.create_model(name, num_classes=0)
        return _to_rules(model.pretrained_cfg)
    return _to_rules(config.to_dict())


@lru_cache(maxsize=32)
def model_info(name: str) -> ModelInfo:
    """Return what a technique may know of a model, whatever its weights.

    Raises:
        UserError: For an unknown name.
    """
    return load_backbone(name, "random").facts


def restore_weights(source: Backbone, tensors: dict[str, Tensor]) -> None:
    """Put trained tensors back into a backbone; the others stay as they are.

    Raises:
        ValueError: For names that it does not have.
    """
    # not strict: weights that a plan leaves out are not in the file of its run
    keys = source.model.load_state_dict(tensors, strict=False)
    if keys.unexpected_keys:
        raise ValueError(f"unknown weights {', '.join(keys.unexpected_keys[:3])}")


def _build(name: str, weights: str, resolution: int | None, seed: int) -> nn.Module:
    """Return timm's model, its random weights drawn with a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, weights, resolution)


def _to_rules(config: dict[str, Any]) -> InputRules:
    """Return the input rules in timm's configuration of a model."""
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    return InputRules(tuple(config["mean"]), tuple(config["std"]), interpolation)

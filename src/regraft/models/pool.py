"""Backbones at hand: each is built and traced once, and given other weights when it is needed."""

from __future__ import annotations

import torch

from regraft.models.backbone import Backbone, load_backbone, replace_weights
from regraft.plans.schema import ModelInfo, Plan
from regraft.system.hardware import resolve_device

SourceKey = tuple[object, ...]

_MOST_NETWORKS = 4  # that are held at a time


class BackbonePool:
    """Gives backbones by plan; there is one network for each name.

    A backbone that it gave belongs to the caller until another one of the same name is asked for,
    which takes over its network.

    Args:
        device: "auto", "cpu" or "cuda".
        most: How many networks are held; the one used longest ago is dropped first.
    """

    def __init__(self, device: str = "auto", most: int = _MOST_NETWORKS) -> None:
        self.device = resolve_device(device)
        self.most = most
        self._infos: dict[str, ModelInfo] = {}
        self._backbones: dict[str, Backbone] = {}  # by name, the one used last at the end
        self._pristine: dict[str, SourceKey] = {}  # source weights that a network has unchanged

    def info(self, name: str) -> ModelInfo:
        """Return what a technique may know of a backbone, whatever its weights.

        Raises:
            UserError: For an unknown name.
        """
        if name not in self._infos:
            backbone = self._backbones.get(name) or self._build(name, "random", None, 0)
            self._infos[name] = backbone.facts
        return self._infos[name]

    def load(self, plan: Plan) -> Backbone:
        """Return the backbone of a plan with its weights; the caller may train it.

        Raises:
            UserError: When name, weights or resolution cannot be had.
        """
        backbone = self.read(plan)
        del self._pristine[plan.backbone]
        return backbone

    def read(self, plan: Plan) -> Backbone:
        """Return the backbone of a plan with its weights, for a caller that changes none of them.

        Raises:
            UserError: When name, weights or resolution cannot be had.
        """
        name = plan.backbone
        held = self._backbones.get(name)
        if held is None:
            return self._build(name, plan.weights, plan.resolution, plan.seed)
        key = _weights_key(held, plan.weights, plan.resolution, plan.seed)
        if self._pristine.get(name) == key:
            return self._hold(held.at(plan.resolution), key)
        self._pristine.pop(name, None)
        _reset(held)
        backbone = replace_weights(held, plan.weights, plan.resolution, plan.seed)
        return self._hold(backbone, key)

    def share(self, plan: Plan) -> Backbone:
        """Return the backbone of a plan as it comes; plans that train none of it share it."""
        if any(phase.train != "head" for phase in plan.phases):
            return self.load(plan)
        return self.read(plan)

    def blank(self, plan: Plan) -> Backbone:
        """Return a backbone of a plan's kind, whatever its weights, to put others in."""
        held = self._backbones.get(plan.backbone)
        if held is None or (held.fixed and held.resolution != plan.resolution):
            return self.load(plan.model_copy(update={"weights": "random"}))
        self._pristine.pop(plan.backbone, None)
        _reset(held)
        return self._hold(held.at(plan.resolution), None)

    def _build(self, name: str, weights: str, resolution: int | None, seed: int) -> Backbone:
        backbone = load_backbone(name, weights, resolution, seed)
        key = _weights_key(backbone, weights, backbone.resolution, seed)
        return self._hold(backbone, key)

    def _hold(self, backbone: Backbone, key: SourceKey | None) -> Backbone:
        """Keep a backbone as the one used last; returns it on the device."""
        name = backbone.name
        backbone.model.to(self.device)
        self._backbones.pop(name, None)
        self._backbones[name] = backbone
        if key is not None:
            self._pristine[name] = key
        while len(self._backbones) > self.most:
            oldest = next(iter(self._backbones))
            del self._backbones[oldest]
            self._pristine.pop(oldest, None)
        return backbone


def source_key(plan: Plan) -> SourceKey:
    """Return what tells the source weights of a plan from others, and how they see images."""
    seed = plan.seed if plan.weights == "random" else None
    return plan.backbone, plan.weights, plan.resolution, seed


def _weights_key(source: Backbone, weights: str, resolution: int, seed: int) -> SourceKey:
    """Return what tells the weights of a backbone from others of the same name."""
    drawn = seed if weights == "random" else None
    built_for = resolution if source.fixed else None
    return weights, drawn, built_for


@torch.no_grad()
def _reset(backbone: Backbone) -> None:
    """Undo what training does to a network besides its weights: mode, gradients, memory layout.

    Sums over another layout differ in the last digit.
    """
    model = backbone.model
    model.train()
    model.zero_grad(set_to_none=True)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.clone(memory_format=torch.contiguous_format)

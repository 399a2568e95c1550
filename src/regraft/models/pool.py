"""Backbones that are at hand, so that one is built and traced once."""

from __future__ import annotations

from regraft.models.backbone import Backbone, load_backbone, model_info
from regraft.plans.schema import ModelInfo, Plan
from regraft.system.hardware import resolve_device


class BackbonePool:
    """Gives backbones by plan; the one used last stays at hand.

    Args:
        device: "auto", "cpu" or "cuda".
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = resolve_device(device)
        self._key: tuple[object, ...] = ()
        self._backbone: Backbone | None = None

    def info(self, name: str) -> ModelInfo:
        """Return what a technique may know of a backbone, whatever its weights.

        Raises:
            UserError: For an unknown name.
        """
        return model_info(name)

    def load(self, plan: Plan) -> Backbone:
        """Return the backbone of a plan with its weights, for this plan alone.

        Raises:
            UserError: When name, weights or resolution cannot be had.
        """
        return self._load(plan)

    def share(self, plan: Plan) -> Backbone:
        """Return the backbone of a plan as it comes; plans that train none of it share it."""
        if any(phase.train != "head" for phase in plan.phases):
            return self.load(plan)
        return self._at_hand(source_key(plan), plan)

    def blank(self, plan: Plan) -> Backbone:
        """Return a backbone of a plan's kind to put other weights in."""
        random = plan.model_copy(update={"weights": "random"})
        return self._at_hand((plan.backbone, plan.resolution), random)

    def _at_hand(self, key: tuple[object, ...], plan: Plan) -> Backbone:
        if self._backbone is None or self._key != key:
            self._backbone = self._load(plan)
            self._key = key
        return self._backbone

    def _load(self, plan: Plan) -> Backbone:
        backbone = load_backbone(plan.backbone, plan.weights, plan.resolution, plan.seed)
        backbone.model.to(self.device)
        return backbone


def source_key(plan: Plan) -> tuple[object, ...]:
    """Return what tells the source weights of a plan from others, and how they see images."""
    seed = plan.seed if plan.weights == "random" else None
    return plan.backbone, plan.weights, plan.resolution, seed

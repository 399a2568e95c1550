"""The networks of a probe: one backbone at hand at any resolution, and the heads from weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from regraft.models.backbone import Backbone
from regraft.models.cut import cut_backbone
from regraft.models.network import Cut
from regraft.models.pool import BackbonePool
from regraft.models.transforms import Preprocess
from regraft.models.weights import source_classifier
from regraft.plans.schema import Plan
from regraft.system.progress import SILENT, ProgressReporter

SourceHead = tuple[Tensor, Tensor]  # weight and bias of a class layer


class ProbeNetworks:
    """The backbone used last, at any resolution, and the class layers that came with weights.

    Args:
        pool: Gives backbones.
        reporter: Is told which class layers cannot be had.
        find_head: From a backbone's name and its weights to their class layer, None where they
            have none.
    """

    def __init__(
        self,
        pool: BackbonePool,
        reporter: ProgressReporter = SILENT,
        find_head: Callable[[str, str], SourceHead | None] = source_classifier,
    ) -> None:
        self.pool = pool
        self._reporter = reporter
        self._find_head = find_head
        self._plan: Plan | None = None
        self._backbone: Backbone | None = None
        self._heads: dict[str, SourceHead | None] = {}

    def load(self, plan: Plan) -> Backbone:
        """Return the backbone of a plan at the plan's resolution.

        Raises:
            UserError: When name, weights or resolution cannot be had.
        """
        if self._backbone is None or self._plan is None:
            self._backbone = self.pool.load(plan)
        elif self._plan != plan:
            is_same = self._plan.backbone == plan.backbone and not self._backbone.fixed
            if is_same:
                self._backbone = self._backbone.at(plan.resolution)
            else:
                self._backbone = self.pool.load(plan)
        self._plan = plan
        return self._backbone

    def cut(self, plan: Plan, layer: str) -> Cut:
        """Return the backbone of a plan with all of it frozen, up to the features of a layer."""
        backbone = self.load(plan)
        frozen, trained = cut_backbone(backbone, "head", (layer,))
        preprocess = Preprocess(backbone.rules, plan.resolution)
        device = next(backbone.model.parameters()).device
        return Cut(frozen, trained, preprocess, plan.precision, device)

    def source_head(self, plan: Plan) -> SourceHead | None:
        """Return the class layer that came with the weights, asked for once a backbone.

        It is None where it cannot be had; one score (LEEP) needs it.
        """
        name = plan.backbone
        if name not in self._heads:
            self._heads[name] = None  # where this fails, it is not tried again
            try:
                self._heads[name] = self._find_head(name, plan.weights)
            except Exception as error:
                self._reporter.log(
                    f"Doing without LEEP: the class layer of {name} cannot be had "
                    f"({type(error).__name__})."
                )
        return self._heads[name]

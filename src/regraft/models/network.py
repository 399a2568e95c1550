"""The network of a run: a backbone, cut into a frozen and a trained part, and a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from regraft.models.backbone import Backbone, restore_weights
from regraft.models.cut import cut_backbone, feature_width
from regraft.models.head import make_head
from regraft.models.layers import earliest_layer
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn, use_channels_last
from regraft.models.parts import Prefix, Suffix
from regraft.models.transforms import Preprocess
from regraft.plans.schema import Phase, Plan

_BACKBONE = "backbone."
_HEAD = "head."


@dataclass(frozen=True)
class Cut:
    """A backbone in two parts: frozen, computed once; and trained.

    Args:
        frozen: From the network's input to what crosses the cut; empty where nothing is frozen.
        trained: From there to the features.
        preprocess: How images enter.
        precision: "float32", or "bfloat16" for autocast of the frozen part.
        device: Where both parts are.
    """

    frozen: Prefix
    trained: Suffix
    preprocess: Preprocess
    precision: str
    device: torch.device

    @cached_property
    def digest(self) -> str:
        """Digest of code, weights and buffers of the frozen part, as they are when first asked."""
        return self.frozen.digest()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is frozen, so that the trained part takes the images themselves."""
        return self.frozen.is_empty

    def optimized(self) -> Prefix:
        """Return the frozen part made fast: BatchNorm fused, in bfloat16 where the plan says so."""
        fast = fuse_conv_bn(self.frozen)
        return cast_bfloat16(fast) if self.precision == "bfloat16" else fast


class TransferNetwork:
    """A backbone and a head, as a plan wants them.

    Args:
        backbone: The source model, on its device; it is not copied, so training changes it.
        plan: What is frozen, trained and taken as features.
        classes: Class names, one an output.
    """

    def __init__(self, backbone: Backbone, plan: Plan, classes: Sequence[str]) -> None:
        self.backbone = backbone
        self.plan = plan
        self.classes = tuple(classes)
        width = feature_width(backbone, plan.stages_taken, plan.flattens)
        head = make_head(plan.head, width, len(classes), plan.seed)
        self.head = head.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.backbone.model.parameters()).device

    @property
    def preprocess(self) -> Preprocess:
        """How images enter at the plan's resolution."""
        return Preprocess(self.backbone.rules, self.plan.resolution)

    def cut(self, phase: Phase) -> Cut:
        """Return the two parts of the backbone in a phase.

        Raises:
            UserError: When the phase trains from a layer that does not exist, or lies after the
                features.
        """
        return self._cut(phase.train, self.plan.resolution_of(phase))

    def cut_at(self, layer: str) -> Cut:
        """Return the two parts of the backbone with everything before a layer frozen.

        Raises:
            UserError: When there is no such layer, or the features are taken before it.
        """
        return self._cut(layer, self.plan.resolution)

    def final_cut(self) -> Cut:
        """Return the parts by what is frozen throughout: what no phase trains, and the rest."""
        frozen, trained = self._final_parts
        return Cut(frozen, trained, self.preprocess, self.plan.precision, self.device)

    @cached_property
    def _final_parts(self) -> tuple[Prefix, Suffix]:
        trains = [phase.train for phase in self.plan.phases]
        cut = self._cut(earliest_layer(self.backbone, trains), self.plan.resolution)
        return cut.frozen, cut.trained

    def features_cut(self) -> Cut:
        """Return the parts with the whole backbone frozen, up to the features."""
        return cut_features(self.backbone, self.plan)

    def _cut(self, train: str, resolution: int) -> Cut:
        plan = self.plan
        backbone = self.backbone.at(resolution)
        frozen, trained = cut_backbone(backbone, train, plan.stages_taken, plan.flattens)
        preprocess = Preprocess(backbone.rules, resolution)
        return Cut(frozen, trained, preprocess, plan.precision, self.device)

    def to(self, device: str) -> TransferNetwork:
        """Move backbone and head to a device; returns itself."""
        self.backbone.model.to(device)
        self.head.to(device)
        return self

    def eval(self) -> TransferNetwork:
        """Put backbone and head into eval mode; returns itself."""
        self.backbone.model.eval()
        self.head.eval()
        return self

    def logits(self, trained: Suffix, features: Sequence[Tensor]) -> Tensor:
        """Return logits `(n, classes)` of what crossed a cut."""
        out: Tensor = self.head(trained(*features))
        return out

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that the network needs, by name; what was cut off is left out."""
        tensors = self._backbone_tensors()
        state = {f"{_BACKBONE}{name}": tensors[name] for name in sorted(tensors)}
        for name, value in self.head.state_dict().items():
            state[f"{_HEAD}{name}"] = value
        return state

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put trained tensors in.

        Raises:
            ValueError: When names are missing or unknown.
            RuntimeError: When shapes differ.
        """
        own = _below(_BACKBONE, tensors)
        missing = [name for name in self._backbone_tensors() if name not in own]
        if missing:
            raise ValueError(f"no weights {', '.join(missing[:3])}")
        restore_weights(self.backbone, own)
        self.head.load_state_dict(_below(_HEAD, tensors))

    def _backbone_tensors(self) -> dict[str, Tensor]:
        """Return the backbone's parameters and buffers that the features depend on, by name."""
        cut = self.final_cut()
        used = {id(tensor) for part in (cut.frozen, cut.trained) for tensor in _tensors(part)}
        model = self.backbone.model
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: named[name] for name in model.state_dict() if id(named[name]) in used}

    def use_training_layout(self) -> None:
        """Lay the trained tensors out in memory as training leaves them.

        Sums over another layout differ in the last digit.
        """
        for part in (self.final_cut().trained, self.head):
            use_channels_last(part)

    def count_parameters(self) -> dict[str, int]:
        """Return how many parameters there are, trained in some phase, and frozen; and buffers."""
        cut = self.final_cut()
        frozen = _count(cut.frozen.parameters())
        trained = _count(cut.trained.parameters()) + _count(self.head.parameters())
        buffers = sum(_count(part.buffers()) for part in (cut.frozen, cut.trained, self.head))
        return {
            "total": frozen + trained,
            "trainable": trained,
            "frozen": frozen,
            "buffers": buffers,
        }


def cut_features(backbone: Backbone, plan: Plan) -> Cut:
    """Return a backbone with all of it frozen, up to the features that a plan takes."""
    frozen, trained = cut_backbone(backbone, "head", plan.stages_taken, plan.flattens)
    preprocess = Preprocess(backbone.rules, plan.resolution)
    device = next(backbone.model.parameters()).device
    return Cut(frozen, trained, preprocess, plan.precision, device)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    selected = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            selected[name.removeprefix(prefix)] = tensor
    return selected


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _count(tensors: object) -> int:
    return sum(tensor.numel() for tensor in tensors)  # type: ignore[attr-defined]

"""The freeze contract: what was promised to stay as it is, and whether it did; evidence and not belief."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from regraft.models.cut import Prefix, Suffix
from regraft.plans.schema import Phase


@dataclass(frozen=True)
class Optimized:
    """What an optimizer was given: its groups, and the parameters that got no gradient; a solved head has none."""

    groups: list[dict[str, Any]]
    without_gradient: list[str]


class Contract:
    """Digests of the frozen part, taken before a phase and held against those after it."""

    def __init__(self, number: int, phase: Phase, prefix: Prefix, suffix: Suffix) -> None:
        self.number, self.phase, self.tensors = number, phase, prefix.digests()
        self.before = prefix.digest(self.tensors)
        self.norms = (_norms(prefix), _norms(suffix))

    def checked(self, prefix: Prefix, optimized: Optimized) -> dict[str, Any]:
        """Return what `freeze.json` says of the phase.

        Args:
            prefix: The frozen part, as it is now.
            optimized: What the optimizer was given.

        Returns:
            `kept`, `changed` (names of frozen tensors that are others now), both digests, how many frozen tensors there are, BatchNorm's modes,
            the optimizer's groups, and the parameters without a gradient.
        """
        now = prefix.digests()
        after = prefix.digest(now)
        frozen, trained = self.norms
        return {
            "phase": self.number,
            "train": self.phase.train,
            "kept": after == self.before,
            "changed": sorted(
                name for name, digest in now.items() if self.tensors.get(name) != digest
            ),
            "frozen_before": self.before,
            "frozen_after": after,
            "frozen": {
                "parameters": len(list(prefix.parameters())),
                "buffers": len(list(prefix.buffers())),
            },
            "batch_norm": {
                "frozen": frozen,
                "frozen_mode": "eval",
                "trained": trained,
                "trained_statistics": self.phase.batch_norm if trained else None,
            },
            "optimizer": self.phase.optimizer,
            "groups": optimized.groups,
            "without_gradient": optimized.without_gradient,
        }


def verdict(phases: Sequence[dict[str, Any]]) -> str:
    """Return "kept" or "broken", for all phases of a run."""
    return "kept" if all(one["kept"] for one in phases) else "broken"


def _norms(half: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in half.modules())

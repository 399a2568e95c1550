"""Were the frozen tensors really left alone? Digests before and after a phase tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from regraft.models.network import Cut
from regraft.plans.schema import Phase


@dataclass(frozen=True)
class Optimized:
    """What an optimizer was given; a linear probe has none.

    Args:
        groups: Its parameter groups, as plain data.
        without_gradient: Names of parameters that got no gradient.
    """

    groups: list[dict[str, Any]]
    without_gradient: list[str]


NOT_OPTIMIZED = Optimized([], [])


class FreezeCheck:
    """Digests of the frozen part, taken before a phase and compared after it.

    Args:
        number: Number of the phase.
        phase: The phase.
        cut: The network in two parts.
    """

    def __init__(self, number: int, phase: Phase, cut: Cut) -> None:
        self.number = number
        self.phase = phase
        self.cut = cut
        self.tensors = cut.frozen.digests()
        self.before = cut.frozen.digest(self.tensors)

    def result(self, optimized: Optimized) -> dict[str, Any]:
        """Return what `freeze.json` says of the phase.

        Returns:
            `kept`, `changed` (names of frozen tensors that differ now), both digests, how many
            frozen tensors there are, BatchNorm's modes, the optimizer's groups, and the parameters
            without a gradient.
        """
        frozen = self.cut.frozen
        now = frozen.digests()
        after = frozen.digest(now)
        changed = [name for name, digest in now.items() if self.tensors.get(name) != digest]
        trained_norms = count_batch_norms(self.cut.trained)
        return {
            "phase": self.number,
            "train": self.phase.train,
            "kept": after == self.before,
            "changed": sorted(changed),
            "frozen_before": self.before,
            "frozen_after": after,
            "frozen": {
                "parameters": len(list(frozen.parameters())),
                "buffers": len(list(frozen.buffers())),
            },
            "batch_norm": {
                "frozen": count_batch_norms(frozen),
                "frozen_mode": "eval",
                "trained": trained_norms,
                "trained_statistics": self.phase.batch_norm if trained_norms else None,
            },
            "optimizer": self.phase.optimizer,
            "groups": optimized.groups,
            "without_gradient": optimized.without_gradient,
        }


def freeze_verdict(checks: Sequence[dict[str, Any]]) -> str:
    """Return "kept" or "broken", for all phases of a run."""
    return "kept" if all(check["kept"] for check in checks) else "broken"


def count_batch_norms(module: nn.Module) -> int:
    """Return how many BatchNorm modules a module holds."""
    return sum(is_batch_norm(each) for each in module.modules())


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm of any kind."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)

"""Which backbones at which resolutions are probed, and which are skipped and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from regraft.errors import UserError
from regraft.plans.schema import Plan
from regraft.probing.networks import ProbeNetworks
from regraft.system.progress import SILENT, ProgressReporter

RESOLUTIONS = (32, 48, 64, 96, 128, 160, 192, 224, 288, 384, 448, 512)
_AROUND = (-2, 1)  # steps of these around what suits the images

Key = tuple[str, int]  # a backbone and a resolution
Resolve = Callable[[str, int | None], Plan]


@dataclass(frozen=True)
class Skipped:
    """A backbone, or a backbone at a resolution, that cannot be probed, and why."""

    name: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """Return the reason as it is written to JSON."""
        return asdict(self)


@dataclass
class ProbeGrid:
    """The candidates of a probe.

    Args:
        resolve: From a backbone and a resolution (None for what suits the images) to the plan of a
            linear probe; raises `UserError` where there is none.
        networks: Gives the backbones.
        reporter: Is told what is skipped.
        plans: Plan of each candidate that can be probed.
        skipped: What cannot be probed.
    """

    resolve: Resolve
    networks: ProbeNetworks
    reporter: ProgressReporter = SILENT
    plans: dict[Key, Plan] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    def fill(self, backbones: Sequence[str], resolutions: Sequence[int]) -> None:
        """Take in every backbone at every resolution that can be had.

        Args:
            backbones: timm names.
            resolutions: Sides in pixels; those around what suits the images when empty.

        Raises:
            UserError: When nothing is left to be probed.
        """
        for backbone in dict.fromkeys(backbones):
            for resolution in dict.fromkeys(resolutions) or self._around(backbone):
                self._admit(backbone, resolution)
        if not self.plans:
            first = self.skipped[0]
            raise UserError(f"Nothing can be probed. {first.name}: {first.error}")

    def largest(self) -> Plan:
        """Return the plan of the highest resolution, the first of several."""
        return max(self.plans.values(), key=lambda plan: plan.resolution)

    def _around(self, backbone: str) -> list[int]:
        """Return the resolutions to try where none were given; none for a skipped backbone."""
        try:
            suitable = self.resolve(backbone, None).resolution
        except UserError as error:
            self._skip(backbone, error)
            return []
        if self.networks.pool.info(backbone).fixed_resolution:
            return [suitable]
        distances = [abs(resolution - suitable) for resolution in RESOLUTIONS]
        middle = distances.index(min(distances))
        first = max(0, middle + _AROUND[0])
        return list(RESOLUTIONS[first : middle + _AROUND[1] + 1])

    def _admit(self, backbone: str, resolution: int) -> None:
        """Take a candidate in, or note why it is skipped."""
        try:
            plan = self.resolve(backbone, resolution)
            # what flows through it tells whether it takes images of this size
            _ = self.networks.load(plan).values
        except UserError as error:
            self._skip(candidate_name((backbone, resolution)), error)
            return
        self.plans[backbone, resolution] = plan

    def _skip(self, name: str, error: UserError) -> None:
        self.skipped.append(Skipped(name, str(error)))
        self.reporter.log(f"Skipping {name}: {error}")


def candidate_name(key: Key) -> str:
    """Return what a backbone at a resolution is called."""
    backbone, resolution = key
    return f"{backbone} {resolution} px"

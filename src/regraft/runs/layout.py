"""The files of a run folder: their names, and the version of the format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FORMAT = 1  # folders of 0.1 carry no version, and are read as 0

PLAN = "plan.toml"
STATE = "state.json"
CHECKPOINTS = "checkpoints"
LOG = "log.txt"
TRACK = "track"
WEIGHTS = "model.safetensors"
CLASSES = "classes.json"
SPLIT = "split.csv"
SKIPPED = "skipped.csv"
HISTORY = "history.csv"
PREDICTIONS = "predictions.npz"
FREEZE = "freeze.json"
ENVIRONMENT = "environment.json"
SCORES = "scores.json"  # written last: a folder that has it is a finished run
TEST = "test.json"
TEST_PREDICTIONS = "predictions-test.npz"

LEADERBOARD = "leaderboard.json"
COMPARISON = "comparison.json"
PROBE = "probe.json"

SEALED = (PLAN, CLASSES, SPLIT, SKIPPED, HISTORY, PREDICTIONS, FREEZE, WEIGHTS)
"""Files of a finished run that must not change; `scores.json` holds a digest of each."""

UNFINISHED = frozenset({STATE, CHECKPOINTS})
"""What only an unfinished run needs; all there is before the plan is written."""

SUBFOLDERS = frozenset({CHECKPOINTS, TRACK})


@dataclass(frozen=True)
class PhaseFiles:
    """The files of one phase of an unfinished run.

    Args:
        folder: The run's checkpoint folder.
        number: Number of the phase, from 0.
    """

    folder: Path
    number: int

    @property
    def last(self) -> Path:
        """Lightning's checkpoint of the last whole epoch."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """Lightning's checkpoint of the best epoch."""
        return self.folder / "best.ckpt"

    @property
    def execution(self) -> Path:
        """Seconds a step of each way of running that was measured."""
        return self.folder / f"pace-{self.number}.json"

    @property
    def weights(self) -> Path:
        """Tensors after the phase."""
        return self.folder / f"phase-{self.number}.safetensors"

    @property
    def record(self) -> Path:
        """History and checks after the phase; written after the weights."""
        return self.folder / f"phase-{self.number}.json"


def prediction_file(part: str) -> str:
    """Return the name of the file with the logits of a part."""
    return PREDICTIONS if part == "val" else f"predictions-{part}.npz"

"""Everything that a report says of finished runs, as data that the page and the Markdown render.

Pictures are not part of it: they are added by whoever has the images.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from regraft.errors import UserError
from regraft.evaluation import paired
from regraft.evaluation.calibration import fit_temperature
from regraft.evaluation.metrics import Metrics, compute_metrics
from regraft.evaluation.paired import compare_paired
from regraft.plans.toml import plan_to_toml
from regraft.reporting.leaderboard import (
    FailedRow,
    Leaderboard,
    build_leaderboard,
    rank_runs,
    to_failed_rows,
)
from regraft.reporting.plots import get_total_seconds
from regraft.runs.folder import Run, verify_run
from regraft.runs.layout import PLAN
from regraft.runs.scores import RunScores
from regraft.system.json_object import JsonObject

_CHEAPER = 0.8  # share of the selected run's seconds below which another run counts as cheaper


@dataclass(frozen=True)
class RunEvidence(JsonObject):
    """What the report says of one run.

    Args:
        name: Of the run.
        path: Its folder.
        scores: What its `scores.json` says.
        measures: Metrics of the judged part.
        temperature: Fitted on validation.
        history: A row for each epoch, or for each L2 value of a linear probe.
        contract: The freeze check of each phase.
        plan: As TOML.
        environment: Versions and hardware; empty where the run did not record them.
        command: Runs it again.
        opened: When its test part was opened.
    """

    name: str
    path: str
    scores: RunScores
    measures: Metrics
    temperature: float
    history: Sequence[Mapping[str, float]]
    contract: Sequence[Mapping[str, object]]
    plan: str
    environment: Mapping[str, object]
    command: str
    opened: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        values = dict(vars(self))
        values["scores"] = self.scores.to_json()
        values["measures"] = self.measures.to_json()
        values["opened"] = list(self.opened)
        return values


@dataclass(frozen=True)
class PairedDifference(JsonObject):
    """How the selected run differs from another one on the same images.

    Args:
        name: Of the other run.
        difference: The selected run minus the other one.
        sentence: The difference in words.
    """

    name: str
    difference: paired.PairedDifference
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Return name, difference and sentence as plain data."""
        return {"name": self.name, **self.difference.to_json(), "sentence": self.sentence}


@dataclass(frozen=True)
class Evidence(JsonObject):
    """What a report says of runs on one split.

    Args:
        data: Name of the dataset.
        classes: Its class names.
        part: The part that the runs are judged on, "test" or "val".
        board: The leaderboard.
        runs: The runs in its order; the first is the selected one.
        pairs: The selected run against every other one.
    """

    data: str
    classes: tuple[str, ...]
    part: str
    board: Leaderboard
    runs: tuple[RunEvidence, ...]
    pairs: tuple[PairedDifference, ...]

    @property
    def verdict(self) -> str:
        """Which run was selected, and whether its lead is significant, in two sentences."""
        sentence = _describe_selected(self.runs[0], self.part)
        if not self.pairs:
            return sentence
        return f"{sentence} {self._describe_closest_rival()}"

    def _describe_closest_rival(self) -> str:
        """Return a sentence on the cheapest similar run, any similar run, or the closest run."""
        similar = [pair for pair in self.pairs if not pair.difference.significant]
        if not similar:
            return min(self.pairs, key=lambda pair: abs(pair.difference.delta)).sentence
        seconds = {each.name: get_total_seconds(each.scores) for each in self.runs}
        selected = self.runs[0]
        limit = _CHEAPER * seconds[selected.name]
        cheaper = [pair.name for pair in similar if seconds[pair.name] < limit]
        if not cheaper:
            return similar[0].sentence
        cheapest = min(cheaper, key=lambda name: seconds[name])
        times = seconds[selected.name] / max(seconds[cheapest], 1e-9)
        return (
            f"{cheapest} is not significantly different on {selected.measures.scores.n:,} images "
            f"and took {times:.1f} times less time."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as plain data; `runs` is an object by name."""
        runs = {each.name: each.to_json() for each in self.runs}
        pairs = [pair.to_json() for pair in self.pairs]
        return {
            "data": self.data,
            "classes": list(self.classes),
            "part": self.part,
            "split_digest": self.board.split_digest,
            "board": self.board.to_json(),
            "runs": runs,
            "pairs": pairs,
            "warnings": list(self.board.warnings),
            "verdict": self.verdict,
        }


def build_evidence(runs: Sequence[Run], failed: Iterable[FailedRow] = ()) -> Evidence:
    """Return the evidence of finished runs on one split.

    Args:
        runs: At least one; judged on test if it is open for all of them, else on val.
        failed: Rows of a comparison that did not finish.

    Raises:
        UserError: When splits, classes or images differ between runs, or a run was altered.
    """
    for finished in runs:
        verify_run(finished)
    board = build_leaderboard(runs, failed)
    _require_same_classes(runs)
    part = "test" if all(finished.test for finished in runs) else "val"
    ranked = rank_runs(runs)
    return Evidence(
        data=runs[0].scores.data,
        classes=runs[0].classes,
        part=part,
        board=board,
        runs=tuple(_build_run_evidence(finished, part) for finished in ranked),
        pairs=tuple(_compare_with_selected(ranked, part)),
    )


def gather_evidence(
    runs: Sequence[Run], failed: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the evidence of finished runs as plain data, see `Evidence.to_json`.

    Args:
        runs: At least one, on one split.
        failed: Rows `{name, backbone, technique, seed, error}` that did not finish.

    Raises:
        UserError: When splits, classes or images differ between runs, or a run was altered.
    """
    return build_evidence(runs, to_failed_rows(failed)).to_json()


def format_fit_command(finished: Run) -> str:
    """Return the shell command that fits a run again."""
    origin = asdict(finished.scores.origin)
    data = str(origin["data"] or "DATA")
    words = ["regraft", "fit", data, "--plan", str(finished.path / PLAN)]
    for name, value in origin.items():
        if name == "data" or not value:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return shlex.join(words)


def _require_same_classes(runs: Sequence[Run]) -> None:
    names_by_classes = {finished.classes: finished.name for finished in runs}
    if len(names_by_classes) > 1:
        (classes, name), (other_classes, other_name) = list(names_by_classes.items())[:2]
        raise UserError(
            f"{name} has the classes {', '.join(classes[:5])} …, {other_name} has "
            f"{', '.join(other_classes[:5])} …. Expected the same. "
            "Report on runs of one dataset."
        )


def _build_run_evidence(finished: Run, part: str) -> RunEvidence:
    val = finished.predictions("val")
    temperature = fit_temperature(val["logits"], val["targets"])
    judged = finished.predictions(part)
    measures = compute_metrics(
        judged["logits"],
        judged["targets"],
        finished.classes,
        temperature if part == "test" else None,
    )
    return RunEvidence(
        name=finished.name,
        path=str(finished.path),
        scores=finished.scores,
        measures=measures,
        temperature=temperature,
        history=finished.history(),
        contract=finished.freeze_checks(),
        plan=plan_to_toml(finished.plan),
        environment=finished.environment(),
        command=format_fit_command(finished),
        opened=finished.test.opened if finished.test else (),
    )


def _compare_with_selected(ranked: Sequence[Run], part: str) -> list[PairedDifference]:
    """Return how the first run differs from every other one on the same images."""
    selected = ranked[0]
    predictions = selected.predictions(part)
    is_right = predictions["logits"].argmax(axis=1) == predictions["targets"]
    pairs = []
    for other in ranked[1:]:
        other_predictions = other.predictions(part)
        if not np.array_equal(predictions["keys"], other_predictions["keys"]):
            raise UserError(
                f"{selected.name} and {other.name} were judged on different {part} images. "
                "Expected the same. Open the test part of both with the same data."
            )
        other_logits = other_predictions["logits"]
        is_other_right = other_logits.argmax(axis=1) == other_predictions["targets"]
        difference = compare_paired(is_right, is_other_right)
        sentence = difference.sentence(selected.name, other.name)
        pairs.append(PairedDifference(other.name, difference, sentence))
    return pairs


def _describe_selected(selected: RunEvidence, part: str) -> str:
    scores = selected.measures.scores
    low, high = scores.ci95
    return (
        f"{selected.name} has the best validation accuracy; its {part} accuracy is "
        f"{scores.accuracy:.1%} on {scores.n:,} images "
        f"(95 % interval {low:.1%} to {high:.1%})."
    )

"""The leaderboard: runs ranked on validation, their paired differences on test, and its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from regraft.errors import UserError
from regraft.evaluation.paired import PairedDifference, compare_paired
from regraft.evaluation.scores import Scores
from regraft.reporting.plots import save_cost, save_curves, to_run_series
from regraft.runs.folder import Run
from regraft.runs.layout import LEADERBOARD
from regraft.runs.scores import RunScores
from regraft.system.json_object import JsonObject
from regraft.system.output import write_csv, write_json

COST_PLOT = "accuracy-against-seconds.png"


@dataclass(frozen=True)
class LeaderboardRow(JsonObject):
    """One finished run on the leaderboard.

    Args:
        name: Of the run.
        scores: What its `scores.json` says.
        test: Scores on the test part; None unless it was opened for this run and the selected one.
        opened: When the test part was opened.
        versus_selected: Paired difference to the selected run on the same test images.
    """

    name: str
    scores: RunScores
    test: Scores | None = None
    opened: Sequence[str] | None = None
    versus_selected: PairedDifference | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data: name, every score, and the test part where it is open."""
        row = {"name": self.name, **self.scores}
        if self.test is not None:
            row["test"] = self.test.to_json()
            row["opened"] = list(self.opened or ())
        if self.versus_selected is not None:
            row["versus_selected"] = self.versus_selected.to_json()
        return row


@dataclass(frozen=True)
class FailedRow(JsonObject):
    """A run of a comparison that did not finish.

    Args:
        name: Of the row.
        backbone: Its timm name; None where its plan could not be made.
        technique: The technique.
        seed: Its seed.
        error: Why it did not finish.
    """

    name: str
    backbone: str | None
    technique: str | None
    seed: int
    error: str

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data; only failed rows have the key `error`."""
        return {
            "name": self.name,
            "backbone": self.backbone,
            "technique": self.technique,
            "seed": self.seed,
            "error": self.error,
        }


@dataclass(frozen=True)
class SeedSummary(JsonObject):
    """Mean and standard deviation of the accuracy of one plan over several seeds.

    Args:
        backbone: timm name of the network.
        technique: The technique.
        seeds: Number of seeds.
        val_mean: Mean validation accuracy.
        val_spread: Its standard deviation over the seeds.
        test_mean: Mean test accuracy; None unless the part is open for every seed.
        test_spread: Its standard deviation over the seeds.
    """

    backbone: str
    technique: str
    seeds: int
    val_mean: float
    val_spread: float
    test_mean: float | None = None
    test_spread: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain data; test is left out unless it is open for every seed."""
        summary: dict[str, Any] = {
            "backbone": self.backbone,
            "technique": self.technique,
            "seeds": self.seeds,
            "val_mean": self.val_mean,
            "val_spread": self.val_spread,
        }
        if self.test_mean is not None:
            summary |= {"test_mean": self.test_mean, "test_spread": self.test_spread}
        return summary


@dataclass(frozen=True)
class Leaderboard(JsonObject):
    """Runs on one split, ranked on validation.

    Args:
        rows: Finished runs, the best first, runs with a broken freeze contract last.
        failed: Runs that did not finish.
        split_digest: Of the split of all runs; None without runs.
        seeds: A summary for each plan that was run with several seeds.
        warnings: What must be read before any number.
    """

    rows: tuple[LeaderboardRow, ...]
    failed: tuple[FailedRow, ...]
    split_digest: str | None
    seeds: tuple[SeedSummary, ...]
    warnings: tuple[str, ...]

    @property
    def selected(self) -> str | None:
        """Name of the best run on validation; None without runs."""
        return self.rows[0].name if self.rows else None

    @property
    def verdict(self) -> str:
        """One to three sentences: which run was selected, and which runs differ from it on test."""
        if not self.rows:
            return "No row finished."
        best = self.rows[0]
        if not best.test:
            return _describe_validation(best)
        return " ".join([_describe_test(best), *_describe_rivals(self.rows)])

    def to_json(self) -> dict[str, Any]:
        """Return the leaderboard as plain data: finished rows first, then failed ones."""
        rows = [row.to_json() for row in self.rows]
        rows += [row.to_json() for row in self.failed]
        seeds = [summary.to_json() for summary in self.seeds]
        return {
            "rows": rows,
            "selected": self.selected,
            "split_digest": self.split_digest,
            "seeds": seeds,
            "verdict": self.verdict,
            "warnings": list(self.warnings),
        }


def tabulate_leaderboard(board: Leaderboard) -> list[tuple[str, ...]]:
    """Return the leaderboard as cells of a table, its head first."""
    rows: list[tuple[str, ...]] = [("run", "val accuracy", "test accuracy", "95 % interval")]
    for row in board.rows:
        val = f"{row.scores.val.accuracy:.4f}"
        if row.test is None:
            rows.append((row.name, val, "held out", ""))
            continue
        low, high = row.test.ci95
        rows.append((row.name, val, f"{row.test.accuracy:.4f}", f"{low:.3f}–{high:.3f}"))
    for failure in board.failed:
        rows.append((failure.name, "failed", failure.error, ""))
    return rows


def build_leaderboard(runs: Sequence[Run], failed: Iterable[FailedRow] = ()) -> Leaderboard:
    """Return the leaderboard of finished runs on one split.

    Args:
        runs: Finished runs; the test part may be open or held out.
        failed: Rows that did not finish; they come last.

    Raises:
        UserError: When the runs were fitted on different splits; names both.
    """
    split_digest = _require_one_split(runs)
    ranked = rank_runs(runs)
    warnings: dict[str, None] = {}
    for finished in ranked:
        warnings |= dict.fromkeys(finished.warnings)
    return Leaderboard(
        rows=tuple(_build_row(finished, ranked[0]) for finished in ranked),
        failed=tuple(failed),
        split_digest=split_digest,
        seeds=tuple(_summarize_seeds(ranked)),
        warnings=tuple(warnings),
    )


def build_leaderboard_json(
    runs: Sequence[Run], failed: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the leaderboard as plain data, see `Leaderboard.to_json`.

    Args:
        runs: Finished runs on one split.
        failed: Rows `{name, backbone, technique, seed, error}` that did not finish.

    Raises:
        UserError: When the runs were fitted on different splits; names both.
    """
    return build_leaderboard(runs, to_failed_rows(failed)).to_json()


def to_failed_rows(rows: Iterable[Mapping[str, Any]]) -> list[FailedRow]:
    """Return typed rows from plain ones, `{name, backbone, technique, seed, error}`."""
    names = [field.name for field in fields(FailedRow)]
    failed = []
    for row in rows:
        values = {name: row[name] for name in names}
        failed.append(FailedRow(**values))
    return failed


def rank_runs(runs: Iterable[Run]) -> list[Run]:
    """Return the runs by validation accuracy, then loss; broken freeze contracts come last."""

    def get_rank(finished: Run) -> tuple[bool, float, float]:
        val = finished.scores.val
        is_broken = finished.scores.contract == "broken"
        return is_broken, -val.accuracy, val.loss

    return sorted(runs, key=get_rank)


def write_leaderboard(board: Leaderboard, runs: Sequence[Run], folder: Path) -> None:
    """Write `leaderboard.json`, `leaderboard.csv`, `curves.png` and `accuracy-against-seconds.png`.

    Args:
        board: The leaderboard.
        runs: Its runs; without any, no picture is drawn.
        folder: Where the files go.
    """
    values = board.to_json()
    write_csv(folder / "leaderboard.csv", [flat_row(row) for row in values["rows"]])
    if runs:
        part = "test" if all(finished.test for finished in runs) else "val"
        series = [to_run_series(finished, part) for finished in runs]
        save_curves(series, folder / "curves.png")
        save_cost(series, folder / COST_PLOT)
    write_json(folder / LEADERBOARD, values)


def flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the leaderboard as a line of its CSV: one number a column."""
    if "error" in row:
        return to_failed_rows([row])[0].to_json()
    test = row.get("test") or {}
    low, high = test.get("ci95", (None, None))
    return {
        "name": row["name"],
        "backbone": row["backbone"],
        "technique": row["technique"],
        "seed": row["seed"],
        "resolution": row["resolution"],
        "val_accuracy": row["val"]["accuracy"],
        "test_accuracy": test.get("accuracy"),
        "test_low": low,
        "test_high": high,
        "gap": row["train"]["accuracy"] - row["val"]["accuracy"],
        "seconds_extract": row["seconds"]["extract"],
        "seconds_shared": row.get("shared_seconds", 0.0),
        "seconds_train": row["seconds"]["train"],
        "seconds_total": row["seconds"]["total"],
        "trainable": row["parameters"]["trainable"],
        "total": row["parameters"]["total"],
    }


def _require_one_split(runs: Iterable[Run]) -> str | None:
    """Return the digest of the runs' split, None without runs; raises `UserError` for several."""
    digests = {finished.scores.split_digest: finished.name for finished in runs}
    if len(digests) > 1:
        (first_digest, first_name), (second_digest, second_name) = list(digests.items())[:2]
        raise UserError(
            f"{first_name} was fitted on split {first_digest}, {second_name} on {second_digest}. "
            "Expected runs on the same images and split. Compare runs of one split only."
        )
    return next(iter(digests), None)


def _build_row(finished: Run, selected: Run) -> LeaderboardRow:
    if not (finished.test and selected.test):
        return LeaderboardRow(finished.name, finished.scores)
    difference = None
    if finished.name != selected.name:
        difference = _compare_on_test(finished, selected)
    return LeaderboardRow(
        name=finished.name,
        scores=finished.scores,
        test=finished.test.test,
        opened=finished.test.opened,
        versus_selected=difference,
    )


def _compare_on_test(finished: Run, selected: Run) -> PairedDifference | None:
    """Return the paired difference on test; None where the images are not the same."""
    predictions = finished.predictions("test")
    selected_predictions = selected.predictions("test")
    if not (predictions["keys"] == selected_predictions["keys"]).all():
        return None
    return compare_paired(
        predictions["logits"].argmax(axis=1) == predictions["targets"],
        selected_predictions["logits"].argmax(axis=1) == selected_predictions["targets"],
    )


def _summarize_seeds(runs: Iterable[Run]) -> list[SeedSummary]:
    """Return a summary for each plan with several seeds; runs of one seed count once."""
    by_plan: dict[str, dict[int, Run]] = {}
    for finished in runs:
        plan_without_seed = finished.plan.model_copy(update={"seed": 0}).digest
        by_plan.setdefault(plan_without_seed, {})[finished.plan.seed] = finished
    groups = [list(by_seed.values()) for by_seed in by_plan.values()]
    return [_summarize_group(group) for group in groups if len(group) > 1]


def _summarize_group(group: Sequence[Run]) -> SeedSummary:
    """Return mean and spread over runs that differ in nothing but the seed."""
    val = [finished.scores.val.accuracy for finished in group]
    test = [finished.test.test.accuracy for finished in group if finished.test]
    is_open = len(test) == len(group)
    return SeedSummary(
        backbone=group[0].plan.backbone,
        technique=group[0].plan.technique,
        seeds=len(group),
        val_mean=mean(val),
        val_spread=stdev(val),
        test_mean=mean(test) if is_open else None,
        test_spread=stdev(test) if is_open else None,
    )


def _describe_validation(best: LeaderboardRow) -> str:
    val = best.scores.val
    return (
        f"{best.name} has the best validation accuracy ({val.accuracy:.1%} on {val.n:,} "
        "images); the test part is held out."
    )


def _describe_test(best: LeaderboardRow) -> str:
    assert best.test is not None
    low, high = best.test.ci95
    return (
        f"{best.name} was selected on validation; its test accuracy is "
        f"{best.test.accuracy:.1%} on {best.test.n:,} images "
        f"(95 % interval {low:.1%} to {high:.1%})."
    )


def _describe_rivals(rows: Sequence[LeaderboardRow]) -> list[str]:
    """Return sentences on which rows differ significantly from the first one on test."""
    better: list[str] = []
    similar: list[str] = []
    worse: list[str] = []
    for row in rows[1:]:
        difference = row.versus_selected
        if difference is None:
            continue
        if not difference.significant:
            similar.append(row.name)
        elif difference.delta > 0:
            better.append(row.name)
        else:
            worse.append(row.name)
    sentences = []
    if better:
        verb = "is" if len(better) == 1 else "are"
        sentences.append(f"On the test part {_join_names(better)} {verb} significantly better.")
    if similar:
        names = _join_names(similar)
        sentences.append(f"The test part shows no significant difference to {names}.")
    elif worse and not better:
        sentences.append("Every other row is significantly worse.")
    return sentences


def _join_names(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"

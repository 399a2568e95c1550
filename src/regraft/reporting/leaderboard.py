"""The leaderboard: rows ranked on validation, what differs for real, and its files.

Refuses to compare runs whose splits differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from regraft.errors import UserError
from regraft.evaluation.paired import compare_paired
from regraft.reporting.plots import plot_cost, plot_curves
from regraft.runs.folder import Run, write_json, write_table


def build_leaderboard_json(
    runs: Sequence[Run], failed: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Return the comparison as plain data: rows ranked by validation accuracy, broken freeze contracts last, the selected one, and what differs for real.

    Args:
        runs: Finished runs on one split; the test part may be open or shut.
        failed: Rows `{name, backbone, technique, seed, error}` that did not finish; they come last.

    Returns:
        `rows` (scores, name, `test` and `versus_selected` where the test part is open), `selected` (a name or None), `split_digest`, `seeds`
        (mean and spread, where there are several), `warnings` (what must be read first) and `verdict`, a sentence.

    Raises:
        UserError: When the runs were fitted on different splits; names both.
    """
    digests = {finished.scores["split_digest"]: finished.name for finished in runs}
    if len(digests) > 1:
        (one, first), (other, second) = list(digests.items())[:2]
        raise UserError(
            f"{first} was fitted on split {one}, {second} on {other}. Expected runs on the same images and split. Compare runs of one split only."
        )
    ranked = sorted(
        runs,
        key=lambda one: (
            one.scores.get("contract") == "broken",
            -one.scores["val"]["accuracy"],
            one.scores["val"]["loss"],
        ),
    )
    rows = [_row(one, ranked[0]) for one in ranked]
    names = [row["name"] for row in rows]
    return {
        "rows": [*rows, *failed],
        "selected": names[0] if names else None,
        "split_digest": next(iter(digests), None),
        "seeds": _over_seeds(ranked),
        "verdict": _verdict(rows),
        "warnings": list(dict.fromkeys(line for one in ranked for line in one.cautions)),
    }


def write_leaderboard(board: dict[str, Any], runs: Sequence[Run], folder: Path) -> None:
    """Write `leaderboard.json`, `leaderboard.csv`, `curves.png` and `accuracy-against-seconds.png`."""
    write_table(folder / "leaderboard.csv", [flat_row(row) for row in board["rows"]])
    if runs:
        plot_curves(runs, folder / "curves.png")
        plot_cost(runs, folder / "accuracy-against-seconds.png")
    write_json(folder / "leaderboard.json", board)


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the leaderboard as a person reads it: one number a column."""
    if "error" in row:
        return {
            "name": row["name"],
            "backbone": row["backbone"],
            "technique": row["technique"],
            "seed": row["seed"],
            "error": row["error"],
        }
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


def _row(one: Run, selected: Run) -> dict[str, Any]:
    row = {"name": one.name, **one.scores}
    if one.test and selected.test:
        row["test"] = one.test["test"]
        row["opened"] = one.test["opened"]
        mine, theirs = one.predictions("test"), selected.predictions("test")
        if one.name != selected.name and (mine["keys"] == theirs["keys"]).all():
            right = [found["logits"].argmax(axis=1) == found["targets"] for found in (mine, theirs)]
            row["versus_selected"] = compare_paired(right[0], right[1]).plain()
    return row


def _over_seeds(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return mean and spread of each backbone and technique that ran with several seeds; runs of one seed are one."""
    found: dict[str, list[Run]] = {}
    for one in runs:
        found.setdefault(one.plan.model_copy(update={"seed": 0}).digest, []).append(one)
    rows = []
    for alike in found.values():
        same = list({one.plan.seed: one for one in alike}.values())
        if len(same) < 2:
            continue
        row: dict[str, Any] = {
            "backbone": same[0].plan.backbone,
            "technique": same[0].plan.technique,
            "seeds": len(same),
        }
        val = [one.scores["val"]["accuracy"] for one in same]
        row |= {"val_mean": mean(val), "val_spread": stdev(val)}
        if all(one.test for one in same):
            test = [one.test["test"]["accuracy"] for one in same if one.test]
            row |= {"test_mean": mean(test), "test_spread": stdev(test)}
        rows.append(row)
    return rows


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "No row finished."
    best = rows[0]
    test = best.get("test")
    if not test:
        return f"{best['name']} does best on validation ({best['val']['accuracy']:.1%} of {best['val']['n']:,} images); the test part is shut."
    low, high = test["ci95"]
    text = f"{best['name']} was selected on validation and is right on {test['accuracy']:.1%} of {test['n']:,} test images"
    text += f" (95 % interval {low:.1%} to {high:.1%})."
    rivals = [row for row in rows[1:] if "versus_selected" in row]
    alike = [row["name"] for row in rivals if not row["versus_selected"]["real"]]
    better = [
        row["name"]
        for row in rivals
        if row["versus_selected"]["real"] and row["versus_selected"]["points"] > 0
    ]
    if better:
        text += f" On the test part {_and(better)} {'is' if len(better) == 1 else 'are'} better."
    if alike:
        text += f" No difference to {_and(alike)} can be told with {test['n']:,} images."
    elif rivals and not better:
        text += " Every other row is worse by more than chance."
    return text


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""Everything that a report says of finished runs, as plain data: one object that the page and the Markdown render.

Refuses pictures and pixels; they are put in by whoever has the images.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.errors import UserError
from regraft.evaluation.calibration import fit_temperature
from regraft.evaluation.metrics import class_metrics
from regraft.evaluation.paired import compare_paired
from regraft.plans.schema import plan_to_toml
from regraft.reporting.leaderboard import build_leaderboard_json
from regraft.runs.folder import Run, verify_run


def gather_evidence(runs: Sequence[Run], failed: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return the evidence of some runs on one split.

    Args:
        runs: Finished runs; judged on test where it is open for all of them, else on val.
        failed: Rows of a comparison that did not finish.

    Returns:
        `board` (see `leaderboard`), `part`, `runs` (by name: `measures`, `history`, `contract`, `plan`, `environment`, `command`, `scores`, `opened`),
        `pairs` (every run against the selected one: points, interval, p, a sentence), `warnings` (leaks, broken contracts) and `verdict`.

    Raises:
        UserError: When splits or classes differ, the images of two runs differ, or a run was altered.
    """
    for one in runs:
        verify_run(one)
    board = build_leaderboard_json(runs, failed)
    classes = {one.classes: one.name for one in runs}
    if len(classes) > 1:
        (first, called), (second, other) = list(classes.items())[:2]
        raise UserError(
            f"{called} has the classes {', '.join(first[:5])} …, {other} has {', '.join(second[:5])} …. Expected the same. Report on runs of one dataset."
        )
    part = "test" if all(one.test for one in runs) else "val"
    ranked = sorted(runs, key=lambda one: [row["name"] for row in board["rows"]].index(one.name))
    told = {
        "data": runs[0].scores["data"],
        "classes": list(runs[0].classes),
        "part": part,
        "split_digest": board["split_digest"],
        "board": board,
        "runs": {one.name: _of(one, part) for one in ranked},
        "pairs": _pairs(ranked, part),
        "warnings": board["warnings"],
    }
    told["verdict"] = _verdict(told)
    return told


def _of(one: Run, part: str) -> dict[str, Any]:
    val = one.predictions("val")
    temperature = fit_temperature(val["logits"], val["targets"])
    judged = one.predictions(part)
    environment = one.path / "environment.json"
    return {
        "name": one.name,
        "path": str(one.path),
        "scores": one.scores,
        "measures": class_metrics(
            judged["logits"],
            judged["targets"],
            one.classes,
            temperature if part == "test" else None,
        ),
        "temperature": temperature,
        "history": one.history(),
        "contract": json.loads((one.path / "freeze.json").read_text()),
        "plan": plan_to_toml(one.plan),
        "environment": json.loads(environment.read_text()) if environment.is_file() else {},
        "command": repeat_command(one),
        "opened": (one.test or {}).get("opened", []),
    }


def repeat_command(one: Run) -> str:
    """Return the command that does a run again."""
    origin = one.scores["origin"]
    words = ["regraft", "fit", str(origin["data"] or "DATA"), "--plan", str(one.path / "plan.toml")]
    for name, value in origin.items():
        if value and name != "data":
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def _pairs(ranked: Sequence[Run], part: str) -> list[dict[str, Any]]:
    """Return how every run differs from the selected one on the same images."""
    best, found = ranked[0], []
    mine = best.predictions(part)
    right = mine["logits"].argmax(axis=1) == mine["targets"]
    for other in ranked[1:]:
        theirs = other.predictions(part)
        if not np.array_equal(mine["keys"], theirs["keys"]):
            raise UserError(
                f"{best.name} and {other.name} were judged on different {part} images. Expected the same. Open the test part of both with the same data."
            )
        one = compare_paired(right, theirs["logits"].argmax(axis=1) == theirs["targets"])
        found.append(
            {"name": other.name, **one.plain(), "sentence": one.sentence(best.name, other.name)}
        )
    return found


def _verdict(told: dict[str, Any]) -> str:
    """Return which way won and whether the difference is real, in two sentences."""
    best, part = told["board"]["selected"], told["part"]
    scores = told["runs"][best]["measures"]
    low, high = scores["ci95"]
    text = f"{best} does best on validation and is right on {scores['accuracy']:.1%} of {scores['n']:,} {part} images (95 % interval {low:.1%} to {high:.1%})."
    if not told["pairs"]:
        return text
    cost = {
        name: one["scores"]["seconds"]["total"] + one["scores"].get("shared_seconds", 0.0)
        for name, one in told["runs"].items()
    }
    alike = [one for one in told["pairs"] if not one["real"]]
    cheaper = [one["name"] for one in alike if cost[one["name"]] < 0.8 * cost[best]]
    if cheaper:
        name = min(cheaper, key=lambda one: cost[one])
        times = cost[best] / max(cost[name], 1e-9)
        return f"{text} {name} cannot be told apart from it with {scores['n']:,} images and took {times:.1f} times less time."
    if alike:
        return f"{text} {alike[0]['sentence']}"
    closest = min(told["pairs"], key=lambda one: abs(one["points"]))
    return f"{text} {closest['sentence']}"

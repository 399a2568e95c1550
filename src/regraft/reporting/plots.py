"""Pictures of finished runs: curves on shared axes, accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.runs.folder import Run
from regraft.system.files import atomic_write


def plot_curves(runs: Sequence[Run], path: Path) -> None:
    """Draw loss and accuracy of train and val by epoch, every run on shared axes; solved heads are a point at epoch 1."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for number, one in enumerate(runs):
        rows = one.history()
        colour = f"C{number % 10}"
        solved = "l2" in rows[0] and "lr" not in rows[-1]
        epochs = [1] if solved else [row_number + 1 for row_number in range(len(rows))]
        for axis, what in ((left, "loss"), (right, "accuracy")):
            for part, style in (("train", "--"), ("val", "-")):
                values = (
                    [one.scores[part][what]]
                    if solved
                    else [row.get(f"{part}_{what}") for row in rows]
                )
                label = one.name if part == "val" else None
                look = (
                    {"marker": "o", "fillstyle": "full" if part == "val" else "none"}
                    if solved
                    else {}
                )
                axis.plot(
                    epochs,
                    values,
                    style,
                    color=colour,
                    label=label,
                    linewidth=1.4,
                    markersize=5,
                    **look,
                )
    left.set(xlabel="epoch", ylabel="loss", title="loss")
    right.set(xlabel="epoch", ylabel="accuracy", title="accuracy")
    left.set_yscale("log")
    right.legend(fontsize=8, title="solid val, dashed train while training", title_fontsize=8)
    save_figure(figure, path)


def plot_cost(runs: Sequence[Run], path: Path) -> None:
    """Draw accuracy (test where it is open, else val) with its 95 % interval against seconds of work."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for number, one in enumerate(runs):
        part = "test" if one.test else "val"
        scores = one.test["test"] if one.test else one.scores["val"]
        low, high = scores["ci95"]
        seconds = one.scores["seconds"]["total"] + one.scores.get("shared_seconds", 0.0)
        axis.errorbar(
            seconds,
            scores["accuracy"],
            [[scores["accuracy"] - low], [high - scores["accuracy"]]],
            fmt="o",
            color=f"C{number % 10}",
            capsize=3,
        )
        axis.annotate(
            one.name,
            (seconds, scores["accuracy"]),
            textcoords="offset points",
            xytext=(6, 5),
            fontsize=8,
        )
    axis.set(xlabel="seconds of work", ylabel=f"{part} accuracy, 95 % interval", xscale="log")
    axis.margins(x=0.25)
    save_figure(figure, path)


def pyplot() -> Any:
    """Return matplotlib's interface, drawing into files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, with grids and without boxes, and forget it."""
    for axis in figure.axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_write(path, path.suffix) as scratch:
        figure.savefig(scratch, dpi=110)
    pyplot().close(figure)

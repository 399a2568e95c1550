"""The charts of the report page, as SVG: all runs together, and the selected one alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from regraft.reporting import plots
from regraft.reporting.plots import (
    COLOURS,
    RunSeries,
    draw_cost,
    escape_mathtext,
    get_colour,
    get_total_seconds,
    to_svg,
)

_MAX_CLASSES = 40
_INK = "#222222"
_BARS = (("precision", 0.25, COLOURS[4]), ("recall", 0.0, COLOURS[0]), ("f1", -0.25, COLOURS[2]))


def draw_charts(evidence: Mapping[str, Any]) -> dict[str, str]:
    """Return the charts as SVG, by name; empty text for a confusion matrix of too many classes.

    Args:
        evidence: As `Evidence.to_json` returns it; the order of its runs gives their colours.

    Returns:
        `seconds`, `parameters`, `curves` and `coverage` of all runs; `confusion`, `classes` and
        `reliability` of the selected one.
    """
    runs = evidence["runs"]
    series = [_to_run_series(name, run, evidence["part"]) for name, run in runs.items()]
    seconds = [run.seconds for run in series]
    parameters = [float(run.trainable) for run in series]
    selected = runs[evidence["board"]["selected"]]["measures"]
    is_legible = len(selected["per_class"]) <= _MAX_CLASSES

    def draw_seconds(plt: Any) -> Any:
        return draw_cost(plt, series, seconds, "seconds of work")

    def draw_parameters(plt: Any) -> Any:
        return draw_cost(plt, series, parameters, "trained parameters")

    def draw_curves(plt: Any) -> Any:
        return plots.draw_curves(plt, series)

    def draw_coverage(plt: Any) -> Any:
        return _draw_coverage(plt, list(runs.values()))

    def draw_selected(draw: Callable[[Any, Mapping[str, Any]], Any]) -> str:
        return to_svg(lambda plt: draw(plt, selected))

    return {
        "seconds": to_svg(draw_seconds),
        "parameters": to_svg(draw_parameters),
        "curves": to_svg(draw_curves),
        "confusion": draw_selected(_draw_confusion) if is_legible else "",
        "classes": draw_selected(_draw_classes),
        "reliability": draw_selected(_draw_reliability),
        "coverage": to_svg(draw_coverage),
    }


def _to_run_series(name: str, run: Mapping[str, Any], part: str) -> RunSeries:
    """Return what the figures show of a run of the evidence."""
    scores = run["scores"]
    return RunSeries(
        name=name,
        part=part,
        accuracy=run["measures"]["accuracy"],
        ci95=run["measures"]["ci95"],
        seconds=get_total_seconds(scores),
        trainable=scores["parameters"]["trainable"],
        history=run["history"],
        final={"train": scores["train"], "val": scores["val"]},
    )


def _draw_confusion(plt: Any, measures: Mapping[str, Any]) -> Any:
    """Return a figure of the counts, true class by predicted class; dark is a large share."""
    names = [escape_mathtext(row["name"]) for row in measures["per_class"]]
    counts = np.array(measures["confusion"], dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = 2.2 + 0.36 * len(names)
    figure, axis = plt.subplots(figsize=(side, side))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axis.set(
        xticks=ticks,
        yticks=ticks,
        xlabel="predicted",
        ylabel="true",
    )
    axis.set_xticklabels(names, rotation=60, ha="right", fontsize=8)
    axis.set_yticklabels(names, fontsize=8)
    for row, column in zip(*np.nonzero(counts), strict=True):
        text = f"{counts[row, column]:.0f}"
        colour = "white" if shares[row, column] > 0.5 else _INK
        axis.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=7,
            color=colour,
        )
    axis.grid(visible=False)
    return figure


def _draw_classes(plt: Any, measures: Mapping[str, Any]) -> Any:
    """Return a figure of precision, recall and F1 of the classes with the lowest F1."""
    judged = [row for row in measures["per_class"] if row["n"]]
    rows = sorted(judged, key=lambda row: float(row["f1"]))[:_MAX_CLASSES]
    names = [f"{escape_mathtext(row['name'])} ({row['n']:,})" for row in rows]
    places = np.arange(len(rows))
    figure, axis = plt.subplots(figsize=(6, 1.2 + 0.3 * len(rows)))
    for measure, shift, colour in _BARS:
        values = [row[measure] for row in rows]
        axis.barh(
            places + shift,
            values,
            0.24,
            color=colour,
            label=measure,
        )
    axis.set(yticks=places, xlim=(0, 1))
    axis.set_yticklabels(names, fontsize=8)
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1 - 0.4 / len(rows)),
        ncol=3,
        fontsize=8,
        frameon=False,
        labelcolor=plt.rcParams["text.color"],
    )
    return figure


def _draw_reliability(plt: Any, measures: Mapping[str, Any]) -> Any:
    """Return a reliability diagram: accuracy by confidence, dots as large as their bins."""
    bins = measures["calibration"]["bins"]
    lows = [each["low"] for each in bins]
    widths = [each["high"] - each["low"] for each in bins]
    confidences = [each["confidence"] for each in bins]
    accuracies = [each["accuracy"] for each in bins]
    sizes = [10 + 120 * each["n"] / measures["n"] for each in bins]
    ink = plt.rcParams["text.color"]
    colour = COLOURS[0]
    figure, axis = plt.subplots(figsize=(4.2, 3.8))
    axis.plot(
        [0, 1],
        [0, 1],
        "--",
        color=ink,
        linewidth=1,
        alpha=0.6,
    )
    axis.bar(
        lows,
        accuracies,
        widths,
        align="edge",
        color=colour,
        alpha=0.35,
        edgecolor=colour,
    )
    axis.scatter(confidences, accuracies, sizes, color=colour, zorder=3)
    axis.set(
        xlabel="confidence",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    return figure


def _draw_coverage(plt: Any, runs: Sequence[Mapping[str, Any]]) -> Any:
    """Return a figure of accuracy against coverage, the most confident predictions first."""
    figure, axis = plt.subplots(figsize=(4.8, 3.8))
    for number, run in enumerate(runs):
        rows = run["measures"]["coverage"]
        coverages = [row["coverage"] for row in rows]
        accuracies = [row["accuracy"] for row in rows]
        axis.plot(
            coverages,
            accuracies,
            color=get_colour(number),
            linewidth=1.4,
        )
    axis.set(
        xlabel="coverage (most confident predictions first)",
        ylabel="accuracy",
    )
    return figure

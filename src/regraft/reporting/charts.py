"""The report's charts, as SVG that takes the page's own colours, so that it reads in light and dark and prints."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from regraft.evaluation.paired import pareto_front
from regraft.reporting.plots import pyplot

_INK = "#123457"  # stands for the page's text colour until the SVG is written
_MOST_CLASSES = 40
COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#999999",
    "#ee7733",
)  # told apart by the colour-blind (Tol 2021)


def draw_charts(runs: dict[str, Any], selected: str) -> dict[str, str]:
    """Return the charts by name: `seconds`, `parameters`, `curves`, `confusion`, `classes`, `reliability`, `coverage`.

    Args:
        runs: By name, as `evidence.gathered` has them; the order gives the colours.
        selected: The run that the charts of one run show.
    """
    one = runs[selected]["measures"]
    return {
        "seconds": _svg(lambda plt: _cost(plt, runs, _seconds, "seconds of work")),
        "parameters": _svg(
            lambda plt: _cost(
                plt,
                runs,
                lambda run: float(run["scores"]["parameters"]["trainable"]),
                "trained parameters",
            )
        ),
        "curves": _svg(lambda plt: _curves(plt, runs)),
        "confusion": _svg(lambda plt: _confusion(plt, one))
        if len(one["per_class"]) <= _MOST_CLASSES
        else "",
        "classes": _svg(lambda plt: _classes(plt, one)),
        "reliability": _svg(lambda plt: _reliability(plt, one)),
        "coverage": _svg(lambda plt: _coverage(plt, runs)),
    }


def series_colour(number: int) -> str:
    """Return the colour of a run by its place on the leaderboard."""
    return COLOURS[number % len(COLOURS)]


def _seconds(run: dict[str, Any]) -> float:
    return float(run["scores"]["seconds"]["total"] + run["scores"].get("shared_seconds", 0.0))


def _cost(
    plt: Any, runs: dict[str, Any], cost: Callable[[dict[str, Any]], float], label: str
) -> Any:
    figure, axis = plt.subplots(figsize=(6, 3.8))
    points = [(max(cost(run), 1.0), run["measures"]["accuracy"]) for run in runs.values()]
    line = [points[number] for number in pareto_front(points)]
    axis.plot(*zip(*line, strict=True), "--", color=_INK, linewidth=1, alpha=0.6, zorder=1)
    for number, ((x, y), (name, run)) in enumerate(zip(points, runs.items(), strict=True)):
        low, high = run["measures"]["ci95"]
        axis.errorbar(
            x,
            y,
            [[max(0, y - low)], [max(0, high - y)]],
            fmt="o",
            color=series_colour(number),
            capsize=3,
        )
        axis.annotate(
            _plain(name), (x, y), textcoords="offset points", xytext=(7, 4), fontsize=8, color=_INK
        )
    axis.set(xlabel=label, ylabel="accuracy, 95 % interval", xscale="log")
    for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        ticks(
            lambda value, _: (
                f"{value / 1e6:g} M"
                if value >= 1e6
                else f"{value / 1e3:g} k"
                if value >= 1e3
                else f"{value:g}"
            )
        )
    axis.tick_params(axis="x", which="both", labelrotation=30)
    axis.margins(x=0.3)
    return figure


def _curves(plt: Any, runs: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for number, run in enumerate(runs.values()):
        rows = run["history"]
        solved = all("l2" in row for row in rows)
        steps = [1] if solved else list(range(1, len(rows) + 1))
        for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
            for part, style in (("train", "--"), ("val", "-")):
                values = (
                    [run["scores"][part][what]]
                    if solved
                    else [row.get(f"{part}_{what}") for row in rows]
                )
                axis.plot(
                    steps,
                    values,
                    style,
                    color=series_colour(number),
                    linewidth=1.4,
                    marker="o" if solved else None,
                    markersize=4,
                )
            if not solved:
                best = _best(rows)
                axis.plot(
                    best + 1,
                    rows[best].get(f"val_{what}"),
                    "*",
                    color=series_colour(number),
                    markersize=11,
                )
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        axis.set(xlabel="epoch", ylabel=what)
    axes[0].set_yscale("log")
    return figure


def _best(rows: Sequence[dict[str, float]]) -> int:
    """Return the epoch with the highest validation accuracy in the last phase that has epochs."""
    numbers = [number for number, row in enumerate(rows) if "epoch" in row]
    return max(
        numbers or range(len(rows)),
        key=lambda number: (rows[number]["phase"], rows[number].get("val_accuracy", 0.0)),
    )


def _confusion(plt: Any, measures: dict[str, Any]) -> Any:
    names = [_plain(row["name"]) for row in measures["per_class"]]
    counts = np.array(measures["confusion"], dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = 2.2 + 0.36 * len(names)
    figure, axis = plt.subplots(figsize=(side, side))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="said", ylabel="true")
    axis.set_xticklabels(names, rotation=60, ha="right", fontsize=8)
    axis.set_yticklabels(names, fontsize=8)
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = shares[row, column] > 0.5
        axis.text(
            column,
            row,
            f"{counts[row, column]:.0f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "#222222",
        )
    axis.grid(visible=False)
    return figure


def _classes(plt: Any, measures: dict[str, Any]) -> Any:
    rows = sorted((row for row in measures["per_class"] if row["n"]), key=lambda row: row["f1"])[
        :_MOST_CLASSES
    ]
    figure, axis = plt.subplots(figsize=(6, 1.2 + 0.3 * len(rows)))
    places = np.arange(len(rows))
    for shift, what, paint in (
        (0.25, "precision", COLOURS[4]),
        (0.0, "recall", COLOURS[0]),
        (-0.25, "f1", COLOURS[2]),
    ):
        axis.barh(places + shift, [row[what] for row in rows], 0.24, color=paint, label=what)
    axis.set(yticks=places, xlim=(0, 1))
    axis.set_yticklabels([f"{_plain(row['name'])} ({row['n']:,})" for row in rows], fontsize=8)
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1 - 0.4 / len(rows)),
        ncol=3,
        fontsize=8,
        frameon=False,
        labelcolor=_INK,
    )
    return figure


def _reliability(plt: Any, measures: dict[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(4.2, 3.8))
    axis.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1, alpha=0.6)
    bins = measures["calibration"]["bins"]
    axis.bar(
        [one["low"] for one in bins],
        [one["accuracy"] for one in bins],
        [one["high"] - one["low"] for one in bins],
        align="edge",
        color=COLOURS[0],
        alpha=0.35,
        edgecolor=COLOURS[0],
    )
    sizes = [10 + 120 * one["n"] / measures["n"] for one in bins]
    axis.scatter(
        [one["confidence"] for one in bins],
        [one["accuracy"] for one in bins],
        sizes,
        color=COLOURS[0],
        zorder=3,
    )
    axis.set(
        xlabel="probability that was said", ylabel="how often right", xlim=(0, 1), ylim=(0, 1.02)
    )
    return figure


def _coverage(plt: Any, runs: dict[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(4.8, 3.8))
    for number, run in enumerate(runs.values()):
        rows = run["measures"]["coverage"]
        axis.plot(
            [row["coverage"] for row in rows],
            [row["accuracy"] for row in rows],
            color=series_colour(number),
            linewidth=1.4,
        )
    axis.set(xlabel="share of images answered, the surest first", ylabel="accuracy of the answers")
    return figure


def _plain(name: str) -> str:
    """Return a name that matplotlib does not take for mathematics."""
    return name.replace("$", r"\$")


def _svg(draw: Callable[[Any], Any]) -> str:
    """Return a figure as SVG in the page's ink, without a background."""
    plt = pyplot()
    ink = dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "axes.titlecolor",
        ),
        _INK,
    )
    look = {
        **ink,
        "svg.fonttype": "none",
        "svg.hashsalt": "regraft",
        "font.size": 9,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    with plt.rc_context(look):
        figure = draw(plt)
        for axis in figure.axes:
            axis.spines[["top", "right"]].set_visible(False)
            if not axis.images:
                axis.grid(alpha=0.25)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
        plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text).groups()  # type: ignore[union-attr]
    return text.replace(
        f'width="{width}pt" height="{height}pt"',
        f'role="img" style="max-width:{width}pt;width:100%;height:auto"',
        1,
    )

"""Plots of a probe: accuracy by depth, accuracy against cost, the learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.probing.candidates import ProbeRow
from regraft.probing.learning_curve import Forecast, LearningCurve
from regraft.probing.recommend import Recommendation
from regraft.reporting.plots import get_pyplot, save_figure

_LABELS_OF_LAYERS = 24  # on an axis, at most


def plot_depth(rows: Sequence[ProbeRow], path: Path) -> None:
    """Plot the accuracy of every single layer by its depth, for each backbone and resolution.

    All layers concatenated are a dashed level.
    """
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    size = (7.5 * len(backbones), 4.6)
    figure, axes = get_pyplot().subplots(
        1, len(backbones), figsize=size, sharey=True, squeeze=False
    )
    for axis, backbone in zip(axes[0], backbones, strict=True):
        _plot_backbone(axis, [row for row in rows if row.backbone == backbone])
        axis.set_title(backbone)
    axes[0][0].set_ylabel("val accuracy of a linear probe")
    save_figure(figure, path)


def plot_probe_cost(
    rows: Sequence[ProbeRow],
    front: Sequence[ProbeRow],
    choices: Sequence[Recommendation],
    path: Path,
) -> None:
    """Plot accuracy against multiply-adds: every row, the Pareto front, the recommended rows."""
    figure, axis = get_pyplot().subplots(figsize=(7.5, 4.6))
    _plot_kind(axis, rows, "single", "o", "one layer")
    _plot_kind(axis, rows, "greedy", "^", "a few layers")
    _plot_kind(axis, rows, "all", "s", "all layers")
    axis.plot(*_points(front), "-", color="C0", linewidth=1.4, label="Pareto front")
    _name_choices(axis, choices)
    axis.set(
        xlabel="million multiply-adds for one image",
        ylabel="val accuracy of a linear probe",
        xscale="log",
    )
    axis.legend(fontsize=8)
    save_figure(figure, path)


def plot_learning_curve(curve: LearningCurve, name: str, path: Path) -> None:
    """Plot accuracy against training images, and the forecast with its interval."""
    figure, axis = get_pyplot().subplots(figsize=(6.5, 4.2))
    sizes = [point.images for point in curve.points]
    accuracies = [point.accuracy for point in curve.points]
    spreads = [point.spread or 0.0 for point in curve.points]
    axis.errorbar(sizes, accuracies, spreads, fmt="o-", capsize=3, label="measured")
    if curve.forecast:
        _plot_forecast(axis, curve.forecast)
    axis.set(xlabel="training images", ylabel="val accuracy", title=name, xscale="log")
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _plot_backbone(axis: Any, rows: Sequence[ProbeRow]) -> None:
    """Plot a line for each resolution of one backbone."""
    for number, resolution in enumerate(dict.fromkeys(row.resolution for row in rows)):
        colour = f"C{number % 10}"
        here = [row for row in rows if row.resolution == resolution]
        accuracies = [row.accuracy for row in here if row.kind == "single"]
        axis.plot(
            range(1, len(accuracies) + 1),
            accuracies,
            "o-",
            color=colour,
            label=f"{resolution} px",
            markersize=4,
            linewidth=1.4,
        )
        for row in here:
            if row.kind == "all":
                axis.axhline(row.accuracy, color=colour, linestyle="--", linewidth=0.9)
    _label_layers(axis, [row for row in rows if row.resolution == rows[0].resolution])
    axis.legend(fontsize=8, title="dashed: all layers together", title_fontsize=8)


def _label_layers(axis: Any, rows: Sequence[ProbeRow]) -> None:
    names = [row.layers[0] for row in rows if row.kind == "single"]
    step = max(1, len(names) // _LABELS_OF_LAYERS)
    depths = range(1, len(names) + 1)
    axis.set_xticks(depths[::step], names[::step], rotation=70, fontsize=7)


def _plot_kind(axis: Any, rows: Sequence[ProbeRow], kind: str, marker: str, label: str) -> None:
    points = _points([row for row in rows if row.kind == kind])
    axis.plot(*points, marker, color="0.6", markersize=4, label=label)


def _points(rows: Sequence[ProbeRow]) -> tuple[list[float], list[float]]:
    """Return million multiply-adds and accuracies."""
    costs = [row.multiply_adds / 1e6 for row in rows]
    return costs, [row.accuracy for row in rows]


def _name_choices(axis: Any, choices: Sequence[Recommendation]) -> None:
    """Mark the recommended rows, each once, with the names of their budgets."""
    rows: dict[str, ProbeRow] = {}
    budgets: dict[str, list[str]] = {}
    for choice in choices:
        rows.setdefault(choice.row.name, choice.row)
        budgets.setdefault(choice.row.name, []).append(choice.budget)
    for name, row in rows.items():
        point = (row.multiply_adds / 1e6, row.accuracy)
        axis.plot(*point, "*", color="C3", markersize=11)
        axis.annotate(
            ", ".join(budgets[name]),
            point,
            textcoords="offset points",
            xytext=(6, -12),
            fontsize=8,
        )


def _plot_forecast(axis: Any, forecast: Forecast) -> None:
    low, high = forecast.ci95
    accuracy = forecast.accuracy
    below = max(0.0, accuracy - low)
    above = max(0.0, high - accuracy)
    axis.errorbar(
        [forecast.images],
        [accuracy],
        [[below], [above]],
        fmt="s",
        capsize=3,
        color="C3",
        label="forecast",
    )

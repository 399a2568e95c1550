"""Pictures of a probe: accuracy by depth, accuracy against cost, the learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.probing.candidates import ProbeRow
from regraft.probing.recommend import Recommendation
from regraft.reporting.plots import pyplot, save_figure


def plot_depth(rows: Sequence[ProbeRow], path: Path) -> None:
    """Draw the validation accuracy of every single place by its depth, a line for each backbone and resolution; all places together are a dashed level."""
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    figure, axes = pyplot().subplots(
        1, len(backbones), figsize=(7.5 * len(backbones), 4.6), sharey=True, squeeze=False
    )
    for axis, backbone in zip(axes[0], backbones, strict=True):
        mine = [row for row in rows if row.backbone == backbone]
        for number, resolution in enumerate(dict.fromkeys(row.resolution for row in mine)):
            line = [row for row in mine if row.resolution == resolution and row.kind == "single"]
            places = range(1, len(line) + 1)
            axis.plot(
                places,
                [row.accuracy for row in line],
                "o-",
                color=f"C{number % 10}",
                label=f"{resolution} px",
                markersize=4,
                linewidth=1.4,
            )
            for row in mine:
                if row.resolution == resolution and row.kind == "all":
                    axis.axhline(
                        row.accuracy, color=f"C{number % 10}", linestyle="--", linewidth=0.9
                    )
        names = [
            row.places[0]
            for row in mine
            if row.kind == "single" and row.resolution == mine[0].resolution
        ]
        step = max(1, len(names) // 24)
        axis.set_xticks(range(1, len(names) + 1)[::step], names[::step], rotation=70, fontsize=7)
        axis.set(
            title=backbone, ylabel="val accuracy of a linear probe" if axis is axes[0][0] else ""
        )
        axis.legend(fontsize=8, title="dashed: all places together", title_fontsize=8)
    save_figure(figure, path)


def plot_probe_cost(
    rows: Sequence[ProbeRow],
    front: Sequence[ProbeRow],
    choices: Sequence[Recommendation],
    path: Path,
) -> None:
    """Draw accuracy against multiply-adds: every row, the Pareto front as a line, the recommended rows named."""
    figure, axis = pyplot().subplots(figsize=(7.5, 4.6))
    for kind, marker in (("single", "o"), ("greedy", "^"), ("all", "s")):
        mine = [row for row in rows if row.kind == kind]
        label = {"single": "one place", "greedy": "a few places", "all": "all places"}[kind]
        axis.plot(
            [row.multiply_adds / 1e6 for row in mine],
            [row.accuracy for row in mine],
            marker,
            color="0.6",
            markersize=4,
            label=label,
        )
    axis.plot(
        [row.multiply_adds / 1e6 for row in front],
        [row.accuracy for row in front],
        "-",
        color="C0",
        linewidth=1.4,
        label="Pareto front",
    )
    named: dict[str, list[str]] = {}
    for choice in choices:
        named.setdefault(choice.row.name, []).append(choice.budget)
    for choice in choices:
        if choice.budget == named[choice.row.name][0]:
            where = (choice.row.multiply_adds / 1e6, choice.row.accuracy)
            axis.plot(*where, "*", color="C3", markersize=11)
            axis.annotate(
                ", ".join(named[choice.row.name]),
                where,
                textcoords="offset points",
                xytext=(6, -12),
                fontsize=8,
            )
    axis.set(
        xlabel="million multiply-adds for one image",
        ylabel="val accuracy of a linear probe",
        xscale="log",
    )
    axis.legend(fontsize=8)
    save_figure(figure, path)


def plot_learning_curve(told: dict[str, Any], name: str, path: Path) -> None:
    """Draw accuracy against training images with the spread over subsets, and the forecast with its interval."""
    figure, axis = pyplot().subplots(figsize=(6.5, 4.2))
    points, forecast = told["points"], told["forecast"]
    sizes = [point["images"] for point in points]
    axis.errorbar(
        sizes,
        [point["accuracy"] for point in points],
        [point["spread"] or 0.0 for point in points],
        fmt="o-",
        capsize=3,
        label="measured",
    )
    if forecast:
        low, high = forecast["ci95"]
        there = forecast["accuracy"]
        axis.errorbar(
            [forecast["images"]],
            [there],
            [[max(0.0, there - low)], [max(0.0, high - there)]],
            fmt="s",
            capsize=3,
            color="C3",
            label="forecast",
        )
    axis.set(xlabel="training images", ylabel="val accuracy", title=name, xscale="log")
    axis.legend(fontsize=8)
    save_figure(figure, path)

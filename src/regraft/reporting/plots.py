"""Figures of finished runs beside each other: learning curves, and accuracy against cost."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.evaluation.paired import pareto_front
from regraft.runs.folder import Run
from regraft.system.files import atomic_write

COLOURS = (  # distinguishable with colour-blindness (Tol 2021)
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#999999",
    "#ee7733",
)
_INK = "#123457"  # stands for the page's text colour until the SVG is written
_INKED = (
    "text.color",
    "axes.labelcolor",
    "axes.edgecolor",
    "xtick.color",
    "ytick.color",
    "axes.titlecolor",
)
_SVG_STYLE = dict.fromkeys(_INKED, _INK) | {
    "svg.fonttype": "none",
    "svg.hashsalt": "regraft",
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_MANY_POWERS = 1e3  # of ten, as a ratio of costs
_QUANTITIES = ("loss", "accuracy")
_LINE_STYLES = {"train": "--", "val": "-"}
_DOT_FILLS = {"train": "none", "val": "full"}


@dataclass(frozen=True)
class RunSeries:
    """What the figures show of one run.

    Args:
        name: Of the run.
        part: The part that accuracy and interval are of, "test" or "val".
        accuracy: 0 … 1.
        ci95: Its 95 % interval.
        seconds: Of work, what was computed once for several runs included.
        trainable: Trained parameters.
        history: A row for each epoch, or for each L2 value of a head solved in closed form.
        final: Loss and accuracy of "train" and "val" at the end.
    """

    name: str
    part: str
    accuracy: float
    ci95: tuple[float, float]
    seconds: float
    trainable: int
    history: Sequence[Mapping[str, float]]
    final: Mapping[str, Mapping[str, float]]

    @property
    def is_solved(self) -> bool:
        """Whether the run has no epochs, because its head was solved (history rows have `l2`)."""
        return all("l2" in row for row in self.history)


def to_run_series(finished: Run, part: str) -> RunSeries:
    """Return what the figures show of a run, judged on "val", or on "test" if that is open."""
    scores = finished.scores
    judged = finished.test["test"] if part == "test" and finished.test else scores["val"]
    return RunSeries(
        name=finished.name,
        part=part,
        accuracy=judged["accuracy"],
        ci95=judged["ci95"],
        seconds=get_total_seconds(scores),
        trainable=scores["parameters"]["trainable"],
        history=finished.history(),
        final={"train": scores["train"], "val": scores["val"]},
    )


def get_total_seconds(scores: Mapping[str, Any]) -> float:
    """Return a run's seconds of work, its share of what was computed for several runs included."""
    return float(scores["seconds"]["total"] + scores.get("shared_seconds", 0.0))


def get_colour(number: int) -> str:
    """Return the colour of a run by its place on the leaderboard."""
    return COLOURS[number % len(COLOURS)]


def save_curves(series: Sequence[RunSeries], path: Path) -> None:
    """Write the learning curves of some runs as PNG."""
    figure = draw_curves(get_pyplot(), series)
    figure.axes[1].legend(fontsize=8, title="solid: val, dashed: train", title_fontsize=8)
    save_figure(figure, path)


def save_cost(series: Sequence[RunSeries], path: Path) -> None:
    """Write accuracy with its 95 % interval against seconds of work as PNG."""
    costs = [run.seconds for run in series]
    save_figure(draw_cost(get_pyplot(), series, costs, "seconds of work"), path)


def draw_curves(plt: Any, series: Sequence[RunSeries]) -> Any:
    """Return a figure of loss and accuracy of train and val by epoch, all runs on shared axes.

    A star marks the epoch that the last phase kept. A head that was solved is a dot at epoch 1,
    filled for val and open for train.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    for axis, quantity in zip(axes, _QUANTITIES, strict=True):
        for number, run in enumerate(series):
            draw_run = _draw_dots if run.is_solved else _draw_lines
            draw_run(axis, run, quantity, get_colour(number))
        axis.set(xlabel="epoch", ylabel=quantity)
    axes[0].set_yscale("log")
    return figure


def draw_cost(plt: Any, series: Sequence[RunSeries], costs: Sequence[float], label: str) -> Any:
    """Return a figure of accuracy with its interval against a cost on a logarithmic axis.

    A dashed line is the Pareto front: no other run is both cheaper and better.
    """
    figure, axis = plt.subplots(figsize=(6, 3.8))
    ink = plt.rcParams["text.color"]
    costs = [max(cost, 1.0) for cost in costs]
    points = [(cost, run.accuracy) for cost, run in zip(costs, series, strict=True)]
    front = [points[number] for number in pareto_front(points)]
    axis.plot(*zip(*front, strict=True), "--", color=ink, linewidth=1, alpha=0.6, zorder=1)
    for number, (run, cost) in enumerate(zip(series, costs, strict=True)):
        low, high = run.ci95
        below, above = max(0, run.accuracy - low), max(0, high - run.accuracy)
        colour = get_colour(number)
        axis.errorbar(cost, run.accuracy, [[below], [above]], fmt="o", color=colour, capsize=3)
        axis.annotate(
            escape_mathtext(run.name),
            (cost, run.accuracy),
            textcoords="offset points",
            xytext=(7, 4),
            fontsize=8,
            color=ink,
        )
    axis.set(xlabel=label, ylabel=f"{series[0].part} accuracy, 95 % interval", xscale="log")
    axis.margins(x=0.3)
    _place_ticks(axis)
    return figure


def _place_ticks(axis: Any) -> None:
    """Mark 1, 2 and 5 of each power of ten; the powers alone where the costs span many."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axis.get_xlim()
    marks = (1.0, 2.0, 5.0) if high / low < _MANY_POWERS else (1.0,)
    axis.xaxis.set_major_locator(LogLocator(subs=marks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(_format_tick)


def get_pyplot() -> Any:
    """Return `matplotlib.pyplot`, drawing into files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all, with a grid and without a box, and close it."""
    for axis in figure.axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_write(path, path.suffix) as scratch:
        figure.savefig(scratch, dpi=110)
    get_pyplot().close(figure)


def to_svg(draw: Callable[[Any], Any]) -> str:
    """Return a figure as SVG in the page's text colour, without a background.

    The SVG is as wide as its container allows, reads in light and dark, and prints.

    Args:
        draw: From `matplotlib.pyplot` to a figure.
    """
    plt = get_pyplot()
    with plt.rc_context(_SVG_STYLE):
        figure = draw(plt)
        for axis in figure.axes:
            axis.spines[["top", "right"]].set_visible(False)
            if not axis.images:
                axis.grid(alpha=0.25)
        buffer = io.StringIO()
        no_date = {"Date": None}
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", transparent=True, metadata=no_date
        )
        plt.close(figure)
    return _to_page_svg(buffer.getvalue())


def escape_mathtext(name: str) -> str:
    """Return a name that matplotlib does not take for mathematics."""
    return name.replace("$", r"\$")


def _draw_lines(axis: Any, run: RunSeries, quantity: str, colour: str) -> None:
    """Draw a quantity of train and val by epoch, with a star at the epoch that was kept."""
    epochs = range(1, len(run.history) + 1)
    for part, style in _LINE_STYLES.items():
        values = [row.get(f"{part}_{quantity}") for row in run.history]
        label = escape_mathtext(run.name) if part == "val" else None
        axis.plot(epochs, values, style, color=colour, linewidth=1.4, label=label)
    best = find_kept_epoch(run)
    best_value = run.history[best].get(f"val_{quantity}")
    axis.plot(best + 1, best_value, "*", color=colour, markersize=11)


def _draw_dots(axis: Any, run: RunSeries, quantity: str, colour: str) -> None:
    """Draw a quantity of train and val of a solved head at epoch 1."""
    for part, fill in _DOT_FILLS.items():
        label = escape_mathtext(run.name) if part == "val" else None
        value = run.final[part][quantity]
        axis.plot(1, value, "o", color=colour, fillstyle=fill, markersize=4, label=label)


def find_kept_epoch(run: RunSeries) -> int:
    """Return the row of the epoch that the last phase kept: its validation loss is the run's."""
    kept_loss = run.final["val"]["loss"]
    numbers = [number for number, row in enumerate(run.history) if "epoch" in row]
    last_phase = run.history[numbers[-1]]["phase"]
    numbers = [number for number in numbers if run.history[number]["phase"] == last_phase]
    return min(numbers, key=lambda number: abs(run.history[number]["val_loss"] - kept_loss))


def _format_tick(value: float, _: int) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    if value >= 1e3:
        return f"{value / 1e3:g} k"
    return f"{value:g}"


def _to_page_svg(text: str) -> str:
    """Return matplotlib's SVG as an element of the page: its ink, its width, no metadata."""
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    size = re.search(r'width="([\d.]+)pt" height="[\d.]+pt"', text)
    assert size is not None
    responsive = f'role="img" style="max-width:{size[1]}pt;width:100%;height:auto"'
    return text.replace(size[0], responsive, 1)

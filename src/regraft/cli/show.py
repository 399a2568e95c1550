"""What people see: tables, sentences and progress, made from the same plain data that `--json` prints."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table

from regraft.errors import escape_control
from regraft.system.progress import ProgressReporter


class _Plain(RenderHook):
    """Spells out what names bring along that would do something to a terminal."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Spelled(one) for one in renderables]


class _Spelled:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield (
                segment if segment.control else Segment(escape_control(segment.text), segment.style)
            )


out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True, highlight=False, soft_wrap=True)
for _console in (out, err):
    _console.push_render_hook(_Plain())


class Shown(ProgressReporter):
    """Shows what a run says and how far it is, on stderr."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def log(self, text: str) -> None:
        self.bars.console.print(text, markup=False)

    def progress(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total or None)
        self.bars.update(self.tasks[what], completed=done, total=total or None)
        if total and done >= total:
            self.bars.remove_task(self.tasks.pop(what))


@contextmanager
def progress(quiet: bool) -> Iterator[ProgressReporter]:
    """Give a reporter that shows bars, or one that shows nothing."""
    if quiet:
        yield ProgressReporter()
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        yield Shown(bars)


def as_json(values: Any) -> None:
    """Print one object as JSON on stdout."""
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def run(
    scores: dict[str, Any], path: str, cautions: Sequence[str] = (), written: bool = True
) -> None:
    """Print what a run reached and cost, after what must be read first."""
    warned(cautions)
    table = Table(
        "part", "accuracy", "95 % interval", "log-loss", "images", box=None, pad_edge=False
    )
    for part in ("train", "val", "test", "all"):
        if part in scores:
            one = scores[part]
            table.add_row(
                part,
                f"{one['accuracy']:.4f}",
                interval(one["ci95"]),
                f"{one['loss']:.4f}",
                f"{one['n']:,}",
            )
    out.print(table)
    seconds, parameters = scores["seconds"], scores["parameters"]
    out.print(
        f"{seconds['total']:.1f} s ({', '.join(f'{name} {seconds[name]:.1f}' for name in ('load', 'extract', 'train', 'evaluate'))}), "
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters trained, {scores['peak_memory_mb']:,} MB at most"
    )
    shut = "test" not in scores and not (Path(path) / "test.json").is_file()
    opens = (
        f"; the test part is shut, `regraft evaluate {shlex.quote(path)} --split test` opens it"
        if shut
        else ""
    )
    out.print(f"{'written to' if written else 'the run in'} {path}{opens}", markup=False)


def warned(cautions: Sequence[str]) -> None:
    """Print what must be read before any number."""
    for line in cautions:
        out.print(line, style="bold red", markup=False)


def leaderboard(board: dict[str, Any], path: str) -> None:
    """Print the rows of a comparison, the best first, and the verdict."""
    warned(board["warnings"])
    rows = board["rows"]
    several = len({row["backbone"] for row in rows}) > 1
    heads = [
        "",
        *(["backbone"] if several else []),
        "technique",
        "val",
        "test",
        "95 % interval",
        "gap",
        "extract",
        "train",
        "trained",
        "of",
    ]
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 + several else "right", no_wrap=True)
    for row in rows:
        if "error" in row:
            continue
        test = row.get("test")
        mark = (
            "→"
            if row["name"] == board["selected"]
            else "≈"
            if test and not row.get("versus_selected", {"real": True})["real"]
            else ""
        )
        cells = [
            mark,
            *([row["backbone"]] if several else []),
            row["technique"] + (f" #{row['seed']}" if board["seeds"] else ""),
            f"{row['val']['accuracy']:.4f}",
        ]
        cells += [f"{test['accuracy']:.4f}", interval(test["ci95"])] if test else ["shut", ""]
        cells += [
            f"{row['train']['accuracy'] - row['val']['accuracy']:+.4f}",
            f"{row['seconds']['extract'] + row.get('shared_seconds', 0.0):.1f} s",
            f"{row['seconds']['train']:.1f} s",
        ]
        cells += [_short(row["parameters"]["trainable"]), _short(row["parameters"]["total"])]
        table.add_row(*cells)
    out.print(table)
    out.print(
        "→ selected on val   ≈ not told apart from it on test (McNemar, 5 %)   gap: train − val, both in eval mode   "
        "extract: with its share of what was computed before   trained: parameters",
        style="dim",
    )
    for row in board["seeds"]:
        test = (
            f", test {row['test_mean']:.4f} ± {row['test_spread']:.4f}"
            if "test_mean" in row
            else ""
        )
        out.print(
            f"{row['backbone']} {row['technique']}: {row['seeds']} seeds, val {row['val_mean']:.4f} ± {row['val_spread']:.4f}{test}",
            markup=False,
        )
    for row in rows:
        if "error" in row:
            out.print(f"failed: {row['name']}: {row['error']}", markup=False, style="red")
    out.print()
    out.print(board["verdict"], markup=False)
    out.print(
        f"written to {path}: leaderboard.csv, leaderboard.json, curves.png, accuracy-against-seconds.png, and a folder for each row",
        markup=False,
    )
    out.print(
        f"regraft report {shlex.quote(path)}   puts the evidence on one page",
        markup=False,
        style="dim",
    )


def probe(told: dict[str, Any], path: str) -> None:
    """Print what a probe found: the cells, the recommendation, the learning curve, and how far the scores are to be trusted."""
    images, places = told["images"], told["places"]
    out.print(
        f"{told['data']}: {images['train']:,} training images, judged on {images['val']:,} of val; the test part is shut",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(
        (
            "backbone",
            "px",
            "images",
            "best place alone",
            "val",
            "k-NN",
            "end",
            "a few",
            "all",
            "pass",
        )
    ):
        table.add_column(head, justify="left" if number in (0, 3) else "right", no_wrap=True)
    for cell in dict.fromkeys((row["backbone"], row["resolution"]) for row in places):
        mine = [row for row in places if (row["backbone"], row["resolution"]) == cell]
        alone = [row for row in mine if row["kind"] == "single"]
        best = max(alone, key=lambda row: row["accuracy"])
        joined = {row["kind"]: f"{row['accuracy']:.4f}" for row in mine}
        table.add_row(
            cell[0],
            str(cell[1]),
            f"{best['images']:,}",
            best["places"][0],
            f"{best['accuracy']:.4f}",
            f"{best['knn']:.4f}",
            f"{alone[-1]['accuracy']:.4f}",
            joined.get("greedy", ""),
            joined.get("all", ""),
            f"{alone[-1]['seconds']:.1f} s",
        )
    out.print(table)
    out.print(
        f"k-NN: {told['neighbours']} vote   a few, all: places side by side   end: the network's end alone   pass: one over train and val",
        style="dim",
    )
    out.print()
    for row in told["recommendations"]:
        low, high = row["ci95"]
        where = row["places"][0] if len(row["places"]) == 1 else f"{len(row['places'])} places"
        out.print(
            f"{row['budget']:9} {row['backbone']} at {row['resolution']} px, {where}: val {row['accuracy']:.4f} ({low:.3f}–{high:.3f})",
            markup=False,
        )
        out.print(f"          {row['why']}", markup=False, style="dim")
    for one in (*told["skipped"], *told["dropped"]):
        out.print(
            f"left out: {one['name']}: {one.get('error') or one['why']}", markup=False, style="dim"
        )
    forecast = told["learning_curve"]["forecast"]
    if forecast:
        low, high = forecast["ci95"]
        gain = f"{forecast['gain'] * 100:+.1f} points to {forecast['accuracy']:.3f} ({low:.3f}–{high:.3f})"
        out.print(
            f"twice the images ({forecast['images']:,}) would bring about {gain}, if the error goes on falling as it did"
        )
    for row in told["hit_rate"]:
        ranks = f"Kendall {row['kendall']:+.2f} (p {row['p']:.2f}), Spearman {row['spearman']:+.2f}"
        out.print(
            f"{row['score']} ranked {row['runs']} cells fine-tuned by {row['technique']} with {ranks}",
            markup=False,
        )
    if not told["hit_rate"]:
        out.print(
            "no fine-tuned runs of three or more of these cells were found, so nothing is known yet of how well the scores rank them",
            style="dim",
        )
    out.print()
    out.print(told["verdict"], markup=False)
    out.print(
        f"written to {path}: probe.json, places.csv, three pictures, and plan-fastest.toml, plan-balanced.toml, plan-best.toml for",
        markup=False,
    )
    asked = "".join(
        f" --{name.replace('_', '-')} {value}" for name, value in told["asked"].items() if value
    )
    place = shlex.quote(path)
    out.print(
        f"  regraft fit DATA --plan {place}/plan-best.toml{asked}   or   regraft compare DATA --from-probe {place}{asked}",
        markup=False,
    )


def explanation(told: dict[str, Any]) -> None:
    """Print in plain words what a plan would do."""
    plan, images, parameters = told["plan"], told["images"], told["parameters"]
    out.print(
        f"{plan['technique']} of {plan['backbone']} ({plan['weights']} weights) at {plan['resolution']} px on {told['data']}",
        markup=False,
    )
    out.print(
        f"{images['train']:,} images to train on, {images['val']:,} to choose by, {images['test']:,} shut away; {told['classes']} classes"
    )
    until = plan["until"]
    where = (
        "the end of the network"
        if not until
        else until
        if isinstance(until, str)
        else ", ".join(until)
    )
    out.print(
        f"features are taken at {where}; head: {plan['head'] + ', ' if plan['head'] else ''}class layer",
        markup=False,
    )
    for number, phase in enumerate(told["phases"], 1):
        out.print()
        out.print(
            f"Phase {number}: train {phase['train']}"
            + (
                " by solving it"
                if phase["optimizer"] == "lbfgs"
                else f", {phase['optimizer']}, up to {phase['epochs']} epochs"
            )
        )
        if phase["frozen_parameters"]:
            out.print(f"  frozen: {phase['frozen_parameters']:,} parameters and their buffers")
            if phase["kept"]:
                saved = max(0.0, phase["seconds_without_cache"] - phase["seconds"])
                out.print(
                    f"  computed once and kept: {phase['cache_bytes'] / 1e6:,.1f} MB; saves about {saved:,.0f} s"
                )
            out.print(f"  {phase['decision']}", markup=False)
        else:
            out.print("  frozen: nothing")
        out.print(
            f"  trained: {phase['trained_parameters_of_backbone']:,} parameters of the backbone, and the head"
        )
        out.print(f"  about {phase['seconds']:,.0f} s")
    out.print()
    out.print(
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters trained in all; about {told['seconds']:,.0f} s. Nothing was run."
    )


def ladder(name: str, resolution: int, weights: str, rungs: Sequence[dict[str, Any]]) -> None:
    """Print the places at which a backbone can be cut."""
    out.print(f"{name} at {resolution} px, {weights}", markup=False)
    table = Table(
        "stage",
        "output",
        "parameters",
        "multiply-adds",
        "kept when frozen up to here",
        "pooled",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for rung in rungs:
        shape = " × ".join(map(str, rung["shape"]))
        table.add_row(
            rung["name"],
            shape,
            f"{rung['parameters']:,}",
            f"{rung['multiply_adds'] / 1e6:,.1f} M",
            f"{rung['map_bytes']:,} B",
            f"{rung['pooled_bytes']:,} B",
        )
    out.print(table)
    out.print("bytes are those of one image in the cache, float16", style="dim")


def recipes(rows: Sequence[dict[str, Any]]) -> None:
    """Print the recipes with where they come from."""
    table = Table(
        "recipe", "technique", "backbone", "reported val", "source", box=None, pad_edge=False
    )
    for row in rows:
        reported = row["reported"].get("val_accuracy")
        table.add_row(
            row["name"],
            row["technique"],
            row["backbone"],
            "" if reported is None else f"{reported:.4f}",
            row["source"],
        )
    out.print(table)
    out.print(
        "\nregraft recipes show NAME   regraft recipes run NAME DATA   regraft recipes compare NAME... DATA",
        markup=False,
    )


def recipe(told: dict[str, Any]) -> None:
    """Print a recipe: its words, plan, layers and parameters, and what was reported."""
    out.print(
        f"{told['name']}: {told['about']}\nfrom {told['source']}; {told['technique']}", markup=False
    )
    if told["assumed"]:
        out.print(f"assumed: {told['assumed']}", markup=False)
    plan, counts = told["plan"], told["parameters"]
    out.print(
        f"\n{plan['backbone']} at {plan['resolution']} px, features at {plan['until'] or 'the end'}, head: {plan['head'] or 'class layer only'}",
        markup=False,
    )
    for phase in plan["phases"]:
        how = (
            "solved"
            if phase["optimizer"] == "lbfgs"
            else f"{phase['optimizer']} at {phase['lr']:g}, {phase['epochs']} epochs of batches of {phase['batch_size']}"
        )
        out.print(f"train {phase['train']}: {how}", markup=False)
    table = Table(
        "layer", "kind", "output", "parameters", "statistics", "", box=None, pad_edge=False
    )
    for row in told["layers"]:
        shape = " × ".join(map(str, row["shape"])) if row["shape"] else ""
        table.add_row(
            row["name"],
            row["kind"],
            shape,
            f"{row['parameters']:,}",
            f"{row['statistics'] or '':,}" if row["statistics"] else "",
            ("frozen" if row["frozen"] else "trained") if row["parameters"] else "",
        )
    out.print()
    out.print(table)
    out.print(
        f"\n{counts['total']:,} parameters, {counts['trainable']:,} trained, {counts['frozen']:,} frozen; {counts['statistics']:,} moving statistics besides"
    )
    reported = told["reported"].get("parameters", {})
    if reported:
        out.print(
            "reported: " + ", ".join(f"{count:,} {what}" for what, count in reported.items()),
            markup=False,
        )
    if told["counted"]:
        counted = told["counted"]
        total = counts["total"] + counts["statistics"] + counted["biases_total"]
        out.print(
            f"{counted['why']} {counts['total']:,} + {counts['statistics']:,} + {counted['biases_total']:,} = {total:,}",
            markup=False,
        )
    for what, value in told["reported"].items():
        if what != "parameters":
            out.print(f"reported {what.replace('_', ' ')}: {value}", markup=False)


def beside(told: Sequence[dict[str, Any]]) -> None:
    """Print what was reported beside what was measured."""
    table = Table(
        "recipe",
        "",
        "train acc",
        "train loss",
        "val acc",
        "val loss",
        "gap",
        "minutes",
        "trained",
        "of",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for one in told:
        for who, found in (("reported", one["reported"]), ("measured", one["measured"])):
            counts = found.get("parameters", {})
            gap = found.get(
                "gap",
                found["train_accuracy"] - found["val_accuracy"]
                if {"train_accuracy", "val_accuracy"} <= found.keys()
                else None,
            )
            values = [
                found.get(name)
                for name in ("train_accuracy", "train_loss", "val_accuracy", "val_loss")
            ]
            cells = ["–" if value is None else f"{value:.4f}" for value in values] + [
                "–" if gap is None else f"{gap:+.4f}"
            ]
            cells += ["–" if found.get("minutes") is None else f"{found['minutes']:.1f}"]
            cells += [
                f"{counts[name]:,}" if name in counts else "–" for name in ("trainable", "total")
            ]
            table.add_row(one["name"] if who == "reported" else "", who, *cells)
    out.print(table)
    out.print(
        "reported: of CIFAR-10, training figures while training, mostly judged on the test set   measured: train and val in eval mode",
        style="dim",
    )
    for one in told:
        found = one["measured"]
        if found["parameters"]["frozen"] and found["frozen_seconds"] is None:
            out.print(
                f"{one['name']}: the frozen part was not kept, so it was computed again every epoch",
                markup=False,
            )
        elif found["parameters"]["frozen"]:
            often = f"{found['frozen_seconds']:.1f} s once; in each of {found['epochs']} epochs about {found['frozen_every_epoch_seconds']:,.0f} s in all"
            out.print(f"{one['name']}: the frozen part took {often}", markup=False)
        out.print(
            f"{one['name']}: {found['images']['train']:,} training and {found['images']['val']:,} validation images, {one['path']}",
            markup=False,
        )


def pairs(rows: dict[str, str], head: str = "") -> None:
    """Print names with what they mean."""
    table = Table(box=None, pad_edge=False, show_header=False)
    if head:
        out.print(head, style="bold")
    for name, meaning in rows.items():
        table.add_row(name, meaning)
    out.print(table)


def interval(ci95: Sequence[float]) -> str:
    """Return a 95 % interval in words."""
    return f"{ci95[0]:.3f}–{ci95[1]:.3f}"


def _short(count: int) -> str:
    return (
        f"{count / 1e6:.2f}M"
        if count >= 1e6
        else f"{count / 1e3:.1f}k"
        if count >= 1e3
        else str(count)
    )

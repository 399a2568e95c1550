"""What people read of runs, comparisons and reports, made from what `--json` prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from regraft.cli.console import Values, make_table, out, print_lines, remark, say, warn
from regraft.system.timer import format_duration

_PARTS = ("train", "val", "test", "all")
_MAX_CLASSES = 30  # that fit a screen
_COVERAGE = 0.8  # at which the accuracy of the most confident predictions is printed
_LEGEND = (
    "→ selected on val   ≈ not significantly different from it on test (McNemar, 5 %)   "
    "gap: train − val, both in eval mode   extract: with this row's share of shared passes   "
    "trained: parameters"
)


def print_run(values: Values, held_out: bool = True) -> None:
    """Print what a new run reached and cost, after what must be read first."""
    warn(values["warnings"])
    _print_scores(values)
    say(f"written to {values['path']}{_describe_test(values['path'], held_out)}")


def _print_scores(values: Values) -> None:
    table = make_table("part", "accuracy", "95 % interval", "log-loss", "images")
    for part in _PARTS:
        if part in values:
            scores = values[part]
            table.add_row(
                part,
                f"{scores['accuracy']:.4f}",
                format_interval(scores["ci95"]),
                f"{scores['loss']:.4f}",
                f"{scores['n']:,}",
            )
    out.print(table)
    say(_describe_cost(values))


def _describe_cost(values: Values) -> str:
    seconds = values["seconds"]
    parameters = values["parameters"]
    steps = []
    for name in ("load", "extract", "train", "evaluate"):
        steps.append(f"{name} {format_duration(seconds[name])}")
    return (
        f"{format_duration(seconds['total'])} ({', '.join(steps)}), "
        f"{parameters['trainable']:,} of {parameters['total']:,} parameters trained, "
        f"{values['peak_memory_mb']:,} MB at most"
    )


def _describe_test(path: str, held_out: bool) -> str:
    if not held_out:
        return ""
    command = f"regraft evaluate {shlex.quote(path)} --split test"
    return f"; the test part is held out, `{command}` opens it"


def print_evaluation(values: Values, path: Path, held_out: bool) -> None:
    """Print what a run reached, by class, and its calibration."""
    warn(values["warnings"])
    _print_scores(values)
    say(f"the run in {path}{_describe_test(str(path), held_out)}")
    say()
    metrics = values["measures"]
    _print_classes(metrics["per_class"], values["part"])
    print_lines(_describe_metrics(metrics))
    if values.get("opened"):
        say(_describe_openings(values["opened"]))


def _print_classes(classes: Sequence[Values], part: str) -> None:
    table = make_table(f"class, on {part}", "images", "precision", "recall", "F1")
    weakest = sorted(classes, key=lambda row: float(row["f1"]))
    for row in weakest[:_MAX_CLASSES]:
        numbers = [f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
        table.add_row(row["name"], f"{row['n']:,}", *numbers)
    out.print(table)
    if len(weakest) > _MAX_CLASSES:
        remark(f"the {_MAX_CLASSES} weakest of {len(weakest):,} classes; --json has all")


def _describe_metrics(metrics: Values) -> list[str]:
    top5 = "" if metrics["top5"] is None else f", top-5 {metrics['top5']:.4f}"
    calibration = metrics["calibration"]
    scaled = ""
    if "temperature" in calibration:
        scaled = (
            f"; with the temperature {calibration['temperature']:.2f} fitted on val, "
            f"{calibration['error_after']:.4f}"
        )
    surest = next(row for row in metrics["coverage"] if row["coverage"] == _COVERAGE)
    return [
        f"balanced accuracy {metrics['balanced_accuracy']:.4f}, "
        f"macro F1 {metrics['macro_f1']:.4f}{top5}",
        f"expected calibration error {calibration['error']:.4f}{scaled}",
        f"on the most confident {_COVERAGE:.0%}: accuracy {surest['accuracy']:.4f} "
        f"(confidence {surest['confidence']:.2f} and more)",
    ]


def _describe_openings(opened: Sequence[str]) -> str:
    if len(opened) == 1:
        return f"the test part was opened once, at {opened[0]}"
    return f"the test part was opened {len(opened)} times, last {opened[-1]}"


def print_leaderboard(board: Values, path: Path) -> None:
    """Print the rows of a comparison, the best first, and the verdict."""
    warn(board["warnings"])
    finished = [row for row in board["rows"] if "error" not in row]
    failed = [row for row in board["rows"] if "error" in row]
    out.print(_leaderboard_table(board, finished))
    remark(_LEGEND)
    print_lines(_describe_seeds(row) for row in board["seeds"])
    for row in failed:
        say(f"failed: {row['name']}: {row['error']}", "red")
    say()
    say(board["verdict"])
    say(f"written to {path}: the leaderboard (CSV and JSON), two plots, and a folder for each row")
    remark(f"regraft report {shlex.quote(str(path))}   puts the evidence on one page")


def _leaderboard_table(board: Values, rows: Sequence[Values]) -> Table:
    backbones = {row["backbone"] for row in board["rows"]}
    names = ["technique"] if len(backbones) == 1 else ["backbone", "technique"]
    numbers = ("val", "test", "95 % interval", "gap", "extract", "train", "trained", "of")
    table = make_table("", *names, *numbers, right_from=1 + len(names))
    for row in rows:
        cells = {
            "backbone": row["backbone"],
            "technique": row["technique"] + (f" #{row['seed']}" if board["seeds"] else ""),
        }
        shown = [cells[name] for name in names]
        table.add_row(_mark(row, board["selected"]), *shown, *_number_cells(row))
    return table


def _mark(row: Values, selected: str) -> str:
    if row["name"] == selected:
        return "→"
    is_worse = row.get("versus_selected", {"real": True})["real"]
    return "≈" if row.get("test") and not is_worse else ""


def _number_cells(row: Values) -> list[str]:
    test = row.get("test")
    tested = ["held out", ""]
    if test:
        tested = [f"{test['accuracy']:.4f}", format_interval(test["ci95"])]
    extract = row["seconds"]["extract"] + row.get("shared_seconds", 0.0)
    return [
        f"{row['val']['accuracy']:.4f}",
        *tested,
        f"{row['train']['accuracy'] - row['val']['accuracy']:+.4f}",
        format_duration(extract),
        format_duration(row["seconds"]["train"]),
        _format_count(row["parameters"]["trainable"]),
        _format_count(row["parameters"]["total"]),
    ]


def _describe_seeds(row: Values) -> str:
    text = (
        f"{row['backbone']} {row['technique']}: {row['seeds']} seeds, "
        f"val {row['val_mean']:.4f} ± {row['val_spread']:.4f}"
    )
    if "test_mean" in row:
        text += f", test {row['test_mean']:.4f} ± {row['test_spread']:.4f}"
    return text


def print_report(values: Values) -> None:
    """Print the verdict of a report and where it is."""
    warn(values["warnings"])
    say(values["verdict"])
    for pair in values["pairs"]:
        remark(f"  {pair['sentence']}")
    say(f"written to {values['path']}")


def format_interval(ci95: Sequence[float]) -> str:
    """Return a 95 % interval as "0.912–0.956"."""
    return f"{ci95[0]:.3f}–{ci95[1]:.3f}"


def _format_count(count: int) -> str:
    if count >= 1e6:
        return f"{count / 1e6:.2f}M"
    if count >= 1e3:
        return f"{count / 1e3:.1f}k"
    return str(count)

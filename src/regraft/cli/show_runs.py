"""What the verbs on finished runs print: renderings of the objects that `--json` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from regraft.cli.show import interval, out, run, warned
from regraft.errors import escape_control

_MOST = 30  # classes and findings that fit a screen


def evaluation(scores: dict[str, Any], path: str) -> None:
    """Print what a run reached, by class, and how far its probabilities are to be believed."""
    run(scores, path, scores["warnings"], written=False)
    part, found = scores["part"], scores["measures"]
    out.print()
    table = Table(
        f"class, on {part}", "images", "precision", "recall", "F1", box=None, pad_edge=False
    )
    rows = sorted(found["per_class"], key=lambda row: row["f1"])
    for row in rows[:_MOST]:
        table.add_row(
            row["name"],
            f"{row['n']:,}",
            *(f"{row[what]:.3f}" for what in ("precision", "recall", "f1")),
        )
    out.print(table)
    if len(rows) > _MOST:
        out.print(f"the {_MOST} weakest of {len(rows):,} classes; --json has all", style="dim")
    top5 = "" if found["top5"] is None else f", top-5 {found['top5']:.4f}"
    out.print(
        f"balanced accuracy {found['balanced_accuracy']:.4f}, macro F1 {found['macro_f1']:.4f}{top5}"
    )
    calibration = found["calibration"]
    after = ""
    if "temperature" in calibration:
        after = f"; divided by the temperature {calibration['temperature']:.2f} fitted on val, {calibration['error_after']:.4f}"
    out.print(f"expected calibration error {calibration['error']:.4f}{after}")
    half = next(row for row in found["coverage"] if row["coverage"] == 0.8)
    out.print(
        f"answering only the surest 80 %: accuracy {half['accuracy']:.4f} (probability {half['confidence']:.2f} and more)"
    )
    if scores.get("opened"):
        times = len(scores["opened"])
        out.print(
            f"the test part was opened {'once, at' if times == 1 else f'{times} times, last'} {scores['opened'][-1]}"
        )


def report(told: dict[str, Any], path: str) -> None:
    """Print the verdict of a report and where it is."""
    warned(told["warnings"])
    out.print(told["verdict"], markup=False)
    for one in told["pairs"]:
        out.print(f"  {one['sentence']}", markup=False, style="dim")
    out.print(f"written to {path}", markup=False)


def check(told: dict[str, Any], path: Path | None) -> None:
    """Print what is wrong with the images."""
    counts, across = told["counts"], told["across"]
    out.print(told["verdict"], markup=False, style="bold")
    table = Table("finding", "count", "across parts", box=None, pad_edge=False)
    table.add_row("exact duplicates, groups", f"{counts['exact']:,}", f"{across['exact']:,}")
    table.add_row("near duplicates, pairs", f"{counts['near']:,}", f"{across['near']:,}")
    table.add_row("doubtful labels", f"{counts['suspects']:,}", "")
    table.add_row("odd or unreadable files", f"{counts['odd']:,}", "")
    table.add_row("largest class / smallest, train", f"{told['balance']['ratio']:.1f}", "")
    out.print(table)
    for kind in ("exact", "near"):
        for group in told[kind][:5]:
            named = " = ".join(
                f"{key} ({part}, {label})"
                for key, part, label in zip(
                    group["keys"], group["parts"], group["labels"], strict=True
                )
            )
            out.print(f"{kind}: {named}", markup=False)
    from regraft.workflow.checking import doubt

    for one in told["suspects"][:10]:
        out.print(
            f"label: {one['key']} ({one['part']}) says {one['label']}, {doubt(one)}",
            markup=False,
        )
    for one in told["odd"][:10]:
        out.print(f"odd: {one['key']}: {one['why']}", markup=False)
    where = (
        f"written to {path}"
        if path
        else "--json lists up to 200 findings of each kind, --out check.html shows them"
    )
    out.print(
        f"{where}; a person should look before anything is deleted", markup=False, style="dim"
    )


def predictions(rows: Iterable[dict[str, Any]], kind: str, top: int) -> None:
    """Print predictions as they come: a table for people, CSV, JSON lines, or one JSON object."""
    import csv

    from regraft.inference.storage import row_cells, row_columns

    lines = csv.writer(sys.stdout, lineterminator="\n")
    for number, row in enumerate(rows):
        if kind == "csv":
            if not number:
                lines.writerow(row_columns(top))
            lines.writerow(row_cells(row, top))
        elif kind == "json":
            sys.stdout.write(json.dumps(row) + "\n")
        elif kind == "object":
            sys.stdout.write(("," if number else '{"predictions": [') + "\n" + json.dumps(row))
        else:
            said = "  ".join(f"{name} {chance:.3f}" for name, chance in row["ranked"])
            said = (
                f"cannot be read: {row['error']}"
                if row["error"]
                else f"not sure: {said}"
                if row["abstained"]
                else said
            )
            sys.stdout.write(f"{escape_control(row['path'])}  {escape_control(said)}\n")
    if kind == "object":
        sys.stdout.write("\n]}\n")


def written(told: dict[str, Any]) -> None:
    """Print what a file of predictions has come to."""
    rest = [
        f"{told[what]:,} {words}"
        for what, words in (("unreadable", "could not be read"), ("abstained", "abstained"))
        if told[what]
    ]
    before = told["rows"] - told["new"]
    more = f", {before:,} of them from before" if before else ""
    out.print(
        f"{told['out']}: {told['rows']:,} images{more}{''.join(f'; {one}' for one in rest)}; {told['seconds']:,.1f} s",
        markup=False,
    )


def exported(told: dict[str, Any]) -> None:
    """Print what an export is, and how near its answers are to the run's."""
    parity = told["parity"]
    out.print(f"{told['out']}: {told['bytes'] / 1e6:,.1f} MB", markup=False)
    same = f"probabilities differ by at most {parity['difference']:.1e}, {parity['n'] - parity['other_class']} get the same class"
    out.print(
        f"beside the run in float32 on {parity['n']} {parity['images']} images: {same}",
        markup=False,
    )
    if "as_fitted" in told:
        usual = told["as_fitted"]
        apart = f"probabilities differ by up to {usual['difference']:.2f}, {usual['other_class']} images get another class"
        out.print(
            f"the export computes in float32, the run was fitted in {usual['arithmetic']}: so done, {apart}",
            markup=False,
        )
    if "quantised" in told:
        cost = told["quantised"]
        before, after = cost["float32"], cost["int8"]
        out.print(
            f"int8: accuracy {after['accuracy']:.4f} ({interval(after['ci95'])}) instead of {before['accuracy']:.4f} on {cost['n']:,} validation images, "
            f"a drop of {cost['drop'] * 100:.2f} points; {cost['other_class']:,} images get another class",
            markup=False,
        )

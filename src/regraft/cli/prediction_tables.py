"""What people read of predictions, exports and features; also predictions as CSV and JSON lines."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.cli.console import Values, say
from regraft.cli.tables import format_interval
from regraft.errors import escape_control
from regraft.system.timer import format_duration

if TYPE_CHECKING:
    from regraft.commands.embed import Embedding
    from regraft.inference.classifier import Prediction


def print_predictions(predictions: Iterable[Prediction], form: str, top: int) -> None:
    """Print predictions as they come.

    Args:
        predictions: The predictions.
        form: "table" for people, "csv", "json" for a line each, or "object" for one JSON object.
        top: Classes to show.
    """
    rows = (prediction.to_json(top) for prediction in predictions)
    if form == "csv":
        _print_csv(rows, top)
    elif form == "object":
        _print_object(rows)
    else:
        write = json.dumps if form == "json" else _describe_prediction
        for row in rows:
            sys.stdout.write(f"{write(row)}\n")


def _print_csv(rows: Iterable[Values], top: int) -> None:
    from regraft.inference.storage import row_cells, row_columns

    lines = csv.writer(sys.stdout, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:  # a mistake is said before anything is printed
            lines.writerow(row_columns(top))
        lines.writerow(row_cells(row, top))


def _print_object(rows: Iterable[Values]) -> None:
    for number, row in enumerate(rows):
        before = "," if number else '{"predictions": ['
        sys.stdout.write(f"{before}\n{json.dumps(row)}")
    sys.stdout.write("\n]}\n")


def _describe_prediction(row: Values) -> str:
    ranked = "  ".join(f"{name} {probability:.3f}" for name, probability in row["ranked"])
    text = ranked
    if row["error"]:
        text = f"cannot be read: {row['error']}"
    elif row["abstained"]:
        text = f"not sure: {ranked}"
    return f"{escape_control(row['path'])}  {escape_control(text)}"


def print_summary(values: Values) -> None:
    """Print what a file of predictions has come to."""
    before = values["rows"] - values["new"]
    text = f"{values['out']}: {values['rows']:,} images"
    if before:
        text += f", {before:,} of them from before"
    if values["unreadable"]:
        text += f"; {values['unreadable']:,} could not be read"
    if values["abstained"]:
        text += f"; {values['abstained']:,} abstained"
    say(f"{text}; {format_duration(values['seconds'])}")


def print_export(values: Values) -> None:
    """Print what an export is, and how near its answers are to the run's."""
    for line in _describe_export(values):
        say(line)


def _describe_export(values: Values) -> Iterator[str]:
    parity = values["parity"]
    same = parity["n"] - parity["other_class"]
    yield f"{values['out']}: {values['bytes'] / 1e6:,.1f} MB"
    yield (
        f"compared with the run in float32 on {parity['n']} {parity['images']} images: "
        f"probabilities differ by at most {parity['difference']:.1e}, {same} get the same class"
    )
    if "as_fitted" in values:
        usual = values["as_fitted"]
        yield (
            f"compared with the run in {usual['arithmetic']}, in which it was fitted: "
            f"probabilities differ by up to {usual['difference']:.2f}, "
            f"{usual['other_class']} images get another class"
        )
    if "quantised" in values:
        yield _describe_int8(values["quantised"])


def _describe_int8(cost: Values) -> str:
    before = cost["float32"]
    after = cost["int8"]
    return (
        f"int8: accuracy {after['accuracy']:.4f} ({format_interval(after['ci95'])}) instead of "
        f"{before['accuracy']:.4f} on {cost['n']:,} validation images, a drop of "
        f"{cost['drop'] * 100:.2f} points; {cost['other_class']:,} images get another class"
    )


def describe_embedding(embedding: Embedding, path: str | Path) -> Values:
    """Return what `regraft embed --json` prints."""
    images, features = embedding.features.shape
    plan = embedding.plan
    return {
        "path": str(path),
        "images": images,
        "features": features,
        "backbone": plan.backbone,
        "resolution": plan.resolution,
        "until": plan.until,
    }


def print_embedding(values: Values) -> None:
    """Print how many features were written."""
    say(
        f"{values['features']:,} features of {values['images']:,} images from "
        f"{values['backbone']} at {values['resolution']} px written to {values['path']}"
    )

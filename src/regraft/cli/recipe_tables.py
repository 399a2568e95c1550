"""What people read of recipes, made from what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from regraft.cli.console import Values, make_table, out, print_lines, remark, say
from regraft.cli.plan_tables import describe_layers, format_shape
from regraft.system.timer import format_duration

_COMPARED = ("recipe", "", "train acc", "train loss", "val acc", "val loss", "gap", "time")
_SCORES = ("train_accuracy", "train_loss", "val_accuracy", "val_loss")
_MISSING = "–"


def print_recipes(rows: Sequence[Values]) -> None:
    """Print the recipes with where they come from."""
    table = make_table("recipe", "technique", "backbone", "reported val", "source")
    for row in rows:
        accuracy = row["reported"].get("val_accuracy")
        reported = "" if accuracy is None else f"{accuracy:.4f}"
        table.add_row(row["name"], row["technique"], row["backbone"], reported, row["source"])
    out.print(table)
    say(
        "\nregraft recipes show NAME   regraft recipes run NAME DATA   "
        "regraft recipes compare NAME... DATA"
    )


def print_recipe(values: Values) -> None:
    """Print a recipe: its words, plan, layers and parameters, and what was reported."""
    say(f"{values['name']}: {values['about']}")
    say(f"from {values['source']}; {values['technique']}")
    if values["assumed"]:
        say(f"assumed: {values['assumed']}")
    say()
    print_lines(_describe_plan(values["plan"]))
    say()
    _print_layers(values["layers"])
    say()
    print_lines(_describe_parameters(values))
    for name, value in values["reported"].items():
        if name != "parameters":
            say(f"reported {name.replace('_', ' ')}: {value}")


def _describe_plan(plan: Values) -> Iterator[str]:
    layers = describe_layers(plan["until"], "the end")
    head = plan["head"] or "class layer only"
    yield f"{plan['backbone']} at {plan['resolution']} px, features at {layers}, head: {head}"
    for phase in plan["phases"]:
        how = "L-BFGS"
        if phase["optimizer"] != "lbfgs":
            how = (
                f"{phase['optimizer']} at {phase['lr']:g}, {phase['epochs']} epochs of batches of "
                f"{phase['batch_size']}"
            )
        yield f"train {phase['train']}: {how}"


def _print_layers(layers: Sequence[Values]) -> None:
    table = make_table("layer", "kind", "output", "parameters", "statistics", "")
    for layer in layers:
        state = ""
        if layer["parameters"]:
            state = "frozen" if layer["frozen"] else "trained"
        table.add_row(
            layer["name"],
            layer["kind"],
            format_shape(layer["shape"] or ()),
            f"{layer['parameters']:,}",
            f"{layer['statistics']:,}" if layer["statistics"] else "",
            state,
        )
    out.print(table)


def _describe_parameters(values: Values) -> Iterator[str]:
    counts = values["parameters"]
    yield (
        f"{counts['total']:,} parameters, {counts['trainable']:,} trained, "
        f"{counts['frozen']:,} frozen; {counts['statistics']:,} moving statistics besides"
    )
    reported = values["reported"].get("parameters", {})
    if reported:
        named = ", ".join(f"{count:,} {name}" for name, count in reported.items())
        yield f"reported: {named}"
    if values["counted"]:
        counted = values["counted"]
        parts = (counts["total"], counts["statistics"], counted["biases_total"])
        terms = " + ".join(f"{count:,}" for count in parts)
        yield f"{counted['why']} {terms} = {sum(parts):,}"


def print_measured(rows: Sequence[Values]) -> None:
    """Print what was measured beside what was reported."""
    table = make_table(*_COMPARED, "trained", "of", right_from=2)
    for row in rows:
        table.add_row(row["name"], "reported", *_score_cells(row["reported"]))
        table.add_row("", "measured", *_score_cells(row["measured"]))
    out.print(table)
    remark(
        "reported: of CIFAR-10, training figures while training, mostly scored on the test set   "
        "measured: train and val in eval mode"
    )
    for row in rows:
        print_lines(_describe_run(row))


def _score_cells(scores: Values) -> list[str]:
    cells = [_format(scores.get(name), ".4f") for name in _SCORES]
    gap = scores.get("gap")
    if gap is None and {"train_accuracy", "val_accuracy"} <= scores.keys():
        gap = scores["train_accuracy"] - scores["val_accuracy"]
    cells.append(_format(gap, "+.4f"))
    minutes = scores.get("minutes")
    cells.append(_MISSING if minutes is None else format_duration(60 * minutes))
    counts: Mapping[str, Any] = scores.get("parameters", {})
    cells.append(_format(counts.get("trainable"), ","))
    cells.append(_format(counts.get("total"), ","))
    return cells


def _format(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)


def _describe_run(row: Values) -> Iterator[str]:
    measured = row["measured"]
    name = row["name"]
    images = measured["images"]
    if measured["parameters"]["frozen"] and measured["frozen_seconds"] is None:
        yield f"{name}: the frozen part was not cached, so it was computed again every epoch"
    elif measured["parameters"]["frozen"]:
        once = format_duration(measured["frozen_seconds"])
        often = format_duration(measured["frozen_every_epoch_seconds"])
        yield (
            f"{name}: the frozen part took {once} once; in each of {measured['epochs']} epochs it "
            f"would take about {often} in all"
        )
    yield (
        f"{name}: {images['train']:,} training and {images['val']:,} validation images, "
        f"{row['path']}"
    )

"""What people read of a probe, made from what `--json` prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from rich.table import Table

from regraft.cli.console import Values, make_table, out, remark, say
from regraft.cli.tables import format_interval
from regraft.system.timer import format_duration

_HEADS = ("backbone", "px", "images", "best layer", "val", "k-NN", "end", "a few", "all", "pass")
_NO_RANKS = (
    "no fine-tuned runs of three or more of these candidates were found, so it is not known yet "
    "how well the scores rank them"
)


def print_probe(values: Values) -> None:
    """Print the candidates, recommendations, learning curve, and how far scores can be trusted."""
    images = values["images"]
    say(
        f"{values['data']}: {images['train']:,} training images, judged on {images['val']:,} of "
        "val; the test part is held out"
    )
    out.print(_candidates_table(values["places"]))
    remark(
        f"k-NN: {values['neighbours']} vote   a few, all: layers concatenated   end: the end of "
        "the network alone   pass: one over train and val"
    )
    say()
    _print_recommendations(values)
    _print_forecast(values["learning_curve"]["forecast"])
    _print_ranks(values["hit_rate"])
    say()
    _print_next_steps(values)


def _candidates_table(rows: Sequence[Values]) -> Table:
    table = make_table(*_HEADS, right_from=1)
    table.columns[3].justify = "left"
    for candidate in _candidates(rows):
        table.add_row(*_candidate_cells(candidate))
    return table


def _candidates(rows: Sequence[Values]) -> Iterator[list[Values]]:
    """Yield the rows of each backbone at each resolution."""
    keys = dict.fromkeys((row["backbone"], row["resolution"]) for row in rows)
    for key in keys:
        yield [row for row in rows if (row["backbone"], row["resolution"]) == key]


def _candidate_cells(rows: Sequence[Values]) -> list[str]:
    single = [row for row in rows if row["kind"] == "single"]
    best = max(single, key=lambda row: float(row["accuracy"]))
    end = single[-1]
    together = {row["kind"]: f"{row['accuracy']:.4f}" for row in rows}
    return [
        best["backbone"],
        str(best["resolution"]),
        f"{best['images']:,}",
        best["places"][0],
        f"{best['accuracy']:.4f}",
        f"{best['knn']:.4f}",
        f"{end['accuracy']:.4f}",
        together.get("greedy", ""),
        together.get("all", ""),
        format_duration(end["seconds"]),
    ]


def _print_recommendations(values: Values) -> None:
    for row in values["recommendations"]:
        layers = row["places"]
        taken = layers[0] if len(layers) == 1 else f"{len(layers)} layers"
        way = f"{row['backbone']} at {row['resolution']} px, {taken}"
        scored = f"val {row['accuracy']:.4f} ({format_interval(row['ci95'])})"
        say(f"{row['budget']:9} {way}: {scored}")
        remark(f"          {row['why']}")
    for row in (*values["skipped"], *values["dropped"]):
        remark(f"left out: {row['name']}: {row.get('error') or row['why']}")


def _print_forecast(forecast: Values | None) -> None:
    if forecast:
        say(
            f"twice the images ({forecast['images']:,}) would bring about "
            f"{forecast['gain'] * 100:+.1f} points to {forecast['accuracy']:.3f} "
            f"({format_interval(forecast['ci95'])}), if the error goes on falling as it did"
        )


def _print_ranks(rows: Sequence[Values]) -> None:
    for row in rows:
        say(
            f"{row['score']} ranked {row['runs']} candidates fine-tuned by {row['technique']} "
            f"with Kendall {row['kendall']:+.2f} (p {row['p']:.2f}), "
            f"Spearman {row['spearman']:+.2f}"
        )
    if not rows:
        remark(_NO_RANKS)


def _print_next_steps(values: Values) -> None:
    path = values["path"]
    say(values["verdict"])
    say(
        f"written to {path}: tables, three plots, and plan-fastest.toml, plan-balanced.toml, "
        "plan-best.toml for"
    )
    flags = ""
    for name, value in values["asked"].items():
        if value:
            flags += f" --{name.replace('_', '-')} {value}"
    folder = shlex.quote(path)
    say(
        f"  regraft fit DATA --plan {folder}/plan-best.toml{flags}   or   "
        f"regraft compare DATA --from-probe {folder}{flags}"
    )

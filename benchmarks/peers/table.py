"""The table: one row a participant, medians over the trials, and when each reached the accuracy that all of them reach."""

from __future__ import annotations

from statistics import median
from typing import Any

NOTES = """\
~ projected: the measured epochs, and the rest at the mean of those after the first; accuracy and memory are those of the measured epochs.
to .xyz: seconds from the start of the process until validation accuracy was first that high; – where it never was (of a ~ row: in the measured epochs).
images/s: training epochs after the first, without validation; of frozen regraft rows, extraction of train and val together; of its others, all epochs with
validation. Memory: the largest single process. Keras has random weights and another variant of the network: its accuracy says nothing."""


def common(runs: list[dict[str, Any]]) -> float | None:
    """Return the accuracy that every comparable participant reached in every trial: the lowest of their best."""
    best = [one["best"] for one in runs if one["comparable"] and not one["error"]]
    return min(best) if best else None


def first_reached(run: dict[str, Any], accuracy: float) -> float | None:
    """Return the seconds after which a run was first that accurate; None where it never was."""
    return min(
        (row["seconds"] for row in run["epochs"] if row["val_accuracy"] >= accuracy - 1e-6),
        default=None,
    )


def rows(names: list[str], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the table shows, as numbers."""
    accuracy = common(runs)
    found = []
    for name in names:
        of_it = [one for one in runs if one["participant"] == name]
        good = [one for one in of_it if not one["error"]]
        row: dict[str, Any] = {
            "participant": name,
            "errors": [one["error"] for one in of_it if one["error"]],
            "trials": len(good),
        }
        if good:
            to = (
                [first_reached(one, accuracy) for one in good]
                if accuracy is not None and good[0]["real_weights"]
                else [None]
            )
            row |= {
                "projected": good[0]["projected"],
                "wall": _spread([one["wall"] for one in good]),
                "to_common": None if None in to else _spread(to),
                "best": _spread([one["best"] for one in good]) if good[0]["real_weights"] else None,
                "rate": _spread([one["rate"] for one in good]) if good[0]["rate"] else None,
                "memory": max(one["memory"] for one in good),
                "work": median(one["work"]["total"] for one in good) if "work" in good[0] else None,
            }
        found.append(row)
    base = next(
        (
            row["wall"]["median"]
            for row in found
            if row["participant"] == "regraft" and row["trials"]
        ),
        None,
    )
    for row in found:
        row["ratio"] = row["wall"]["median"] / base if base and row["trials"] else None
    return found


def text(found: list[dict[str, Any]], accuracy: float | None) -> str:
    """Return the table as lines."""
    titles = [
        "participant",
        "wall, s",
        f"to {accuracy:.3f}, s" if accuracy is not None else "to –",
        "best val acc",
        "images/s",
        "peak MB",
        "wall ÷ regraft",
    ]
    lines = [titles]
    for row in found:
        if not row["trials"]:
            lines.append([row["participant"], (row["errors"] or ["did not run"])[0]])
            continue
        mark = "~" if row["projected"] else ""
        lines.append(
            [
                row["participant"],
                mark + _shown(row["wall"], 1),
                _shown(row["to_common"], 1),
                mark + _shown(row["best"], 3) if row["best"] else "–",
                _shown(row["rate"], 0),
                f"{row['memory']:,.0f}",
                f"{mark}{row['ratio']:.1f}" if row["ratio"] else "–",
            ]
        )
    widths = [
        max(len(line[column]) for line in lines if not column or len(line) == len(titles))
        for column in range(len(titles))
    ]
    shown = []
    for line in lines:
        rest = (
            [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            if len(line) == len(titles)
            else line[1:]
        )
        shown.append("  ".join([line[0].ljust(widths[0]), *rest]))
    work = [
        f"{row['participant']}: {row['work']:.1f} s of work inside the process"
        for row in found
        if row.get("work") is not None
    ]
    partly = [
        f"{row['participant']}: failed in {len(row['errors'])} trial(s): {row['errors'][0]}"
        for row in found
        if row["trials"] and row["errors"]
    ]
    return "\n".join([*shown, *work, *partly, NOTES])


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "smallest": min(values), "largest": max(values)}


def _shown(value: dict[str, float] | None, digits: int) -> str:
    if value is None:
        return "–"
    middle, low, high = (f"{value[key]:,.{digits}f}" for key in ("median", "smallest", "largest"))
    return middle if low == high else f"{middle} ({low}–{high})"

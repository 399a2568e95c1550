"""What people read of a check, made from what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from regraft.cli.console import Values, make_table, out, print_lines, remark, say

_COUNTED = {
    "exact": "exact duplicates, groups",
    "near": "near duplicates, pairs",
    "suspects": "doubtful labels",
    "odd": "odd or unreadable files",
}
_MAX_GROUPS = 5  # of each kind of duplicates
_MAX_IMAGES = 10  # of doubtful labels, and of odd files


def print_check(findings: Values, page: str | Path | None) -> None:
    """Print what is wrong with the images."""
    say(findings["verdict"], "bold")
    _print_counts(findings)
    print_lines(_describe_duplicates(findings))
    print_lines(_describe_labels(findings))
    for odd in findings["odd"][:_MAX_IMAGES]:
        say(f"odd: {odd['key']}: {odd['why']}")
    where = "--json lists up to 200 findings of each kind, --out check.html shows them"
    if page is not None:
        where = f"written to {page}"
    remark(f"{where}; a person should look before anything is deleted")


def _print_counts(findings: Values) -> None:
    counts = findings["counts"]
    across = findings["across"]
    table = make_table("finding", "count", "across parts")
    for kind, name in _COUNTED.items():
        crossing = f"{across[kind]:,}" if kind in across else ""
        table.add_row(name, f"{counts[kind]:,}", crossing)
    ratio = findings["balance"]["ratio"]
    table.add_row("largest class / smallest, train", f"{ratio:.1f}", "")
    out.print(table)


def _describe_duplicates(findings: Values) -> Iterator[str]:
    for kind in ("exact", "near"):
        for group in findings[kind][:_MAX_GROUPS]:
            yield f"{kind}: {_name_images(group)}"


def _name_images(group: Values) -> str:
    names = []
    for number, key in enumerate(group["keys"]):
        part = group["parts"][number]
        label = group["labels"][number]
        names.append(f"{key} ({part}, {label})")
    return " = ".join(names)


def _describe_labels(findings: Values) -> Iterator[str]:
    from regraft.checks.findings import describe_doubt  # loads torch

    for suspect in findings["suspects"][:_MAX_IMAGES]:
        label = suspect["label"]
        doubt = describe_doubt(label, suspect["said"], suspect["chance_said"])
        yield f"label: {suspect['key']} ({suspect['part']}) says {label}, {doubt}"

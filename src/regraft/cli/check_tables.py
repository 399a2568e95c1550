"""What people read of a check, made from what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from regraft.cli.console import Values, make_table, out, print_lines, remark, say

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
    table.add_row("exact duplicates, groups", f"{counts['exact']:,}", f"{across['exact']:,}")
    table.add_row("near duplicates, pairs", f"{counts['near']:,}", f"{across['near']:,}")
    table.add_row("doubtful labels", f"{counts['suspects']:,}", "")
    table.add_row("odd or unreadable files", f"{counts['odd']:,}", "")
    table.add_row("largest class / smallest, train", f"{findings['balance']['ratio']:.1f}", "")
    out.print(table)


def _describe_duplicates(findings: Values) -> Iterator[str]:
    for kind in ("exact", "near"):
        for group in findings[kind][:_MAX_GROUPS]:
            images = zip(group["keys"], group["parts"], group["labels"], strict=True)
            named = " = ".join(f"{key} ({part}, {label})" for key, part, label in images)
            yield f"{kind}: {named}"


def _describe_labels(findings: Values) -> Iterator[str]:
    from regraft.checks.findings import describe_doubt  # loads torch

    for suspect in findings["suspects"][:_MAX_IMAGES]:
        label = suspect["label"]
        doubt = describe_doubt(label, suspect["said"], suspect["chance_said"])
        yield f"label: {suspect['key']} ({suspect['part']}) says {label}, {doubt}"

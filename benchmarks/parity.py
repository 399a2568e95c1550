"""Runs an old version of regraft and this checkout on the same images, and compares bit for bit.

    python benchmarks/parity.py --old-python ~/old/bin/python --data ../shared/data
    python benchmarks/parity.py --old-path ../regraft-0.1 --quick

Both sides are reached only through `python -m regraft` and the files that it leaves, each with a
cache of its own, one process at a time. Compared are split and plan digests, every tensor,
predictions, scores, leaderboards, probes, checks, exports; not times, paths, memory, versions, nor
sentences and tables. A field that only the new side has is noted and no difference. What is meant
to differ stands in `parity_cases.INTENDED`, with its reason. Exit status 1 on any other difference.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import parity_cases
import parity_results
from parity_cases import Case
from parity_data import write_data
from parity_sides import Side, make_parser, make_sides

TECHNIQUES = Case("techniques", ("techniques", "--json"), quick=True)
QUICK_TECHNIQUES = ("linear-probe", "multi-layer-probe", "fine-tune-top", "fine-tune")
QUICK_FITS = (*QUICK_TECHNIQUES, "signs-linear-probe", "cifar-groups", "cutmix", "broken-fit")
SHOWN = 5  # differences that are printed of a case


@dataclass
class Tally:
    """How many cases passed, failed and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: Tally) -> None:
        """Count what another tally has, too."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def judge(self, case: Case, old: Side, new: Side) -> None:
        """Compare what both sides left of a case, and print a line."""
        before = parity_results.read_result(old.home, case.name, case.left)
        if before["exit"] != "0":
            self.failed += 1
            print(f"FAIL  {case.name}: the old side itself failed: {old.read_error(case.name)}")
            return
        after = parity_results.read_result(new.home, case.name, case.left)
        differences = parity_results.find_differences(before, after)
        reasons = {name: parity_cases.get_reason(case.name, name) for name in differences}
        wrong = [text for name, text in differences.items() if not reasons[name]]
        added = sorted(after.keys() - before.keys())
        if wrong:
            self.failed += 1
            print(f"FAIL  {case.name}: {len(wrong)} of {len(before)} items differ")
            if after["exit"] != "0":
                print(f"        the new side failed: {new.read_error(case.name)}")
            for text in wrong[:SHOWN]:
                print(f"        {text}")
            return
        self.passed += 1
        print(f"ok    {case.name}: {len(before)} items{describe(reasons, added)}", flush=True)


def describe(reasons: dict[str, str], added: Sequence[str]) -> str:
    """Return what to say of a case that passed: intended differences, and what is new."""
    text = ""
    for reason, count in sorted(Counter(reasons.values()).items()):
        text += f"; {count} differ as intended: {reason}"
    if added:
        text += f"; {len(added)} only in the new: {', '.join(added[:3])}"
    return text


def list_techniques(side: Side) -> list[str]:
    """Return the names of the techniques that a side knows."""
    text = (side.home / "told" / f"{TECHNIQUES.name}.out").read_text()
    return list(json.loads(text)["techniques"])


def select(cases: Sequence[Case], quick: bool, only: str) -> list[Case]:
    """Return the cases whose name fits the pattern, or those of the quick round."""
    if quick:
        cases = [case for case in cases if case.quick or case.name in QUICK_FITS]
    return [case for case in cases if fnmatchcase(case.name, only)]


def share_old_runs(old: Side, new: Side) -> None:
    """Copy the old side's runs to both sides, so that the new version reads folders of the old."""
    for name in ("fine-tune", "linear-probe"):
        run_folder = old.home / "runs" / name
        if run_folder.is_dir():
            shutil.copytree(run_folder, old.home / "from-old" / name)
            shutil.copytree(run_folder, new.home / "from-old" / name)


def compare(sides: tuple[Side, Side], cases: Sequence[Case], absent: dict[str, str]) -> Tally:
    """Run cases on the old and the new side in turn; prints and counts what came out.

    Args:
        sides: The old and the new one.
        cases: What to run, in this order.
        absent: Images that are not there -> why; the cases that need them are skipped.
    """
    tally = Tally()
    present = []
    for case in cases:
        if case.needs in absent:
            tally.skipped += 1
            print(f"skip  {case.name}: {absent[case.needs]}")
        else:
            present.append(case)
    if not present:
        return tally
    old, new = sides
    seconds = [run(side, present) for side in sides]
    for case in present:
        tally.judge(case, old, new)
    print(f"      {len(present)} commands: {seconds[0]:.0f} s old, {seconds[1]:.0f} s new")
    return tally


def compare_all(sides: tuple[Side, Side], options: Namespace, absent: dict[str, str]) -> Tally:
    """Run the chosen cases: the techniques first, then fits, what uses their runs, the rest."""
    tally = compare(sides, [TECHNIQUES], absent)
    fits = parity_cases.make_fits(list_techniques(sides[0]))
    others = parity_cases.make_comparisons() + parity_cases.make_broken()
    tally.add(compare(sides, select(fits, options.quick, options.only), absent))
    share_old_runs(*sides)
    for cases in (parity_cases.make_uses(), others):
        tally.add(compare(sides, select(cases, options.quick, options.only), absent))
    return tally


def run(side: Side, cases: Sequence[Case]) -> float:
    """Run the cases' commands on one side; returns the seconds it took."""
    return side.run({case.name: case.words for case in cases})


def main() -> None:
    """Write the images, run both sides, print what differs."""
    parser = make_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the cases, two minutes")
    parser.add_argument("--only", default="*", help="cases of this name, such as 'fine-*'")
    parser.add_argument("--keep", type=Path, help="new folder that keeps what both sides left")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="regraft-parity-") as temporary:
        top = options.keep or Path(temporary)
        top = top.resolve()
        sides = make_sides(options, top)
        absent = write_data(options.data.resolve(), top / "data")
        tally = compare_all(sides, options, absent)
    skipped = f", {tally.skipped} skipped" if tally.skipped else ""
    print(f"{tally.passed} passed, {tally.failed} failed{skipped}")
    raise SystemExit(1 if tally.failed else 0)


if __name__ == "__main__":
    main()

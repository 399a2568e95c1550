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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
    run(side, [TECHNIQUES])
    text = (side.home / "told" / f"{TECHNIQUES.name}.out").read_text()
    return list(json.loads(text)["techniques"])


def select_quick(cases: Sequence[Case]) -> list[Case]:
    """Return the cases of the quick round."""
    return [case for case in cases if case.quick or case.name in QUICK_FITS]


def share_old_runs(old: Side, new: Side) -> None:
    """Copy the old side's runs to both sides, so that the new version reads folders of the old."""
    for side in (old, new):
        for name in ("fine-tune", "linear-probe"):
            shutil.copytree(old.home / "runs" / name, side.home / "from-old" / name)


def compare(old: Side, new: Side, quick: bool, absent: dict[str, str]) -> Tally:
    """Run every case on both sides in turn, and print and count what came out."""
    techniques = list_techniques(old)
    list_techniques(new)
    tally = Tally()
    tally.judge(TECHNIQUES, old, new)
    fits = parity_cases.make_fits(techniques)
    uses = parity_cases.make_uses()
    others = parity_cases.make_comparisons() + parity_cases.make_broken()
    for cases in (fits, uses, others):
        chosen = select_quick(cases) if quick else cases
        there = [case for case in chosen if case.needs not in absent]
        for case in chosen:
            if case.needs in absent:
                tally.skipped += 1
                print(f"skip  {case.name}: {absent[case.needs]}")
        seconds = [run(side, there) for side in (old, new)]
        for case in there:
            tally.judge(case, old, new)
        print(f"      {len(there)} commands: {seconds[0]:.0f} s old, {seconds[1]:.0f} s new")
        if cases is fits:
            share_old_runs(old, new)
    return tally


def run(side: Side, cases: Sequence[Case]) -> float:
    """Run the cases' commands on one side; returns the seconds it took."""
    return side.run({case.name: case.words for case in cases})


def main() -> None:
    """Write the images, run both sides, print what differs."""
    parser = make_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the cases, two minutes")
    parser.add_argument("--keep", type=Path, help="new folder that keeps what both sides left")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="regraft-parity-") as temporary:
        top = options.keep or Path(temporary)
        top = top.resolve()
        old, new = make_sides(options, top)
        absent = write_data(options.data.resolve(), top / "data")
        tally = compare(old, new, options.quick, absent)
    skipped = f", {tally.skipped} skipped" if tally.skipped else ""
    print(f"{tally.passed} passed, {tally.failed} failed{skipped}")
    raise SystemExit(1 if tally.failed else 0)


if __name__ == "__main__":
    main()

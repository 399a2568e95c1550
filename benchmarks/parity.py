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

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import parity_cases
import parity_results
from parity_cases import Case
from parity_data import write_data

HERE = Path(__file__).parent
CHECKOUT = HERE.parent
TECHNIQUES = Case("techniques", ("techniques", "--json"), quick=True)
QUICK_TECHNIQUES = ("linear-probe", "multi-layer-probe", "fine-tune-top", "fine-tune")
QUICK_FITS = (*QUICK_TECHNIQUES, "signs-linear-probe", "cifar-groups", "cutmix", "broken-fit")
SHOWN = 5  # differences that are printed of a case


@dataclass(frozen=True)
class Side:
    """One of the two versions: how it is started, and the folder where it works."""

    name: str
    python: str
    source: Path | None  # folder that goes first on PYTHONPATH; None where it is installed
    home: Path

    def get_environment(self) -> dict[str, str]:
        """Return the environment of its processes: its own cache, one arithmetic thread."""
        environment = {**os.environ, "REGRAFT_CACHE": str(self.home / "cache")}
        environment.pop("PYTHONPATH", None)
        if self.source:
            environment["PYTHONPATH"] = str(self.source)
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.setdefault("HF_HUB_OFFLINE", "1")
        return environment

    def locate(self) -> str:
        """Return version and folder of the package that it really imports."""
        code = (
            "import importlib.metadata as m, regraft; print(m.version('regraft'), regraft.__file__)"
        )
        process = subprocess.run(
            [self.python, "-P", "-c", code],
            capture_output=True,
            text=True,
            env=self.get_environment(),
            cwd=self.home,
        )
        if process.returncode:
            last = process.stderr.strip().splitlines()[-1]
            raise SystemExit(f"{self.python} cannot import regraft: {last}")
        return process.stdout.strip()

    def run(self, cases: Sequence[Case]) -> float:
        """Run the cases' commands in one process; returns the seconds it took."""
        commands = self.home / "commands.json"
        commands.write_text(json.dumps({case.name: case.words for case in cases}))
        started = time.perf_counter()
        process = subprocess.run(
            [self.python, "-P", str(HERE / "parity_runner.py"), str(commands)],
            env=self.get_environment(),
            cwd=self.home,
        )
        if process.returncode:
            status = process.returncode
            raise SystemExit(f"The {self.name} side ended with {status}; see {self.home}/told.")
        return time.perf_counter() - started


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
            print(f"FAIL  {case.name}: the old side itself failed: {read_error(old, case)}")
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
                print(f"        the new side failed: {read_error(new, case)}")
            for text in wrong[:SHOWN]:
                print(f"        {text}")
            return
        self.passed += 1
        print(f"ok    {case.name}: {len(before)} items{describe(reasons, added)}", flush=True)


def read_error(side: Side, case: Case) -> str:
    """Return the last line that a command wrote to stderr."""
    text = (side.home / "told" / f"{case.name}.err").read_text().strip()
    return text.splitlines()[-1] if text else "no message"


def describe(reasons: dict[str, str], added: Sequence[str]) -> str:
    """Return what to say of a case that passed: intended differences, and what is new."""
    text = ""
    for reason in sorted(set(reasons.values())):
        count = list(reasons.values()).count(reason)
        text += f"; {count} differ as intended: {reason}"
    if added:
        text += f"; {len(added)} only in the new: {', '.join(added[:3])}"
    return text


def list_techniques(side: Side) -> list[str]:
    """Return the names of the techniques that a side knows."""
    side.run([TECHNIQUES])
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
        seconds = [side.run(there) for side in (old, new)]
        for case in there:
            tally.judge(case, old, new)
        print(f"      {len(there)} commands: {seconds[0]:.0f} s old, {seconds[1]:.0f} s new")
        if cases is fits:
            share_old_runs(old, new)
    return tally


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old-python", help="interpreter of an environment with the old version")
    parser.add_argument("--old-path", type=Path, help="checkout of the old version, used by source")
    parser.add_argument("--new-path", type=Path, default=CHECKOUT, help="checkout of the new one")
    parser.add_argument("--data", type=Path, help="folder with cifar10 and sign-digits")
    parser.add_argument("--quick", action="store_true", help="a third of the cases, two minutes")
    parser.add_argument("--keep", type=Path, help="new folder that keeps what both sides left")
    options = parser.parse_args()
    if not options.old_python and not options.old_path:
        parser.error("name the old version: --old-python PYTHON or --old-path CHECKOUT")
    return options


def make_sides(options: argparse.Namespace, top: Path) -> tuple[Side, Side]:
    """Return the old and the new side, each with an empty folder."""
    source = options.old_path.resolve() / "src" if options.old_path else None
    old = Side("old", options.old_python or sys.executable, source, top / "old")
    checkout = options.new_path.resolve() / "src"
    new = replace(old, name="new", python=sys.executable, source=checkout, home=top / "new")
    for side in (old, new):
        side.home.mkdir()
        print(f"{side.name}: {side.locate()}")
    return old, new


def main() -> None:
    """Write the images, run both sides, print what differs."""
    options = read_options()
    shared = CHECKOUT.parent / "shared" / "data"
    source = options.data or (shared if shared.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="regraft-parity-") as temporary:
        top = options.keep or Path(temporary)
        top.mkdir(parents=True, exist_ok=True)
        absent = write_data(source and source.resolve(), top.resolve() / "data")
        old, new = make_sides(options, top.resolve())
        tally = compare(old, new, options.quick, absent)
    skipped = f", {tally.skipped} skipped" if tally.skipped else ""
    print(f"{tally.passed} passed, {tally.failed} failed{skipped}")
    raise SystemExit(1 if tally.failed else 0)


if __name__ == "__main__":
    main()

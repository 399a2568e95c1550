"""`regraft compare`: many ways on one split; the test part is opened once, at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.commands.evaluate import open_test
from regraft.commands.fit import FitData, fit_plan
from regraft.commands.options import Ways as Ways
from regraft.commands.resolve import require_writable, resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.data.split import PARTS
from regraft.errors import DiskFull, UserError
from regraft.features.parts import OpenedParts, open_parts
from regraft.features.policy import CachePolicy
from regraft.features.prefetch import prefetch_features
from regraft.models.backbone import check_backbone_name
from regraft.models.pool import BackbonePool
from regraft.models.transforms import Preprocess
from regraft.options import Options, PlanOverrides
from regraft.plans.schema import Plan
from regraft.plans.techniques import DEFAULT_TECHNIQUES, find_technique
from regraft.plans.toml import read_plan
from regraft.reporting.leaderboard import (
    COST_PLOT,
    FailedRow,
    Leaderboard,
    build_leaderboard,
    tabulate_leaderboard,
    write_leaderboard,
)
from regraft.runs.directory import choose_dir, lock_dir, prepare_dir
from regraft.runs.folder import Run
from regraft.runs.layout import COMPARISON
from regraft.runs.provenance import describe_origin
from regraft.system.files import remove_partials
from regraft.system.hardware import tune_allocator
from regraft.system.notebook import inline_png, render_result
from regraft.system.output import write_json
from regraft.training.loggers import require_tracker

BUDGETS = ("fastest", "balanced", "best")


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Args:
        path: Its folder.
        leaderboard: Its rows ranked on validation, and what can be concluded.
        runs: The runs that finished.
    """

    path: Path
    leaderboard: Leaderboard
    runs: tuple[Run, ...]

    @property
    def selected(self) -> Run | None:
        """The run that does best on validation."""
        for run in self.runs:
            if run.name == self.leaderboard.selected:
                return run
        return None

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return self.leaderboard.to_json()

    def __repr__(self) -> str:
        return f"Comparison({str(self.path)!r}: {self.leaderboard.verdict})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdict, the leaderboard, accuracy against cost."""
        board = self.leaderboard
        sentence = " ".join([board.verdict, *board.warnings])
        picture = inline_png(self.path / COST_PLOT)
        return render_result("Comparison", sentence, tabulate_leaderboard(board), picture)


@dataclass(frozen=True)
class _Row:
    """A row of the comparison: what it is called, and its plan or why there is none."""

    name: str
    backbone: str | None
    technique: str
    seed: int
    plan: Plan | None = None
    fault: UserError | None = None

    def failed(self, reason: str) -> FailedRow:
        return FailedRow(self.name, self.backbone, self.technique, self.seed, reason)


def compare(
    data: str | Path | Dataset,
    ways: Ways = Ways(),
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
    from_probe: str | Path | None = None,
) -> Comparison:
    """Return the comparison of several ways on the same images, ranked on validation.

    A row that fails is reported with its reason, and the others go on.

    Args:
        data: The images, as for `fit`.
        ways: Techniques, backbones, seeds and plans.
        overrides: Resolution, weights and changes for every row.
        options: Images, cache, machine and folder.
        from_probe: Folder of a probe, whose recommended plans are rows too.

    Raises:
        UserError: When names are unknown, images cannot be decoded, or the folder is taken.
    """
    tune_allocator()
    require_writable(options.run_dir.out)
    if from_probe is not None:
        ways = replace(ways, plans={**ways.plans, **recommended_plans(Path(from_probe))})
    dataset = load_dataset(data, options.cache.dir)
    path = choose_dir(options.run_dir, "compare", dataset.name)
    images = FitData(
        dataset, split_dataset(dataset, options.data), describe_origin(data, options.data)
    )
    return compare_ways(images, path, ways, overrides, options)


def compare_ways(
    images: FitData, path: Path, ways: Ways, overrides: PlanOverrides, options: Options
) -> Comparison:
    """Return the comparison of several ways in a folder; see `compare`."""
    _require_known(ways, overrides, options)
    pool = BackbonePool(options.runtime.device)
    rows = list(_rows(images, ways, overrides, pool))
    if not any(row.plan for row in rows):
        raise next(row.fault for row in rows if row.fault)
    with lock_dir(path, "comparison", options.run_dir):
        prepare_dir(path, "comparison", options.run_dir)
        remove_partials(path)
        write_json(path / COMPARISON, {"finished": False})
        return _Comparing(images, path, options, pool).run(rows)


class _Comparing:
    """A comparison under way."""

    def __init__(self, images: FitData, path: Path, options: Options, pool: BackbonePool) -> None:
        self.images = images
        self.path = path
        self.options = options
        self.pool = pool
        self.policy = CachePolicy(options.cache)
        self.failed: list[FailedRow] = []

    def run(self, rows: Sequence[_Row]) -> Comparison:
        """Fit every row, open the test part for all of them, and write who did best."""
        plans = [row.plan for row in rows if row.plan]
        parts = self._open(plans[0])
        prefetch_features(parts, plans, ("train", "val"), self.policy, self.pool)
        finished = self._fit(rows, replace(self.images, parts=parts))
        runs = self._open_test(finished, parts)
        if not runs:
            failure = self.failed[0]
            raise UserError(f"No row finished. {failure.name}: {failure.error}")
        leaderboard = build_leaderboard(runs, self.failed)
        write_leaderboard(leaderboard, runs, self.path)
        return Comparison(self.path, leaderboard, tuple(runs))

    def _open(self, plan: Plan) -> OpenedParts:
        """Decode all parts once, as the first row needs them, so that every fault is named now."""
        blank = self.pool.blank(plan)
        preprocess = Preprocess(blank.rules, plan.resolution)
        images = self.images
        return open_parts(images.dataset, images.split, preprocess, self.options, PARTS)

    def _fit(self, rows: Sequence[_Row], images: FitData) -> list[Run]:
        reporter = self.options.runtime.reporter
        run_dir = replace(self.options.run_dir, overwrite=False)
        options = replace(self.options, run_dir=run_dir)
        finished = []
        for number, row in enumerate(rows, 1):
            reporter.log(f"Row {number} of {len(rows)}: {row.name}")
            with self._catching(row):
                if row.plan is None:
                    raise row.fault or UserError(f"{row.name} has no plan.")
                path = self.path / row.name
                finished.append(fit_plan(row.plan, images, path, options, self.pool))
        return finished

    def _open_test(self, finished: Sequence[Run], parts: OpenedParts) -> list[Run]:
        self.options.runtime.reporter.log("Opening the test part for all rows at once.")
        plans = [run.plan for run in finished if not run.test]
        prefetch_features(parts, plans, ("test",), self.policy, self.pool)
        opened = []
        for run in finished:
            plan = run.plan
            row = _Row(run.name, plan.backbone, plan.technique, plan.seed)
            with self._catching(row):
                opened.append(self._open_one(run, parts))
        return opened

    def _open_one(self, run: Run, parts: OpenedParts) -> Run:
        if run.test:
            return run
        blank = self.pool.blank(run.plan)
        return open_test(run, self.images.dataset, self.options, blank, parts)

    @contextmanager
    def _catching(self, row: _Row) -> Iterator[None]:
        """Keep what goes wrong in a row as its reason, so that the other rows go on."""
        try:
            yield
            return
        except DiskFull:
            raise
        except UserError as error:
            reason = str(error)
        except Exception as error:  # our bug or the machine's limit
            reason = f"{type(error).__name__}: {error}"
        self.failed.append(row.failed(reason))
        self.options.runtime.reporter.log(f"{row.name} failed: {reason}")


def _require_known(ways: Ways, overrides: PlanOverrides, options: Options) -> None:
    """Raise `UserError` for names that are unknown, and for options that contradict each other."""
    keys = [override.partition("=")[0].strip() for override in overrides.overrides]
    if ways.seeds > 1 and "seed" in keys:
        raise UserError(
            f"--seeds {ways.seeds} and --set seed=… were given, which would make {ways.seeds} "
            "equal rows. Expected one of the two. Leave one out."
        )
    require_tracker(options.run_dir.track)
    for technique in _techniques(ways):
        find_technique(technique)
    for backbone in ways.backbones:
        check_backbone_name(backbone)


def _techniques(ways: Ways) -> Sequence[str]:
    """Return the techniques: without any, the usual ones, or none beside plans."""
    if ways.techniques or ways.plans:
        return ways.techniques or ()
    return DEFAULT_TECHNIQUES


def _rows(
    images: FitData, ways: Ways, overrides: PlanOverrides, pool: BackbonePool
) -> Iterator[_Row]:
    """Yield the rows with their plans.

    Those of one backbone follow each other, so that what they share is read while it is warm.
    """
    for name, technique, asked in _asked(ways, overrides):
        for seed in range(ways.seeds):
            label = f"{name}-seed{seed}" if ways.seeds > 1 else name
            row = _Row(re.sub(r"[^\w.-]+", "-", label), asked.backbone, technique, seed)
            keeps_seed = asked.plan is not None and ways.seeds == 1
            wanted = asked if keeps_seed else replace(asked, seed=seed)
            try:
                plan = resolve_plan(technique, images.dataset, images.split, wanted, pool)
                yield replace(row, backbone=plan.backbone, seed=plan.seed, plan=plan)
            except UserError as error:
                yield replace(row, fault=error)


def _asked(ways: Ways, overrides: PlanOverrides) -> Iterator[tuple[str, str, PlanOverrides]]:
    """Yield what each row is called, its technique, and what is asked of its plan."""
    backbones = list(dict.fromkeys(ways.backbones))
    for backbone in backbones:
        for technique in dict.fromkeys(_techniques(ways)):
            name = f"{backbone}-{technique}" if len(backbones) > 1 else technique
            yield name, technique, replace(overrides, backbone=backbone)
    for name, plan in ways.plans.items():
        yield (
            name,
            name,
            replace(overrides, plan=plan, backbone=None, resolution=None, weights=None),
        )


def recommended_plans(folder: Path) -> dict[str, Path]:
    """Return the plan files of a probe by what their rows are called.

    Plans that are the same but for the name are one row, called after all of them.

    Raises:
        UserError: When there is no probe in the folder.
    """
    budgets: dict[str, list[str]] = {}
    paths: dict[str, Path] = {}
    for budget in BUDGETS:
        path = folder / f"plan-{budget}.toml"
        if path.is_file():
            digest = read_plan(path).model_copy(update={"technique": ""}).digest
            budgets.setdefault(digest, []).append(budget)
            paths.setdefault(digest, path)
    if not budgets:
        raise UserError(
            f"There is no probe in {folder}. Expected a folder that `regraft probe` wrote. Run "
            f"`regraft probe DATA --out {folder}` first."
        )
    return {f"probe-{'-'.join(budgets[digest])}": path for digest, path in paths.items()}

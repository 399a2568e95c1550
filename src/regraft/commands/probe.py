"""`regraft probe`: where to cut, at what resolution, which backbone, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.commands.options import ProbeOptions
from regraft.commands.resolve import require_writable, resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.features.parts import OpenedParts, open_parts
from regraft.models.backbone import check_backbone_name
from regraft.models.pool import BackbonePool
from regraft.models.transforms import Preprocess
from regraft.options import Options, PlanOverrides, RunDir
from regraft.plans.schema import Plan
from regraft.plans.toml import write_plan
from regraft.probing.candidates import ProbeRow
from regraft.probing.grid import ProbeGrid
from regraft.probing.halving import parse_duration
from regraft.probing.instruments import Instruments
from regraft.probing.networks import ProbeNetworks
from regraft.probing.plots import plot_depth, plot_learning_curve, plot_probe_cost
from regraft.probing.prober import Prober
from regraft.probing.rank_correlation import select_comparable
from regraft.probing.recommend import recommended_plan
from regraft.probing.result import ProbeResult
from regraft.probing.successive_halving import TimeBudget
from regraft.runs.directory import choose_dir, prepare_dir
from regraft.runs.folder import Run, find_finished, load_run
from regraft.runs.layout import PROBE
from regraft.system.disk import ADVICE_REPEAT
from regraft.system.hardware import tune_allocator
from regraft.system.locks import lock_path
from regraft.system.notebook import inline_png, render_result
from regraft.system.output import write_csv, write_json

DEPTH_PLOT = "accuracy-by-depth.png"
_SIDES = (8, 4096)  # pixels, the smallest and the largest resolution
_RUN_FOLDERS = (Path("runs"), Path("compare"))


@dataclass(frozen=True)
class Probe:
    """A finished probe.

    Args:
        path: Its folder.
        result: What it found.
        plans: The recommended plans by budget, which `fit` takes.
    """

    path: Path
    result: ProbeResult
    plans: Mapping[str, Plan]

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.result.to_json(), "path": str(self.path)}

    def __repr__(self) -> str:
        return f"Probe({str(self.path)!r}: {self.result.verdict})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdict, the recommendations, accuracy by depth."""
        rows: list[tuple[str, ...]] = [("budget", "features of", "val accuracy", "why")]
        for choice in self.result.recommendations:
            accuracy = f"{choice.row.accuracy:.4f}"
            rows.append((choice.budget, choice.row.name, accuracy, choice.why))
        picture = inline_png(self.path / DEPTH_PLOT)
        return render_result("Probe", self.result.verdict, rows, picture)


def probe(
    data: str | Path | Dataset,
    asked: ProbeOptions = ProbeOptions(),
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
    instruments: Instruments = Instruments(),
) -> Probe:
    """Judge every layer by its frozen features, and recommend a plan for each budget.

    Args:
        data: The images, as for `fit`; the test part stays held out.
        asked: What is probed.
        overrides: Weights and precision.
        options: Images, cache, machine and folder.
        instruments: Clock, speed and free memory.

    Raises:
        UserError: When names are unknown, images cannot be decoded, the folder is taken, nothing
            can be probed, or the budget is too short for one candidate.
    """
    tune_allocator()
    require_writable(options.run_dir.out)
    seconds = None if asked.budget is None else parse_duration(asked.budget)
    _require_valid(asked)
    dataset = load_dataset(data, options.cache.dir)
    runs = _find_runs(asked, options)
    path = choose_dir(replace(options.run_dir, resume=False), "probe", dataset.name)
    started = instruments.clock()
    budget = None if seconds is None else TimeBudget(seconds, started, instruments.clock)
    _require_free(path, options.run_dir)
    with lock_path(path, advice=ADVICE_REPEAT):
        grid, parts = _open(dataset, asked, overrides, options, instruments)
        prober = Prober(grid, parts, options, budget, instruments)
        prober.judge()
        weights = overrides.weights or "pretrained"
        result = prober.conclude(select_comparable(runs, parts["val"], weights))
        result = replace(result, seconds=round(instruments.clock() - started, 1))
        finished = Probe(path, result, _recommended_plans(result, grid))
        _write(finished, options.run_dir)
    return finished


def _require_valid(asked: ProbeOptions) -> None:
    smallest, largest = _SIDES
    for side in asked.resolutions:
        if not smallest <= side <= largest:
            raise UserError(
                f"--resolutions {side} was given. Expected sides in pixels from {smallest} to "
                f"{largest}. Write for example 64,96,128."
            )
    for folder in asked.runs or ():
        if not Path(folder).is_dir():
            raise UserError(
                f"--runs {folder} is no folder. Expected a run, a comparison, or a folder of them."
            )
    for name in asked.backbones:
        check_backbone_name(name)


def _find_runs(asked: ProbeOptions, options: Options) -> list[Run]:
    """Return finished runs; of those that nobody named, what cannot be read is left out."""
    folders = _RUN_FOLDERS if asked.runs is None else asked.runs
    runs = []
    for path in find_finished([Path(folder) for folder in folders]):
        try:
            runs.append(load_run(path))
        except UserError as error:
            if asked.runs is not None:
                raise
            options.runtime.reporter.log(f"Leaving out a run: {error}")
    return runs


def _open(
    dataset: Dataset,
    asked: ProbeOptions,
    overrides: PlanOverrides,
    options: Options,
    instruments: Instruments,
) -> tuple[ProbeGrid, OpenedParts]:
    """Return the candidates, and train and val decoded as the largest candidate needs them."""
    split = split_dataset(dataset, options.data)
    pool = BackbonePool(options.runtime.device)

    def resolve(backbone: str, resolution: int | None) -> Plan:
        wanted = replace(overrides, backbone=backbone)
        if resolution is not None:
            wanted = replace(wanted, resolution=resolution)
        return resolve_plan("linear-probe", dataset, split, wanted, pool)

    reporter = options.runtime.reporter
    networks = ProbeNetworks(pool, reporter, instruments.find_head)
    grid = ProbeGrid(resolve, networks, reporter)
    grid.fill(asked.backbones, asked.resolutions)
    largest = grid.largest()
    preprocess = Preprocess(networks.load(largest).rules, largest.resolution)
    return grid, open_parts(dataset, split, preprocess, options)


def _recommended_plans(result: ProbeResult, grid: ProbeGrid) -> dict[str, Plan]:
    plans = {}
    for recommendation in result.recommendations:
        row = recommendation.row
        plan = grid.plans[row.backbone, row.resolution]
        plans[recommendation.budget] = recommended_plan(recommendation, plan)
    return plans


def _require_free(path: Path, run_dir: RunDir) -> None:
    """Raise `UserError` before any work where the folder is taken, or cannot be made."""
    if not run_dir.overwrite:
        prepare_dir(path, "probe", run_dir, can_resume=False)
    absolute = path.absolute()
    existing = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(
            f"{path} cannot be written: {existing} allows no writing. Give a folder that can with "
            "--out."
        )


def _write(finished: Probe, run_dir: RunDir) -> None:
    """Write tables, plots and plans; `probe.json` comes last."""
    path = finished.path
    result = finished.result
    prepare_dir(path, "probe", run_dir, can_resume=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_csv(path / "places.csv", [_table_row(row) for row in result.rows])
        for recommendation in result.recommendations:
            plan = finished.plans[recommendation.budget]
            write_plan(plan, path / recommendation.plan_file)
        _plot(result, path)
        write_json(path / PROBE, result.to_json())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Give a folder that can with --out."
        ) from error


def _plot(result: ProbeResult, path: Path) -> None:
    plot_depth(result.rows, path / DEPTH_PLOT)
    cost = path / "accuracy-against-cost.png"
    plot_probe_cost(result.last, result.front, result.recommendations, cost)
    plot_learning_curve(result.learning_curve, result.best.name, path / "learning-curve.png")


def _table_row(row: ProbeRow) -> dict[str, Any]:
    return {**row.to_json(), "places": " ".join(row.layers)}

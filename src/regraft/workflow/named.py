"""The same stories from names: what the command line and the Python interface both call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.evaluation.calibration import fit_temperature
from regraft.evaluation.metrics import class_metrics
from regraft.evaluation.scores import compute_scores
from regraft.features.store import default_cache_dir
from regraft.plans.schema import read_plan, write_plan
from regraft.plans.techniques import DEFAULT_TECHNIQUES
from regraft.probing.halving import parse_duration
from regraft.runs.folder import Run, load_run, verify_run
from regraft.system.files import check_writable, expand_user
from regraft.system.hardware import tune_allocator
from regraft.workflow.comparison import Comparison, compare
from regraft.workflow.matrix import Probe, probe
from regraft.workflow.opening import open_test, score
from regraft.workflow.origin import images_of, settings_of
from regraft.workflow.planning import Wish, explain, make
from regraft.workflow.settings import Settings
from regraft.workflow.story import fit


def fit_named(
    data: str | Path | Dataset, wish: Wish, out: str | Path | None = None, **settings: Any
) -> Run:
    """Return the finished run of a technique or a plan; see `regraft.fit`."""
    where = asked(settings, data)
    _check(out)
    images = load_dataset(data, where.home)
    plan = make(images, where.split(images), wish, where.device)
    return fit(
        images, plan, folder(out, "runs", f"{images.name}-{plan.technique}", where.resume), where
    )


def compare_named(
    data: str | Path | Dataset,
    ways: Sequence[str] | None,
    names: Sequence[str],
    seeds: int = 1,
    wish: Wish | None = None,
    out: str | Path | None = None,
    from_probe: str | Path | None = None,
    **settings: Any,
) -> Comparison:
    """Return the comparison of techniques and backbones, of the plans that a probe recommended, or of both; see `regraft.compare`.

    Raises:
        UserError: When there is no probe in the folder.
    """
    where = asked(settings, data)
    _check(out)
    recommended = {} if from_probe is None else _recommended(Path(from_probe))
    images = load_dataset(data, where.home)
    ways = ways or (() if recommended else DEFAULT_TECHNIQUES)
    return compare(
        images,
        folder(out, "compare", images.name, where.resume),
        names,
        ways,
        seeds,
        wish or Wish(),
        where,
        recommended,
    )


def probe_named(
    data: str | Path | Dataset,
    names: Sequence[str],
    resolutions: Sequence[int] = (),
    budget: str | None = None,
    runs: Sequence[Path] | None = None,
    wish: Wish | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Probe:
    """Return the probe of backbones and resolutions; `runs` are folders of runs or of comparisons, by default `runs` and `compare` where they exist.

    Raises:
        UserError: For a folder that does not exist, a budget that is no time, a resolution that is none.
    """
    where = asked(settings, data)
    _check(out)
    limit = None if budget is None else parse_duration(budget)
    for side in resolutions:
        if not 8 <= side <= 4096:
            raise UserError(
                f"--resolutions {side} was given. Expected sides in pixels from 8 to 4096. Write for example 64,96,128."
            )
    for given in runs or ():
        if not given.is_dir():
            raise UserError(
                f"--runs {given} is no folder. Expected a run, a comparison, or a folder of them."
            )
    images = load_dataset(data, where.home)
    there = _finished(runs, where)
    return probe(
        images,
        folder(out, "probe", images.name, False),
        names,
        resolutions,
        limit,
        there,
        wish or Wish(),
        where,
    )


def _check(out: str | Path | None) -> None:
    """Raise `UserError` before any work where a folder that was asked for cannot be written."""
    if out is not None and not expand_user(out).is_file():  # a file is refused in words of its own
        check_writable(expand_user(out), Path(out))


def _finished(given: Sequence[Path] | None, settings: Settings) -> list[Run]:
    """Return the finished runs in, or up to two levels below, some folders; of those that nobody named, what cannot be read is left out."""
    folders = given if given is not None else [Path("runs"), Path("compare")]
    below = ("scores.json", "*/scores.json", "*/*/scores.json")
    found = []
    for path in sorted(
        {
            path.parent.resolve()
            for one in folders
            for pattern in below
            for path in one.glob(pattern)
        }
    ):
        try:
            found.append(load_run(path))
        except UserError as error:
            if given is not None:
                raise
            settings.watcher.say(f"Leaving out a run: {error}")
    return found


def _recommended(probed: Path) -> dict[str, Path]:
    """Return the plan files of a probe by what their rows are called; plans that are the same but for the name are one row, called after all of them."""
    found: dict[str, tuple[list[str], Path]] = {}
    for path in (probed / f"plan-{budget}.toml" for budget in ("fastest", "balanced", "best")):
        if path.is_file():
            same = read_plan(path).model_copy(update={"technique": ""}).digest
            found.setdefault(same, ([], path))[0].append(path.stem.removeprefix("plan-"))
    if not found:
        raise UserError(
            f"There is no probe in {probed}. Expected a folder that `regraft probe` wrote. Run `regraft probe DATA --out {probed}` first."
        )
    return {f"probe-{'-'.join(budgets)}": path for budgets, path in found.values()}


def folder(out: str | Path | None, kind: str, name: str, resume: bool) -> Path:
    """Return the folder asked for, or `kind/name` with the next free number (the last one, to resume it)."""
    if out is not None:
        return expand_user(out)
    base = Path(kind) / "".join(
        letter if letter.isalnum() or letter in "._-" else "-" for letter in name
    )[:100].strip(".-")
    number, path = 1, base
    last = None
    while path.exists() and (not path.is_dir() or any(path.iterdir())):
        number += 1
        last, path = path, base.with_name(f"{base.name}-{number}")
    return last if resume and last is not None else path


def asked(given: dict[str, Any], data: object = None) -> Settings:
    """Return the settings that a user's words mean, with the allocator told to keep its memory."""
    tune_allocator()
    called = None if data is None or isinstance(data, Dataset) else str(data)
    if called is not None and Path(called).exists():
        called = str(Path(called).resolve())
    return Settings(**{**given, "home": default_cache_dir(given.get("home")), "origin": called})


def explain_named(
    data: str | Path | Dataset, wish: Wish, save: Path | None = None, **settings: Any
) -> dict[str, Any]:
    """Return what a technique or a plan would do; `save` writes the plan to a TOML file.

    Raises:
        UserError: When the file exists already, or names, plan and images do not go together.
    """
    where = asked(settings)
    if save is not None and save.exists():
        raise UserError(
            f"{save} exists already. Expected a new file for the plan. Give another name with --save, or remove it."
        )
    if save is not None:
        check_writable(save.parent, save, "--save")
    images = load_dataset(data, where.home)
    split = where.split(images)
    plan = make(images, split, wish, where.device)
    told = explain(images, split, plan, where)
    if save is not None:
        try:
            write_plan(plan, save)
        except OSError as error:
            raise UserError(
                f"{save} cannot be written ({error.strerror}). Give a file in a folder that can with --save."
            ) from error
    return told


def evaluate_named(path: Path, data: str | None, split: str, **settings: Any) -> dict[str, Any]:
    """Return a run's scores, with those of the part that is asked for.

    Raises:
        UserError: When the run or the part does not exist, or the images are others than those of the run.
    """
    finished = load_run(path)
    verify_run(finished)
    where = asked(settings)
    if split == "all":
        if data is None:
            raise UserError(
                "--split all scores a run on other images, but no DATA was given. Name the images after the run folder."
            )
        logits, targets = score(finished, load_dataset(data, where.home), where)
        return _measured(finished, split, logits, targets)
    if split == "val" and data is not None:
        raise UserError(
            f"DATA {data} was given, but --split val shows what the run said when it was fitted. Expected --split all to score it on those images."
        )
    if split not in ("val", "test"):
        raise UserError(f"--split {split!r} is no part. Expected 'val', 'test' or 'all'.")
    if split == "test":
        finished = _opened(finished, data, where)
    judged = finished.predictions(split)
    return _measured(finished, split, judged["logits"], judged["targets"])


def _opened(finished: Run, data: str | None, where: Settings) -> Run:
    return open_test(finished, images_of(finished, data, where), settings_of(finished, where))


def _measured(
    finished: Run, part: str, logits: NDArray[Any], targets: NDArray[np.int64]
) -> dict[str, Any]:
    """Return a run's scores with all that is said of one part; the temperature is the one fitted on val."""
    val = finished.predictions("val")
    temperature = None if part == "val" else fit_temperature(val["logits"], val["targets"])
    found = {
        **finished.scores,
        "part": part,
        "measures": class_metrics(logits, targets, finished.classes, temperature),
    }
    if part != "val":
        found[part] = compute_scores(logits, targets).plain()
    if part == "test":
        found["opened"] = (finished.test or {})["opened"]
    return {**found, "warnings": finished.cautions}

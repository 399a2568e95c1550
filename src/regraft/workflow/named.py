"""The same stories from names: what the command line and the Python interface both call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regraft import backbone, cache, machine, predict, run, sources, techniques
from regraft import plan as plans
from regraft.data import Dataset
from regraft.errors import UserError
from regraft.plan import Plan
from regraft.run import Run
from regraft.workflow import planning
from regraft.workflow.comparison import Comparison, compare
from regraft.workflow.opening import open_test, score
from regraft.workflow.story import Settings, fit


def fit_named(
    data: str | Path | Dataset, technique: str, name: str = backbone.EMBEDDED, *, plan: str | Path | Plan | None = None, out: str | Path | None = None,
    weights: str | None = None, resolution: int | None = None, seed: int = 0, changes: Sequence[str] = (), **settings: Any,
) -> Run:  # fmt: skip
    """Return the finished run of a technique or a plan; see `regraft.fit`."""
    where = _settings(settings, data)
    images = sources.load(data, where.home)
    made = planned(images, technique, name, plan, weights, resolution, seed, changes, where)
    return fit(images, made, folder(out, "runs", f"{images.name}-{made.technique}", where.resume), where)


def compare_named(
    data: str | Path | Dataset, ways: Sequence[str] | None = None, names: Sequence[str] = (backbone.EMBEDDED,), *, seeds: int = 1,
    out: str | Path | None = None, weights: str | None = None, resolution: int | None = None, changes: Sequence[str] = (), **settings: Any,
) -> Comparison:  # fmt: skip
    """Return the comparison of techniques and backbones; see `regraft.compare`."""
    where = _settings(settings, data)
    images = sources.load(data, where.home)
    target = folder(out, "compare", images.name, where.resume)
    return compare(images, target, names, ways or techniques.DEFAULT, seeds, resolution, weights, changes, where)


def planned(
    images: Dataset, technique: str, name: str, plan: str | Path | Plan | None, weights: str | None, resolution: int | None, seed: int,
    changes: Sequence[str], where: Settings,
) -> Plan:  # fmt: skip
    """Return the plan that is asked for: the one given, or the technique's, with the changes applied."""
    if plan is None:
        split = images.split(where.split_seed, where.train_images)
        return planning.make(images, split, technique, name, weights, resolution, seed, changes, where.device)
    values = (plan if isinstance(plan, Plan) else plans.read(Path(plan))).model_dump(mode="json")
    return plans.changed(values, changes, where=str(plan) if not isinstance(plan, Plan) else "The plan")


def folder(out: str | Path | None, kind: str, name: str, resume: bool) -> Path:
    """Return the folder asked for, or `kind/name` with the next free number (the last one, to resume it)."""
    if out is not None:
        return Path(out).expanduser()
    base = Path(kind) / "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".-")
    number, path = 1, base
    while path.exists() and any(path.iterdir()):
        number += 1
        last, path = path, base.with_name(f"{base.name}-{number}")
        if resume and not path.exists():
            return last
    return path


def _settings(given: dict[str, Any], data: object = None) -> Settings:
    machine.keep_memory()
    origin = None if data is None or isinstance(data, Dataset) else str(data)
    if origin is not None and Path(origin).exists():
        origin = str(Path(origin).resolve())
    return Settings(**{**given, "home": cache.home(given.get("home")), "origin": origin})


def explain_named(
    data: str | Path | Dataset, technique: str, name: str = backbone.EMBEDDED, *, plan: str | Path | Plan | None = None, save: Path | None = None,
    weights: str | None = None, resolution: int | None = None, seed: int = 0, changes: Sequence[str] = (), **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return what a technique or a plan would do; `save` writes the plan to a TOML file.

    Raises:
        UserError: When the file exists already, or names, plan and images do not go together.
    """
    where = _settings(settings)
    images = sources.load(data, where.home)
    made = planned(images, technique, name, plan, weights, resolution, seed, changes, where)
    told = planning.explain(images, images.split(where.split_seed, where.train_images), made, where)
    if save is not None:
        if save.exists():
            raise UserError(f"{save} exists already. Expected a new file for the plan. Give another name with --save, or remove it.")
        plans.write(made, save)
    return told


def evaluate_named(path: Path, data: str | None, split: str, **settings: Any) -> dict[str, Any]:
    """Return a run's scores, with those of the part that is asked for.

    Raises:
        UserError: When the run or the part does not exist, or the images are others than those of the run.
    """
    finished = run.load(path)
    where = _settings(settings)
    if split == "all":
        if data is None:
            raise UserError("--split all scores a run on other images, but no DATA was given. Name the images after the run folder.")
        return {**finished.scores, "test": score(finished, sources.load(data, where.home), where).plain()}
    if split not in ("val", "test"):
        raise UserError(f"--split {split!r} is no part. Expected 'val', 'test' or 'all'.")
    if split == "val":
        return finished.scores
    origin = finished.scores["origin"]
    images = sources.load(data or origin["data"], where.home)
    where = replace(where, train_images=origin["train_images"], split_seed=origin["split_seed"], skip_bad=origin["skip_bad"])
    opened = open_test(finished, images, where)
    return {**opened.scores, "test": (opened.test or {})["test"], "opened": (opened.test or {})["opened"]}


def predict_named(path: Path, paths: Sequence[Path], top: int, device: str = "auto") -> list[dict[str, Any]]:
    """Return a row for each image file, folders searched through; raises `UserError` for a path that does not exist."""
    machine.keep_memory()
    classifier = predict.load(path, device)
    rows = []
    for one in classifier.files(sources.files.expanded(paths)):
        rows.append({"path": one.path, "label": one.label, "probability": one.probability, "ranked": list(one.ranked[:top]), "error": one.error})
    return rows

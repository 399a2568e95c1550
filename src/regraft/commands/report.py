"""`regraft report`: finished runs on one page, with their images where they can be had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regraft.commands.check import remembered_check
from regraft.data.dataset import Dataset
from regraft.errors import UserError
from regraft.inference.cam import activation_maps
from regraft.inference.classifier import Classifier
from regraft.options import Options
from regraft.reporting.evidence import Evidence, build_evidence
from regraft.reporting.galleries import check_galleries, run_galleries
from regraft.reporting.html import Gallery, PageExtras, render_html, render_markdown
from regraft.reporting.leaderboard import FailedRow, to_failed_rows
from regraft.reporting.output import require_new_page, write_page
from regraft.runs.folder import Run, load_run
from regraft.runs.layout import COMPARISON, LEADERBOARD
from regraft.runs.provenance import load_images, recorded_split
from regraft.system.disk import check_writable
from regraft.system.files import expand_user
from regraft.system.hardware import tune_allocator

FORMATS = ("html", "md")


@dataclass(frozen=True)
class Report:
    """A written report.

    Args:
        path: The page.
        evidence: What it says.
    """

    path: Path
    evidence: Evidence

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.evidence.to_json(), "path": str(self.path)}


def report(
    paths: Sequence[str | Path],
    data: str | Path | None = None,
    format: str = "html",
    options: Options = Options(),
) -> Report:
    """Return where a report was written, and what it says.

    Args:
        paths: Run folders, or folders of comparisons.
        data: The images; by default those that the runs remember.
        format: "html" or "md".
        options: `cache` and `runtime` count; `run_dir.out` is the file, by default `report.html`
            or `report.md` in the first folder.

    Raises:
        UserError: When a folder holds no finished run, runs do not belong together, or the file
            exists and is not to be overwritten.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format} was given. Expected {' or '.join(FORMATS)}.")
    tune_allocator()
    folders = [Path(path) for path in paths]
    runs, failed = find_runs(folders)
    run_dir = options.run_dir
    if run_dir.out is None:
        target = folders[0] / f"report.{format}"
    else:
        target = expand_user(run_dir.out)
        require_new_page(target, run_dir.overwrite)
    check_writable(target.parent, target)
    evidence = build_evidence(runs, failed)
    values = evidence.to_json()
    if format == "md":
        text = render_markdown(values)
    else:
        selected = next(run for run in runs if run.name == evidence.board.selected)
        extras = _extras(selected, evidence, data, options)
        text = render_html(values, extras, version("regraft"))
    write_page(target, text)
    return Report(target, evidence)


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[FailedRow]]:
    """Return the runs that folders hold or are, and the rows of comparisons that failed.

    Runs whose folders are called the same are named with their parents.
    """
    runs: dict[Path, Run] = {}
    failed: list[FailedRow] = []
    for path in paths:
        rows = _leaderboard_rows(path)
        if rows is None:
            runs.setdefault(path.resolve(), load_run(path))
            continue
        for row in rows:
            if "error" in row:
                failed += to_failed_rows([row])
            else:
                folder = path / row["name"]
                runs[folder.resolve()] = load_run(folder)
    return name_apart(list(runs.values())), failed


def _leaderboard_rows(path: Path) -> list[dict[str, Any]] | None:
    """Return the rows of a comparison; None where the folder is none."""
    board = path / LEADERBOARD
    if board.is_file():
        rows: list[dict[str, Any]] = json.loads(board.read_text())["rows"]
        return rows
    if (path / COMPARISON).is_file():
        raise UserError(
            f"The comparison in {path} is not finished. Resume it with the same `regraft compare` "
            "command and --resume."
        )
    return None


def name_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with names that differ: by as many of their parents as that takes."""
    parts = [run.path.absolute().parts for run in runs]
    named = []
    for number, run in enumerate(runs):
        others = parts[:number] + parts[number + 1 :]
        own = parts[number]
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        named.append(run if depth == 1 else replace(run, label="/".join(own[-depth:])))
    return named


def _extras(
    selected: Run, evidence: Evidence, data: str | Path | None, options: Options
) -> PageExtras:
    """Return galleries and checks of the selected run's images, or why there are none."""
    try:
        dataset = _images(selected, data, options)
    except UserError as error:
        if data is not None:
            raise
        reason = f"The images could not be had ({error}) Name them with --data."
        return PageExtras([Gallery("Worst mistakes", "", reason=reason)])

    def make_maps(images: Sequence[Any], classes: Sequence[int]) -> Sequence[Any]:
        classifier = Classifier(selected, options.runtime.device)
        return activation_maps(classifier, images, classes)

    findings = remembered_check(dataset, selected.scores.split_digest, options.cache)
    galleries = run_galleries(selected, evidence.part, dataset, make_maps)
    shown = check_galleries(findings, dataset) if findings else ()
    return PageExtras(galleries, findings, shown, _describe_leaks(selected))


def _describe_leaks(run: Run) -> str:
    leaks = run.scores.leaks
    if not leaks:
        return "No val or test image is an exact copy of an image in an earlier part."
    return f"{leaks:,} val or test images are exact copies of images in an earlier part."


def _images(run: Run, data: str | Path | None, options: Options) -> Dataset:
    """Return the images of a run; raises `UserError` where they are others."""
    dataset = load_images(run, data, options.cache.dir)
    try:
        recorded_split(run, dataset)
    except UserError as error:
        name = data or run.scores.origin.data
        raise UserError(
            f"{name} holds other images than {run.path} was fitted on. Expected the same images. "
            f"Name them with --data. ({error})"
        ) from error
    return dataset

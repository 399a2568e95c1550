"""The story behind `regraft report`: finished runs in, one page out; images, maps and checks are put in where they can be had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import Dataset
from regraft.errors import UserError
from regraft.evaluation.metrics import hardest_examples
from regraft.evaluation.scores import log_softmax
from regraft.inference.cam import activation_maps
from regraft.inference.classifier import load_classifier
from regraft.reporting.evidence import gather_evidence
from regraft.reporting.html import (
    Gallery,
    PageExtras,
    Thumbnail,
    render_check_html,
    render_html,
    render_markdown,
)
from regraft.runs.folder import Run, load_run, write_text
from regraft.system.files import check_writable, unwritable_error
from regraft.workflow.checking import Check, doubt, remembered
from regraft.workflow.origin import images_of, settings_of
from regraft.workflow.settings import Settings

FORMATS = ("html", "md")
_SHOWN = 18  # images of a gallery
_MAPS = 6  # class-activation maps of right and of wrong cases


def report_named(
    paths: Sequence[Path],
    out: Path | None = None,
    kind: str = "html",
    data: str | None = None,
    **settings: Any,
) -> tuple[Path, dict[str, Any]]:
    """Return where the report was written and what it says, see `evidence.gathered`.

    Args:
        paths: Run folders, or folders of comparisons.
        out: The file; `report.html` or `report.md` in the comparison, or beside the first run's files, when None.
        kind: "html" or "md".
        data: The images; by default those that the runs remember.
        **settings: `home`, `device`, `overwrite` and `watcher`.

    Raises:
        UserError: When a folder holds no finished run, runs do not belong together, or the file exists and is not to be overwritten.
    """
    from regraft.workflow.named import asked

    if kind not in FORMATS:
        raise UserError(f"--format {kind} was given. Expected {' or '.join(FORMATS)}.")
    where = asked(settings)
    runs, failed = _found(paths)
    target = out or paths[0] / f"report.{kind}"
    if out is not None:
        vacant(out, where.overwrite)
    check_writable(target.parent, target)
    told = gather_evidence(runs, failed)
    if kind == "md":
        text = render_markdown(told)
    else:
        selected = next(one for one in runs if one.name == told["board"]["selected"])
        text = render_html(told, _extra(selected, told, data, where), version("regraft"))
    _write(target, text)
    return target, told


def vacant(out: Path, overwrite: bool) -> None:
    """Raise `UserError` where a page cannot be written: the file exists and is not to be overwritten, or its folder does not."""
    if out.is_dir():
        raise UserError(
            f"{out} is a folder. Expected a file for the page. Give a file name, such as {out / 'report.html'}."
        )
    if out.exists() and not overwrite:
        raise UserError(
            f"{out} exists already. Expected a new file. Pass --overwrite to replace it, or another --out."
        )
    if not out.absolute().parent.is_dir():
        raise UserError(
            f"{out} cannot be written: {out.parent} is no folder. Make it first, or give another --out."
        )
    check_writable(out.parent, out)


def write_check(found: Check, out: Path) -> None:
    """Write a check as one HTML page, with thumbnails."""
    _write(
        out,
        render_check_html(found.told, _check_galleries(found.told, found.data), version("regraft")),
    )


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise unwritable_error(path, error) from error


def _found(paths: Sequence[Path]) -> tuple[list[Run], list[dict[str, Any]]]:
    """Return the runs that folders hold or are, and the rows of comparisons that failed."""
    runs: dict[Path, Run] = {}
    failed: list[dict[str, Any]] = []
    for path in paths:
        if (path / "comparison.json").is_file() or (path / "leaderboard.json").is_file():
            if not (path / "leaderboard.json").is_file():
                raise UserError(
                    f"The comparison in {path} is not finished. Go on with the same `regraft compare` command and --resume."
                )
            rows = json.loads((path / "leaderboard.json").read_text())["rows"]
            failed += [row for row in rows if "error" in row]
            runs |= {
                (path / row["name"]).resolve(): load_run(path / row["name"])
                for row in rows
                if "error" not in row
            }
        else:
            runs.setdefault(path.resolve(), load_run(path))
    return _called_apart(list(runs.values())), failed


def _called_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with names that differ: where two folders are called the same, their parents are named too."""
    found = []
    for one in runs:
        others = [other.path.absolute().parts for other in runs if other is not one]
        mine = one.path.absolute().parts
        depth = next(
            (
                deep
                for deep in range(1, len(mine))
                if all(other[-deep:] != mine[-deep:] for other in others)
            ),
            len(mine),
        )
        found.append(one if depth == 1 else _Renamed.of(one, depth))
    return found


class _Renamed(Run):
    """A run called by its folder and so many of its parents as tell it from others."""

    @property
    def name(self) -> str:
        return str(self.__dict__["called"])

    @classmethod
    def of(cls, one: Run, depth: int) -> Run:
        made = cls(one.path, one.plan, one.classes, one.scores)
        made.__dict__["called"] = "/".join(one.path.absolute().parts[-depth:])
        return made


def _extra(
    selected: Run, told: dict[str, Any], given: str | None, settings: Settings
) -> PageExtras:
    """Return galleries and checks of the selected run's images, or why there are none."""
    try:
        data = _images(selected, given, settings)
    except UserError as error:
        if given is not None:
            raise
        missing = f"The images could not be had ({error}) Name them with --data."
        return PageExtras([Gallery("Worst mistakes", "", missing=missing)])
    split = told["split_digest"]
    check = remembered(data, split, settings)
    leaks = selected.scores.get("leaks", 0)
    said = f"{leaks:,} images of val and test are" if leaks else "No image of val or test is"
    said += " byte for byte in an earlier part too."
    return PageExtras(
        _galleries(selected, told["part"], data, settings),
        check,
        _check_galleries(check, data) if check else (),
        said,
    )


def _images(selected: Run, given: str | None, settings: Settings) -> Dataset:
    """Return the images of a run; raises `UserError` where they are others."""
    data = images_of(selected, given, settings)
    where = settings_of(selected, settings)
    keys = set(data.keys.tolist())
    if any(key not in keys for key in selected.predictions("val")["keys"].tolist()) or (
        not where.skip_bad and where.split(data).digest != selected.scores["split_digest"]
    ):
        raise UserError(
            f"{given or selected.scores['origin']['data']} holds other images than {selected.path} was fitted on (split {where.split(data).digest}, not "
            f"{selected.scores['split_digest']}). Expected the same images. Name them with --data."
        )
    return data


def _galleries(selected: Run, part: str, data: Dataset, settings: Settings) -> list[Gallery]:
    judged = selected.predictions(part)
    logits, targets = judged["logits"], judged["targets"]
    at = {key: row for row, key in enumerate(data.keys.tolist())}
    rows = np.array([at[key] for key in judged["keys"].tolist()], dtype=np.int64)
    chances = np.exp(log_softmax(logits))
    worst, least = hardest_examples(logits, targets, _SHOWN)

    def shots(
        chosen: NDArray[np.int64], heats: Sequence[NDArray[np.float32]] | None = None
    ) -> list[Thumbnail]:
        images = data.images.read(rows[chosen])
        found = []
        for number, (row, image) in enumerate(zip(chosen.tolist(), images, strict=True)):
            ranked = np.argsort(-chances[row], kind="stable")[:3]
            said = tuple(f"{data.classes[label]} {chances[row, label]:.0%}" for label in ranked)
            right = bool(ranked[0] == targets[row])
            found.append(
                Thumbnail(
                    image,
                    (*said, f"true: {data.classes[targets[row]]}"),
                    heats[number] if heats else None,
                    right,
                )
            )
        return found

    galleries = [
        Gallery(
            "Worst mistakes",
            "Wrong, and surest of it; a wrong label often shows here.",
            shots(worst),
            "There are none.",
        ),
        Gallery(
            "Least certain",
            "Whatever was said, it was said with the least probability.",
            shots(least),
        ),
    ]
    sure = np.argsort(-chances.max(axis=1), kind="stable")
    right = sure[chances.argmax(axis=1)[sure] == targets[sure]][:_MAPS]
    looked = np.concatenate([right, worst[:_MAPS]])
    about = "What speaks for the class that was said (HiResCAM, Draelos and Carin 2020); first surest right ones, then the worst mistakes."
    try:
        classifier = load_classifier(selected.path, settings.device)
        heats = activation_maps(
            classifier, data.images.read(rows[looked]), chances[looked].argmax(axis=1).tolist()
        )
        galleries.append(Gallery("Where it looks", about, shots(looked, heats)))
    except UserError as error:
        galleries.append(Gallery("Where it looks", about, missing=str(error)))
    return galleries


def _check_galleries(told: dict[str, Any], data: Dataset) -> list[Gallery]:
    """Return thumbnails of what a check found, the first of each kind."""

    def lines(row: int, *more: str) -> tuple[str, ...]:
        return (*more, str(data.keys[row])[-40:])

    found = []
    for kind, title, about in (
        ("exact", "Exact duplicates", "The same bytes; across parts first."),
        (
            "near",
            "Near duplicates",
            "Pairs that the network cannot tell apart; across parts first.",
        ),
    ):
        groups = told[kind][: _SHOWN // 2]
        rows = [
            (row, group, place) for group in groups for place, row in enumerate(group["rows"][:2])
        ]
        images = (
            data.images.read(np.array([row for row, _, _ in rows], dtype=np.int64)) if rows else []
        )
        shots = [
            Thumbnail(
                image,
                lines(
                    row,
                    f"{group['labels'][place]}, {group['parts'][place]}",
                    *([f"{group['by']}, {group['cosine']:.3f}"] if "by" in group else []),
                ),
            )
            for image, (row, group, place) in zip(images, rows, strict=True)
        ]
        if shots:
            found.append(Gallery(title, about, shots))
    suspects = told["suspects"][:_SHOWN]
    if suspects:
        images = data.images.read(np.array([one["row"] for one in suspects], dtype=np.int64))
        shots = []
        for image, one in zip(images, suspects, strict=True):
            doubts = (f"labelled {one['label']} ({one['chance_label']:.0%})", doubt(one))
            shots.append(Thumbnail(image, lines(one["row"], *doubts, one["part"])))
        found.append(Gallery("Doubtful labels", "The most doubtful first.", shots))
    return found

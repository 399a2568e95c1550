"""Many runs side by side: backbones × techniques × seeds on one split, ranked on validation, the test part opened once at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from regraft.data.dataset import Dataset, Split
from regraft.errors import DiskFull, UserError
from regraft.models.backbone import check_backbone_name
from regraft.models.weights import DEFAULT_BACKBONE
from regraft.plans.schema import Plan
from regraft.plans.techniques import DEFAULT_TECHNIQUES, find_technique
from regraft.reporting.leaderboard import build_leaderboard_json, write_leaderboard
from regraft.runs.folder import Run, lock_run_dir, prepare_dir, write_json
from regraft.system.files import remove_partials
from regraft.workflow.opening import open_test
from regraft.workflow.planning import Wish, make
from regraft.workflow.settings import Settings
from regraft.workflow.sharing import Shelf, compute_shared
from regraft.workflow.story import fit, loaded, readable
from regraft.workflow.tracking import check


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its folder, the leaderboard as plain data, and the runs that finished."""

    path: Path
    board: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def selected(self) -> Run | None:
        """The run that does best on validation."""
        return next((one for one in self.runs if one.name == self.board["selected"]), None)

    def __repr__(self) -> str:
        return f"Comparison({str(self.path)!r}: {self.board['verdict']})"


def compare(
    data: Dataset,
    out: Path,
    backbones: Sequence[str] = (DEFAULT_BACKBONE,),
    ways: Sequence[str] = DEFAULT_TECHNIQUES,
    seeds: int = 1,
    wish: Wish | None = None,
    settings: Settings | None = None,
    plans: Mapping[str, Path | Plan] = MappingProxyType({}),
) -> Comparison:
    """Carry every backbone over to the images in every way, and say which did best.

    A row that fails is reported with its reason, and the others go on.

    Args:
        data: Labelled images.
        out: Folder of the comparison; each row is a run folder in it.
        backbones: timm names.
        ways: Names of techniques.
        seeds: Rows for the seeds 0 … seeds - 1; the split stays the same.
        wish: Resolution, weights and changes for every row.
        settings: Where things are kept, and how runs are begun.
        plans: Plans, or their files, that are rows too, by what the rows are called; they keep their backbone, resolution and weights.

    Raises:
        UserError: When names are unknown, images unreadable, or the folder is taken.
    """
    settings, wish = settings or Settings(), wish or Wish()
    if seeds > 1 and any(change.partition("=")[0].strip() == "seed" for change in wish.changes):
        raise UserError(
            f"--seeds {seeds} and --set seed=… were given, which would make {seeds} equal rows. Expected one of the two. Leave one out."
        )
    check(settings.track)
    for way in ways:
        find_technique(way)
    for name in backbones:
        check_backbone_name(name)
    split = settings.split(data)
    asked = _asked(list(dict.fromkeys(backbones)), list(dict.fromkeys(ways)), plans, wish)
    rows = _rows(data, split, asked, seeds, settings)
    made = [plan for _, plan in rows if isinstance(plan, Plan)]
    if not made:
        raise next(fault for _, fault in rows if isinstance(fault, UserError))
    with lock_run_dir(out, "comparison", settings.resume, settings.overwrite):
        return _side_by_side(data, out, rows, made, settings)


def _side_by_side(
    data: Dataset,
    out: Path,
    rows: Sequence[tuple[dict[str, Any], Plan | UserError]],
    made: Sequence[Plan],
    settings: Settings,
) -> Comparison:
    """Fit every row, open the test part for all of them, and write who did best."""
    _prepare(out, settings)
    data, _ = readable(
        data,
        loaded(made[0].model_copy(update={"weights": "random"}), settings),
        ("train", "val", "test"),
        settings,
    )
    compute_shared(data, made, ("train", "val"), settings)
    shelf = Shelf(settings)
    done: list[Run] = []
    failed: list[dict[str, Any]] = []
    for number, (row, plan) in enumerate(rows, 1):
        settings.watcher.say(f"Row {number} of {len(rows)}: {row['name']}")
        with _failing(row, failed, settings):
            if isinstance(plan, UserError):
                raise plan
            done.append(
                fit(
                    data,
                    plan,
                    out / row["name"],
                    replace(settings, overwrite=False),
                    shelf.of(plan),
                )
            )
    settings.watcher.say("Opening the test part for all rows at once.")
    compute_shared(data, [one.plan for one in done if not one.test], ("test",), settings)
    opened: list[Run] = []
    for one in done:
        row = {
            "name": one.name,
            "backbone": one.plan.backbone,
            "technique": one.plan.technique,
            "seed": one.plan.seed,
        }
        with _failing(row, failed, settings):
            opened.append(one if one.test else open_test(one, data, settings, shelf.like(one.plan)))
    if not opened:
        raise UserError(f"No row finished. {failed[0]['name']}: {failed[0]['error']}")
    board = build_leaderboard_json(opened, failed)
    write_leaderboard(board, opened, out)
    return Comparison(out, board, tuple(opened))


@contextmanager
def _failing(
    row: dict[str, Any], failed: list[dict[str, Any]], settings: Settings
) -> Iterator[None]:
    """Keep what goes wrong in a row as its reason, so that the other rows go on."""
    try:
        yield
    except DiskFull:
        raise
    except UserError as error:
        failed.append({**row, "error": str(error)})
    except Exception as error:  # our bug or the machine's limit
        failed.append({**row, "error": f"{type(error).__name__}: {error}"})
    else:
        return
    settings.watcher.say(f"{row['name']} failed: {failed[-1]['error']}")


def _prepare(out: Path, settings: Settings) -> None:
    prepare_dir(out, "comparison", settings.resume, settings.overwrite)
    remove_partials(out)
    write_json(out / "comparison.json", {"finished": False})


def _asked(
    backbones: Sequence[str], ways: Sequence[str], plans: Mapping[str, Path | Plan], wish: Wish
) -> list[tuple[str, Wish]]:
    """Return what each row is called with what is asked of it; those of one backbone follow each other, so that what they share is read while it is warm."""
    named = [
        (
            "-".join([name] * (len(backbones) > 1) + [way]),
            replace(wish, technique=way, backbone=name),
        )
        for name in backbones
        for way in ways
    ]
    return named + [
        (
            name,
            replace(wish, technique=name, plan=path, backbone=None, resolution=None, weights=None),
        )
        for name, path in plans.items()
    ]


def _rows(
    data: Dataset, split: Split, asked: Sequence[tuple[str, Wish]], seeds: int, settings: Settings
) -> list[tuple[dict[str, Any], Plan | UserError]]:
    """Return what each row is called with its plan, or with the reason why there is none."""
    found: list[tuple[dict[str, Any], Plan | UserError]] = []
    for name, wish in asked:
        for seed in range(seeds):
            called = re.sub(r"[^\w.-]+", "-", f"{name}-seed{seed}" if seeds > 1 else name)
            row = {
                "name": called,
                "backbone": wish.backbone,
                "technique": wish.technique,
                "seed": seed,
            }
            own = wish.plan is not None and seeds == 1  # a plan keeps its seed
            try:
                plan = make(data, split, wish if own else replace(wish, seed=seed), settings.device)
                found.append(({**row, "backbone": plan.backbone, "seed": plan.seed}, plan))
            except UserError as error:
                found.append((row, error))
    return found

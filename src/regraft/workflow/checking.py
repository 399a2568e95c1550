"""What is wrong with labelled images, found before anything is trained: the story behind `regraft check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.checks.duplicates import exact_duplicates, near_duplicates
from regraft.checks.labels import SuspectLabels, find_suspect_labels
from regraft.checks.outliers import UNEVEN_RATIO, class_balance, find_flat_images, find_odd_files
from regraft.data.dataset import PARTS, Dataset, Split, Unreadable
from regraft.data.load import load_dataset
from regraft.errors import UserError, join_truncated
from regraft.models.backbone import Backbone
from regraft.models.layers import cut_backbone
from regraft.plans.schema import Plan
from regraft.runs.folder import write_json
from regraft.system.hardware import free_memory
from regraft.workflow.parts import Part
from regraft.workflow.planning import Wish, make
from regraft.workflow.settings import Settings
from regraft.workflow.story import loaded

_COPIES = 5  # of the features, while a probe is solved on them
LISTED = 200  # findings of a kind that are kept; all are counted


@dataclass(frozen=True)
class Check:
    """What a check found, as plain data, with the images that it looked at."""

    told: dict[str, Any]
    data: Dataset

    def __repr__(self) -> str:
        return f"Check({self.data.name!r}: {self.told['verdict']})"


@dataclass(frozen=True)
class _Seen:
    """The images that can be decoded: their rows, pixels, and features of the network's end and of several places (of the end where memory is short)."""

    rows: NDArray[np.int64]
    pixels: Sequence[NDArray[np.uint8]]
    end: NDArray[np.float16]
    several: NDArray[np.float16]


def check(data: Dataset, wish: Wish | None = None, settings: Settings | None = None) -> Check:
    """Return duplicates within and across parts, suspected labels, imbalance and odd files; images of every part are looked at, no run is scored.

    Args:
        data: Labelled images.
        wish: Backbone, weights and resolution whose features say what is alike; by default those of a linear and a multi-layer probe, which share the cache.
        settings: Where things are kept, and the split.

    Returns:
        A check whose `told` has `exact` and `near` (groups with `keys`, `parts`, `labels`), `across` (how many of them lie in more than one part),
        `suspects` (the most suspicious first) with `suspect_count`, `balance`, `odd` and `verdict`; at most 200 findings of each kind are listed.

    Raises:
        UserError: When weights or images cannot be had.
    """
    settings, wish = settings or Settings(), wish or Wish()
    split = settings.split(data)
    plan = make(data, split, wish, settings.device)
    model = loaded(plan, settings)
    every = np.concatenate([split[part] for part in PARTS])
    odd, every = find_odd_files(data, every)
    part_of = np.full(len(data), "", dtype="<U5")
    for part in PARTS:
        part_of[split[part]] = part
    several = make(data, split, replace(wish, technique="multi-layer-probe"), settings.device)
    known = _features(data, split, set(every.tolist()), model, (plan, several), settings, odd)
    seen = known.rows
    hashes, labels = data.hashes[seen], data.labels[seen]
    found = find_suspect_labels(
        known.several, labels, len(data.classes), settings.split_seed, settings.watcher
    )

    def named(rows: list[int]) -> dict[str, Any]:
        return {
            "keys": [str(data.keys[row]) for row in rows],
            "parts": [str(part_of[row]) for row in rows],
            "labels": [data.classes[data.labels[row]] for row in rows],
            "rows": rows,
        }

    exact = [
        named(group)
        for group in ([int(seen[row]) for row in rows] for rows in exact_duplicates(hashes))
    ]
    alike = near_duplicates(known.pixels, known.end, hashes, settings.watcher)
    near = [
        {**named([int(seen[row]) for row in one["rows"]]), "cosine": one["cosine"], "by": one["by"]}
        for one in alike
    ]
    suspected = [
        _suspect(data, part_of, seen, found, int(row))
        for row in found.ranking[: min(found.count, LISTED)]
    ]
    told: dict[str, Any] = {
        "data": data.name,
        "classes": len(data.classes),
        "images": {part: len(split[part]) for part in PARTS},
        "split_digest": split.digest,
        "backbone": plan.backbone,
        "resolution": plan.resolution,
        "weights": model.weights,
        "counts": {
            "exact": len(exact),
            "near": len(near),
            "suspects": found.count,
            "odd": len(odd),
        },
        "across": {
            "exact": sum(_crosses(one) for one in exact),
            "near": sum(_crosses(one) for one in near),
        },
        "exact": sorted(exact, key=lambda one: not _crosses(one))[:LISTED],
        "near": sorted(near, key=lambda one: not _crosses(one))[:LISTED],
        "suspects": suspected,
        "balance": class_balance(data, split),
        "odd": [{"key": str(data.keys[one["row"]]), **one} for one in odd[:LISTED]],
    }
    told["verdict"] = verdict(told)
    _keep(told, data, settings)
    return Check(told, data)


def check_named(
    data: str | Path | Dataset, wish: Wish | None = None, out: Path | None = None, **settings: Any
) -> Check:
    """Return the check of images by name; `out` also writes it as one HTML page.

    Raises:
        UserError: When the page exists already, or the images cannot be had.
    """
    from regraft.workflow.named import asked
    from regraft.workflow.pages import vacant, write_check

    where = asked(settings, data)
    if out is not None:
        vacant(out, where.overwrite)
    found = check(load_dataset(data, where.home), wish, where)
    if out is not None:
        write_check(found, out)
    return found


def remembered(data: Dataset, split_digest: str, settings: Settings) -> dict[str, Any] | None:
    """Return what the last check of these images found, None where there was none."""
    import json

    path = _shelf(data, split_digest, settings)
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def verdict(told: dict[str, Any]) -> str:
    """Return what a check found in a sentence or two."""
    counts, across = told["counts"], told["across"]
    said = []
    if across["exact"]:
        said.append(
            f"{across['exact']:,} images occur byte for byte in more than one part: what is measured on val and test is flattered"
        )
    if across["near"]:
        said.append(f"{across['near']:,} pairs across parts look nearly the same")
    if counts["exact"] > across["exact"]:
        said.append(
            f"{counts['exact'] - across['exact']:,} images occur twice or more within a part"
        )
    if counts["suspects"]:
        share = counts["suspects"] / max(1, sum(told["images"].values()))
        said.append(f"{counts['suspects']:,} labels ({share:.1%}) look wrong or doubtful")
    if told["balance"]["ratio"] >= UNEVEN_RATIO:
        said.append(
            f"the largest class has {told['balance']['ratio']:.1f} times the images of the smallest"
        )
    if told["balance"]["few"]:
        said.append(f"{len(told['balance']['few'])} classes have fewer than ten training images")
    if counts["odd"]:
        said.append(f"{counts['odd']:,} files are odd or cannot be read")
    if not said:
        return "Nothing stands out: no duplicates, no doubtful labels, no odd files, classes of like size."
    text = "; ".join(said)
    return text[0].upper() + text[1:] + "."


def _features(
    data: Dataset,
    split: Split,
    good: set[int],
    model: Backbone,
    plans: tuple[Plan, Plan],
    settings: Settings,
    odd: list[dict[str, Any]],
) -> _Seen:
    """Return what is known of every image that can be decoded; what cannot is added to `odd`."""
    cuts = [cut_backbone(model, "head", plan.stages_taken, plan.flattens)[0] for plan in plans]
    named = [(prefix, prefix.digest()) for prefix in cuts]
    found: list[
        tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.uint8], NDArray[np.int64]]
    ] = []
    for name in PARTS:
        rows = np.array([row for row in split[name].tolist() if row in good], dtype=np.int64)
        try:
            if len(rows):
                Part(name, data.take(rows), settings).pixels(model)
        except Unreadable as error:
            odd += [
                {"row": int(rows[row]), "why": f"cannot be read: {reason}"}
                for row, reason in zip(error.rows, error.reasons, strict=True)
            ]
            rows = np.delete(rows, error.rows)
        if not len(rows):
            continue
        part = Part(name, data.take(rows), settings)
        stored = part.pixels(model).arrays[0]
        odd += find_flat_images(stored, rows)
        ends, many = part.kept(model, named, plans[0])
        found.append((ends.arrays[0], many.arrays[0], stored, rows))
    if not found:
        why = join_truncated(one["why"] for one in odd)
        raise UserError(
            f"No image of {data.name} can be decoded ({why}). Expected some whole ones. Repair them, or give other data."
        )
    ends_of, many_of, pixels, rows_of = zip(*found, strict=True)
    fits = _COPIES * 4 * sum(map(len, many_of)) * many_of[0].shape[1] < free_memory()
    ends_of_all = np.concatenate(ends_of)
    return _Seen(
        np.concatenate(rows_of),
        pixels,
        ends_of_all,
        np.concatenate(many_of) if fits else ends_of_all,
    )


def _suspect(
    data: Dataset,
    part_of: NDArray[np.str_],
    seen: NDArray[np.int64],
    found: SuspectLabels,
    number: int,
) -> dict[str, Any]:
    row, said = int(seen[number]), int(found.said[number])
    label = int(data.labels[row])
    return {
        "row": row,
        "key": str(data.keys[row]),
        "part": str(part_of[row]),
        "label": data.classes[label],
        "said": data.classes[said],
        "chance_label": float(found.chances[number, label]),
        "chance_said": float(found.chances[number, said]),
    }


def doubt(suspect: dict[str, Any]) -> str:
    """Return in words what is wrong with a suspected label."""
    what = (
        "is not clearly that"
        if suspect["said"] == suspect["label"]
        else f"looks like {suspect['said']}"
    )
    return f"{what} ({suspect['chance_said']:.0%})"


def _crosses(group: dict[str, Any]) -> bool:
    return len(set(group["parts"])) > 1


def _shelf(data: Dataset, split_digest: str, settings: Settings) -> Path:
    return settings.home / "checks" / f"{data.fingerprint}-{split_digest}.json"


def _keep(told: dict[str, Any], data: Dataset, settings: Settings) -> None:
    """Remember what was found, for the report; a cache that cannot be written is no reason to fail."""
    path = _shelf(data, told["split_digest"], settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, told)
    except OSError as error:
        settings.watcher.say(f"The check is not remembered: {error.strerror}.")

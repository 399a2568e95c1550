"""Opening the test part: on purpose, recorded each time, for one run or for many at once."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from regraft.data.dataset import PARTS, Dataset, Unreadable
from regraft.errors import UserError, join_truncated
from regraft.evaluation.scores import compute_scores
from regraft.inference.network import restore_network
from regraft.models.backbone import Backbone
from regraft.runs.folder import Run, file_digest, load_run, write_json, write_predictions
from regraft.system.files import ADVICE_REPEAT, lock_path
from regraft.system.hardware import resolve_device
from regraft.workflow.parts import Part, logits
from regraft.workflow.settings import Settings
from regraft.workflow.story import final_cut, readable

_PATIENCE = 30.0  # seconds to wait for another process that opens the same run; a comparison loses no row to somebody who looks at one


def open_test(
    finished: Run, data: Dataset, settings: Settings | None = None, body: Backbone | None = None
) -> Run:
    """Score a run on the test part of the very split that it was fitted on, and record that the part was opened.

    Args:
        finished: The run.
        data: The images that it was fitted on.
        settings: `home`, `device`, `skip_bad` and `watcher` count; the split is the one of the run.
        body: A backbone of the run's name and resolution that may be given the run's weights; else one is made.

    Raises:
        UserError: When these are other images or another split.
    """
    settings = settings or Settings()
    with lock_path(finished.path, wait=_PATIENCE, advice=ADVICE_REPEAT, elsewhere=False):
        _open(load_run(finished.path), data, settings, body)
    return load_run(finished.path)


def _open(finished: Run, data: Dataset, settings: Settings, body: Backbone | None) -> None:
    model, top = restore_network(finished, resolve_device(settings.device), body)
    data, split = readable(data, model, ("train", "val") if settings.skip_bad else (), settings)
    if split.digest != finished.scores["split_digest"] and settings.skip_bad:
        data, split = readable(
            data, model, PARTS, settings
        )  # a comparison left out broken test images as well
    if split.digest != finished.scores["split_digest"]:
        raise UserError(
            f"{data.name} splits into {split.digest}, but the run in {finished.path} was fitted on {finished.scores['split_digest']}. "
            "Expected the same images, which then fall into the same parts. Name those that the run was fitted on."
        )
    part = _readable_part(Part("test", data.take(split.test), settings), model, settings)
    prefix, suffix = final_cut(model, finished.plan)
    said = logits(part, model, prefix, suffix, top, finished.plan)
    openings = [
        *(finished.test or {}).get("opened", []),
        datetime.now(UTC).isoformat(timespec="seconds"),
    ]
    write_predictions(finished.path / "predictions-test.npz", part.data.keys, part.labels, said)
    sealed = file_digest(finished.path / "predictions-test.npz")
    write_json(
        finished.path / "test.json",
        {
            "test": compute_scores(said, part.labels).plain(),
            "opened": openings,
            "predictions": sealed,
        },
    )


def _readable_part(part: Part, model: Backbone, settings: Settings) -> Part:
    """Return the part, without images that cannot be decoded where they may be skipped."""
    try:
        part.pixels(model)
    except Unreadable as error:
        if not settings.skip_bad:
            raise
        settings.watcher.say(
            f"Going on without {len(error.rows):,} images that cannot be decoded: {join_truncated(error.reasons)}."
        )
        rows = np.setdiff1d(np.arange(len(part.data)), error.rows)
        return Part(part.name, part.data.take(rows), part.settings)
    return part


def score(
    finished: Run, data: Dataset, settings: Settings | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what a run says of all images of another dataset with the same classes: logits `(n, classes)`, and the labels.

    Raises:
        UserError: When the classes differ.
    """
    settings = settings or Settings()
    if data.classes != finished.classes:
        raise UserError(
            f"{data.name} has the classes {', '.join(data.classes[:5])} …, the run {', '.join(finished.classes[:5])} …. "
            "Expected the same classes in the same order."
        )
    model, top = restore_network(finished, resolve_device(settings.device))
    part = _readable_part(Part("all", data.take(np.arange(len(data))), settings), model, settings)
    prefix, suffix = final_cut(model, finished.plan)
    return logits(part, model, prefix, suffix, top, finished.plan, keep=False), part.labels

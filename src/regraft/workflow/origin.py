"""Where the images of a finished run are, and what its split depended on."""

from __future__ import annotations

from dataclasses import replace

from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.runs.folder import Run
from regraft.workflow.settings import Settings

SPLIT_BY = (
    "train_images",
    "val_images",
    "split_seed",
)  # settings that decide which image is in which part
_KEPT = (*SPLIT_BY, "skip_bad")


def noted(settings: Settings) -> dict[str, object]:
    """Return what a run notes of where its images came from: `data` in the user's words, and the settings that decided its parts."""
    return {"data": settings.origin, **{name: getattr(settings, name) for name in _KEPT}}


def settings_of(finished: Run, settings: Settings) -> Settings:
    """Return settings under which the same images fall into the same parts as in a finished run."""
    known = finished.scores.get("origin", {})
    asked = replace(settings, **{name: known[name] for name in SPLIT_BY if name in known})
    return replace(asked, skip_bad=settings.skip_bad or bool(known.get("skip_bad")))


def images_of(finished: Run, given: str | None, settings: Settings) -> Dataset:
    """Return the images that are given, else those that a run remembers; raises `UserError` where neither is known, or they cannot be had."""
    where = given or finished.scores.get("origin", {}).get("data")
    if where is None:
        raise UserError(
            f"The run in {finished.path} does not know where its images came from. Expected DATA, or --data. Name the same images."
        )
    return load_dataset(where, settings.home)

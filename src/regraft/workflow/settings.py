"""What a run needs to know besides data and plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from regraft.data.dataset import Dataset, Split
from regraft.errors import UserError
from regraft.features.store import default_cache_dir
from regraft.system.progress import SILENT, ProgressReporter

KEEP = ("auto", "always", "never")
COMPILE = ("auto", "on", "off")
TRACK = (None, "csv", "tensorboard", "mlflow", "wandb")


@dataclass(frozen=True)
class Settings:
    """Where things are kept, how a run is begun, and how the machine is used.

    Args:
        home: The cache folder.
        train_images: Use a stratified subset of this many training images.
        val_images: The same for validation images.
        split_seed: Of the split.
        resume: Go on with what is in the run's folder.
        overwrite: Replace it.
        skip_bad: Go on without images that cannot be decoded.
        device: "auto", "cpu" or "cuda".
        keep: Whether the frozen part's output is kept: "auto" decides by measured cost and free space, "always", "never".
        compile: Whether networks are compiled: "auto" where that repays by estimate, "on", "off".
        track: Where the course of a run is sent besides its folder: "csv", "tensorboard", "mlflow" or "wandb".
        origin: What the user called the images.
        watcher: Hears what is going on.

    Raises:
        UserError: For a word that is none of these.
    """

    home: Path = field(default_factory=default_cache_dir)
    train_images: int | None = None
    val_images: int | None = None
    split_seed: int = 0
    resume: bool = False
    overwrite: bool = False
    skip_bad: bool = False
    device: str = "auto"
    keep: str = "auto"
    compile: str = "auto"
    track: str | None = None
    origin: str | None = None
    watcher: ProgressReporter = SILENT

    def split(self, data: Dataset) -> Split:
        """Return the split of some images that these settings ask for."""
        return data.split(self.split_seed, self.train_images, self.val_images)

    def __post_init__(self) -> None:
        for name, given, known in (("keep", self.keep, KEEP), ("compile", self.compile, COMPILE)):
            if given not in known:
                raise UserError(
                    f"--{name} {given} was given. Expected {', '.join(known[:-1])} or {known[-1]}. Leave it out to let regraft measure and choose."
                )
        if self.track not in TRACK:
            raise UserError(
                f"--track {self.track} was given. Expected {', '.join(map(str, TRACK[1:-1]))} or {TRACK[-1]}. Leave it out to track nothing."
            )

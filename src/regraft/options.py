"""What a user may choose besides data and plan: small groups of options, which are also flags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from regraft.errors import UserError
from regraft.system.progress import SILENT, ProgressReporter

if TYPE_CHECKING:
    from regraft.plans.schema import Plan

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
FLAG_TYPES = (bool, int, float, str, Path)
KEEP = ("auto", "always", "never")
COMPILE = ("auto", "on", "off")
TRACKERS = ("csv", "tensorboard", "mlflow", "wandb")


def default_cache_dir(cache_dir: str | Path | None = None) -> Path:
    """Return the cache folder: the one given, `REGRAFT_CACHE`, or the platform's."""
    named = cache_dir or os.environ.get("REGRAFT_CACHE")
    return Path(named or platformdirs.user_cache_path("regraft")).expanduser()


def option(
    default: Any,
    help: str,
    *flags: str,
    type: Any = None,
    form: str = "value",
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Return a dataclass field that is also a flag of the command line.

    Args:
        default: The default, of the field and of the flag; `MISSING` where it must be given.
        help: The help text.
        *flags: Names of the flag; by default that of the field, in dashes.
        type: Type of one value on the command line; that of `default` when None.
        form: "value", "repeat" for a flag that may be repeated, or "commas" for values separated
            by commas.
        least: The smallest number that the flag accepts.
        most: The largest one.

    Raises:
        ValueError: When there is neither a type nor a default to tell it.
    """
    kind = type or default.__class__
    if kind not in FLAG_TYPES:
        raise ValueError(f"A flag cannot take {kind.__name__}: give a type.")
    metadata = {
        "help": help,
        "flags": flags,
        "type": kind,
        "form": form,
        "least": least,
        "most": most,
    }
    return field(default=default, metadata=metadata)


def _require(flag: str, value: str, known: tuple[str, ...], advice: str) -> None:
    if value not in known:
        choices = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UserError(f"{flag} {value} was given. Expected {choices}. {advice}")


@dataclass(frozen=True)
class DataOptions:
    """Which images are used, and how they are split."""

    train_images: int | None = option(
        None, "Use a stratified subset of this many training images.", type=int
    )
    val_images: int | None = option(
        None, "Use a stratified subset of this many validation images.", type=int
    )
    split_seed: int = option(0, "Seed of the split into train, val and test.")
    skip_bad: bool = option(False, "Leave out images that cannot be decoded.")


@dataclass(frozen=True)
class CacheOptions:
    """Where computed features are cached, and whether.

    Raises:
        UserError: When `keep` is not one of `KEEP`.
    """

    cache_dir: str | Path | None = option(
        None,
        "Cache folder; REGRAFT_CACHE or the platform's by default.",
        "--cache-dir",
        "--cache",
        type=Path,
    )
    keep: str = option(
        "auto", "Cache the frozen part's output: auto (by measured cost), always or never."
    )

    @property
    def dir(self) -> Path:
        """The cache folder: the one given, `REGRAFT_CACHE`, or the platform's."""
        return default_cache_dir(self.cache_dir)

    def __post_init__(self) -> None:
        _require("--keep", self.keep, KEEP, "Leave it out to let regraft measure and choose.")


@dataclass(frozen=True)
class Runtime:
    """How the machine is used, and who hears of the progress.

    Raises:
        UserError: When `compile` is not one of `COMPILE`.
    """

    device: str = option("auto", "auto, cpu or cuda.")
    compile: str = option("auto", "Compile networks: auto (where it saves time), on or off.")
    reporter: ProgressReporter = field(default=SILENT)

    def __post_init__(self) -> None:
        _require(
            "--compile", self.compile, COMPILE, "Leave it out to let regraft measure and choose."
        )


@dataclass(frozen=True)
class RunDir:
    """The folder of a run, a comparison or a probe, and what may be done with what is in it.

    Raises:
        UserError: When `track` is not one of `TRACKERS`.
    """

    out: str | Path | None = option(None, "Folder to write to; new or empty.", type=Path)
    resume: bool = option(False, "Resume an unfinished run.")
    overwrite: bool = option(False, "Replace the run that is in the folder.")
    track: str | None = option(
        None, "Also log the run to csv, tensorboard, mlflow or wandb.", type=str
    )

    def __post_init__(self) -> None:
        if self.track is not None:
            _require("--track", self.track, TRACKERS, "Leave it out to track nothing.")


@dataclass(frozen=True)
class PlanOverrides:
    """What a user asks of a plan by name; None leaves it to the technique or the plan file."""

    plan: str | Path | Plan | None = option(None, "A plan file instead of a technique.", type=Path)
    backbone: str | None = option(
        None,
        f"Any timm name; `regraft backbones` lists them. {DEFAULT_BACKBONE} by default.",
        type=str,
    )
    weights: str | None = option(
        None, "'pretrained', 'random', or a safetensors or state-dict file.", type=str
    )
    resolution: int | None = option(
        None, "Side in pixels; by default what suits images and backbone.", type=int
    )
    seed: int | None = option(
        None, "Seed of weights, order, augmentation and dropout; 0 by default.", type=int
    )
    overrides: Sequence[str] = option(
        (),
        "Change the plan: KEY=VALUE, e.g. phases.0.lr=3e-4. Repeatable.",
        "--set",
        type=str,
        form="repeat",
    )
    precision: str | None = option(
        None,
        "Arithmetic of the frozen part: auto, bfloat16 or float32; auto by default.",
        type=str,
    )

    def fields(self) -> dict[str, Any]:
        """Return what was asked for, under the names of the plan's fields."""
        values = {
            "backbone": self.backbone,
            "weights": self.weights,
            "resolution": self.resolution,
            "seed": self.seed,
        }
        if self.precision != "auto":
            values["precision"] = self.precision
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Options:
    """All groups of options, as a verb is given them; each function takes the group it uses."""

    data: DataOptions = DataOptions()
    cache: CacheOptions = CacheOptions()
    runtime: Runtime = Runtime()
    run_dir: RunDir = RunDir()

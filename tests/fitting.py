"""Finished runs of tiny networks with random weights, which tests of whole verbs start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conftest import TINY
from regraft.commands.fit import fit
from regraft.data.dataset import Dataset
from regraft.options import CacheOptions, DataOptions, Options, PlanOverrides, RunDir, Runtime
from regraft.runs.folder import Run
from regraft.system.progress import SILENT, ProgressReporter


@dataclass(frozen=True)
class Tiny:
    """What differs between runs of a tiny network."""

    technique: str = "linear-probe"
    backbone: str = TINY
    resolution: int | None = 32
    weights: str = "random"
    seed: int | None = None
    overrides: tuple[str, ...] = ()

    def plan(self) -> PlanOverrides:
        return PlanOverrides(
            backbone=self.backbone,
            weights=self.weights,
            resolution=self.resolution,
            seed=self.seed,
            overrides=self.overrides,
        )


def options(
    cache: Path | None = None,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    split_seed: int = 0,
    skip_bad: bool = False,
    reporter: ProgressReporter = SILENT,
) -> Options:
    """Return options; None is the cache folder that the environment names."""
    return Options(
        data=DataOptions(split_seed=split_seed, skip_bad=skip_bad),
        cache=CacheOptions(cache),
        runtime=Runtime(reporter=reporter),
        run_dir=RunDir(out=out, overwrite=overwrite),
    )


def fit_tiny(data: str | Path | Dataset, chosen: Options, tiny: Tiny = Tiny()) -> Run:
    """Return the run of a tiny network, fitted in a second."""
    return fit(data, tiny.technique, tiny.plan(), chosen)


class Messages(ProgressReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

"""What tests share: small images, a cache of their own, and real data where the machine has it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from regraft.cli import main
from regraft.commands.fit import fit
from regraft.data.dataset import Dataset, make_dataset
from regraft.data.images import ArrayImages, Images
from regraft.options import Options, PlanOverrides, RunDir
from regraft.runs.folder import Run

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core, so a thread a worker
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

SHARED = Path(__file__).parents[2] / "shared" / "data"
TINY = "test_resnet"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has an empty cache and an empty current folder."""
    home = tmp_path / "cache"
    monkeypatch.setenv("REGRAFT_CACHE", str(home))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return home


def toy(images: int = 120, classes: int = 3, side: int = 16, seed: int = 0) -> Dataset:
    """Return images whose class is the place and colour of a bright square; easy to learn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    pixels = rng.integers(0, 90, (images, side, side, 3), dtype=np.uint8)
    third = side // 3
    for image, label in zip(pixels, labels, strict=True):
        start = (label % 3) * third
        image[start : start + third, start : start + third, label % 3] = 255
    names = [f"class{number}" for number in range(classes)]
    return make_dataset("toy", labels, names, ArrayImages(pixels))


def write_folder(root: Path, dataset: Dataset, parts: bool = False) -> Path:
    """Write a dataset as a folder of class folders of PNG files."""
    images = dataset.images.read(np.arange(len(dataset)))
    for row, (label, image) in enumerate(zip(dataset.labels, images, strict=True)):
        part = ("train", "train", "valid", "test")[row // 3 % 4] if parts else ""
        folder = root / part / dataset.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:04}.png")
    return root


TINY_FLAGS = ("--weights", "random", "--resolution", "32")
"""Flags of every verb that builds networks: a tiny one needs random weights and small images."""


def tiny_fit(
    data: str | Path | Dataset,
    technique: str = "linear-probe",
    options: Options = Options(),
    *changes: str,
    seed: int | None = None,
) -> Run:
    """Return the run of a tiny network with random weights."""
    return fit(data, technique, tiny_plan(*changes, seed=seed), options)


def tiny_plan(*changes: str, seed: int | None = None) -> PlanOverrides:
    """Return what is asked of the plan of a tiny network."""
    return PlanOverrides(
        backbone=TINY, weights="random", resolution=32, seed=seed, overrides=changes
    )


def to_folder(out: str | Path, resume: bool = False, **groups: Any) -> Options:
    """Return options whose run goes to a folder; `groups` are other fields of `Options`."""
    return Options(run_dir=RunDir(out=out, resume=resume), **groups)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of class folders."""
    return write_folder(tmp_path / "photos", toy())


@pytest.fixture
def shared_data() -> Path:
    """The real images that lie beside the checkout on the project's own machines."""
    if not SHARED.is_dir():
        pytest.skip("the real images (cifar10, sign-digits) do not lie beside this checkout")
    return SHARED


@dataclass(frozen=True)
class SpiedImages:
    """Images of files that note the name of every one that is decoded."""

    inner: Any
    decoded: list[str]

    def __len__(self) -> int:
        return len(self.inner)

    def hashes(self) -> NDArray[np.str_]:
        hashes: NDArray[np.str_] = self.inner.hashes()
        return hashes

    def sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        sizes: NDArray[np.int64] = self.inner.sizes(rows)
        return sizes

    def read(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        self.decoded.extend(file_names(self.inner, rows))
        images: list[NDArray[np.uint8]] = self.inner.read(rows)
        return images

    def take(self, rows: NDArray[np.int64]) -> Images:
        return SpiedImages(self.inner.take(rows), self.decoded)


def file_names(images: Any, rows: NDArray[np.int64]) -> list[str]:
    """Return the files of some images."""
    return [str(images.names[row]) for row in images.rows[rows]]


def spy_on_reads(dataset: Dataset) -> tuple[Dataset, list[str], list[str]]:
    """Return a dataset of files, the file of each row, and a list to which what is decoded goes."""
    decoded: list[str] = []
    spied = replace(dataset, images=SpiedImages(dataset.images, decoded))
    return spied, file_names(dataset.images, np.arange(len(dataset))), decoded


def unsealed(run: Path) -> Path:
    """Make a run's folder one of before files had digests, to reach what is behind that check."""
    path = run / "scores.json"
    scores = json.loads(path.read_text())
    del scores["files"]
    path.write_text(json.dumps(scores))
    return run


@dataclass(frozen=True)
class Result:
    """What a command did: exit status, stdout and stderr."""

    code: int
    out: str
    err: str


class Regraft(Protocol):
    """Runs the command line in this process."""

    def __call__(self, *words: object) -> Result: ...


@pytest.fixture
def regraft(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Regraft:
    """Run the command line in this process; returns exit status, stdout and stderr."""

    def run(*words: object) -> Result:
        monkeypatch.setattr("sys.argv", ["regraft", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return run

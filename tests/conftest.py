"""What tests share: small images, a cache of their own, and the real data where the machine has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.cli import main
from regraft.data.dataset import Dataset, make_dataset
from regraft.data.images import ArrayImages

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
    return make_dataset(
        "toy", labels, [f"class{number}" for number in range(classes)], ArrayImages(pixels)
    )


def write_folder(root: Path, dataset: Dataset, parts: bool = False) -> Path:
    """Write a dataset as a folder of class folders of PNG files."""
    for row, (label, image) in enumerate(
        zip(dataset.labels, dataset.images.read(np.arange(len(dataset))), strict=True)
    ):
        part = ("train", "train", "valid", "test")[row // 3 % 4] if parts else ""
        folder = root / part / dataset.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:04}.png")
    return root


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


def reading(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Return the files of a folder's images in the order of its rows, and a list to which every file that is decoded from now on is added."""
    kind, read = type(dataset.images), list[str]()
    original = kind.read

    def spy(self, rows):  # type: ignore[no-untyped-def]
        read.extend(str(self.names[self.rows[row]]) for row in rows)
        return original(self, rows)

    monkeypatch.setattr(kind, "read", spy)
    return [str(dataset.images.names[row]) for row in dataset.images.rows], read  # type: ignore[attr-defined]


def unsealed(run: Path) -> Path:
    """Make a run's folder one of before files had digests, so that what is behind that check is reached; returns it."""
    path = run / "scores.json"
    path.write_text(
        json.dumps(
            {name: value for name, value in json.loads(path.read_text()).items() if name != "files"}
        )
    )
    return run


class Result:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def regraft(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Run the command line in this process; returns exit status, stdout and stderr."""

    def run(*words: object) -> Result:
        monkeypatch.setattr("sys.argv", ["regraft", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return run

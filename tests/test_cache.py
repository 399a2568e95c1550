from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, toy
from regraft.errors import UserError
from regraft.features.extract import ModelInputs, cached_pixels, entry_name, extract_one, run_prefix
from regraft.features.store import cache_limit, clear_cache, list_entries
from regraft.models.backbone import load_backbone
from regraft.models.cut import cut_backbone
from regraft.models.transforms import NO_AUGMENTATION, AugmentedView, sample_ids
from regraft.options import default_cache_dir
from regraft.plans.schema import InputRules
from regraft.system.progress import ProgressReporter

DATA = toy(60)


class Heard(ProgressReporter):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def log(self, text: str) -> None:
        self.said.append(text)

    def progress(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


def entry(
    home: Path,
    train: str = "head",
    resolution: int = 32,
    view: AugmentedView = NO_AUGMENTATION,
    precision: str = "float32",
    seed: int = 0,
    reporter: ProgressReporter | None = None,
    dataset=DATA,
):  # type: ignore[no-untyped-def]
    source = load_backbone(TINY, "random", resolution, seed)
    prefix, _ = cut_backbone(source, train)
    images = cached_pixels(dataset, resolution, "bicubic", home)
    look = ModelInputs(
        images, sample_ids(dataset), dataset.hashes, source.rules, resolution, view, precision
    )
    made = extract_one(prefix, prefix.digest(), look, home, reporter or ProgressReporter())
    return made, prefix, look, source


def test_what_is_kept_is_what_a_live_pass_gives(tmp_path: Path) -> None:
    for train in ("head", "layer3"):
        for precision, tolerance in (("float32", 1e-3), ("bfloat16", 2e-2)):
            made, prefix, look, _ = entry(tmp_path, train, precision=precision)
            live = run_prefix(
                prefix, prefix.device, replace(look, precision="float32"), np.arange(60)
            )
            for kept, value in zip(made.arrays, live, strict=True):
                assert kept.dtype == np.float16
                error = np.linalg.norm(kept.astype(np.float32) - value.numpy()) / np.linalg.norm(
                    value.numpy()
                )
                assert error < tolerance, (train, precision, error)


def test_the_second_time_is_read_and_cold_equals_warm(tmp_path: Path) -> None:
    heard = Heard()
    cold = entry(tmp_path, reporter=heard)[0]
    assert heard.steps[-1] == ("extract", 60, 60)
    heard.steps.clear()
    warm = entry(tmp_path, reporter=heard)[0]
    assert (cold.hit, warm.hit, heard.steps) == (False, True, [])
    assert (cold.arrays[0] == warm.arrays[0]).all()


def test_an_entry_is_named_after_everything_it_depends_on(tmp_path: Path) -> None:
    other_pixels = toy(60, seed=1)
    made = [
        entry(tmp_path),
        entry(tmp_path, seed=1),
        entry(tmp_path, "layer4"),
        entry(tmp_path, resolution=40),
        entry(tmp_path, precision="bfloat16"),
        entry(tmp_path, view=AugmentedView("flip", 0, 0)),
        entry(tmp_path, view=AugmentedView("flip", 0, 1)),
        entry(tmp_path, view=AugmentedView("flip", 1, 0)),
        entry(tmp_path, dataset=other_pixels),
    ]
    assert len({one[0].name for one in made}) == len(made) == 9
    assert all(not one[0].hit for one in made)


def test_rules_of_the_weights_are_part_of_the_name(tmp_path: Path) -> None:
    _, prefix, look, _ = entry(tmp_path)
    names = set()
    for rules in (
        InputRules((0, 0, 0), (1, 1, 1), "bicubic"),
        InputRules((0, 0, 0), (1, 1, 1), "bilinear"),
        InputRules((0.5, 0, 0), (1, 1, 1), "bicubic"),
    ):
        names.add(extract_one(prefix, prefix.digest(), replace(look, rules=rules), tmp_path).name)
    assert len(names) == 3


def test_a_damaged_entry_is_noticed_said_and_computed_again(tmp_path: Path) -> None:
    def truncate(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-10])

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(bytes(content))

    good = entry(tmp_path)[0]
    values = np.array(good.arrays[0])
    for damage in (
        truncate,
        flip,
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name("meta.json").write_text("{"),
    ):
        damage(tmp_path / good.name / "0.npy")
        heard = Heard()
        again = entry(tmp_path, reporter=heard)[0]
        assert "is damaged" in heard.said[0]
        assert not again.hit
        assert (again.arrays[0] == values).all()


def test_an_interrupted_extraction_leaves_nothing_behind(tmp_path: Path) -> None:
    class Stop(ProgressReporter):
        def progress(self, what: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

    entry(tmp_path, "layer4")  # so that the pixels are there
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        entry(tmp_path, reporter=Stop())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_is_one_sentence_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_pixels(DATA, 32, "bicubic", tmp_path)
    monkeypatch.setattr("regraft.cache.store._RESERVE", 10**15)
    with pytest.raises(
        UserError,
        match=r"The cache entry needs 0 MB, but .* MB free. Make room, run `regraft cache clear`, or set REGRAFT_CACHE",
    ):
        entry(tmp_path)
    monkeypatch.undo()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array_header_1_0", full)
    with pytest.raises(UserError, match="The cache entry needs"):
        entry(tmp_path)
    assert len(list_entries(tmp_path)) == 1
    assert not list(tmp_path.glob(".scratch*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*Set REGRAFT_CACHE, or pass --cache"):
        cached_pixels(DATA, 32, "bicubic", tmp_path / "file")


def test_numbers_too_large_for_half_precision_are_kept_whole(tmp_path: Path) -> None:
    heard = Heard()
    source = load_backbone(TINY, "random", 32)
    with torch.no_grad():
        source.model.get_submodule("layer4")[-1].bn2.bias.fill_(1e6)
    prefix, _ = cut_backbone(source, "head")
    images = cached_pixels(DATA, 32, "bicubic", tmp_path)
    look = ModelInputs(images, sample_ids(DATA), DATA.hashes, source.rules, 32)
    made = extract_one(prefix, prefix.digest(), look, tmp_path, reporter=heard)
    assert made.arrays[0].dtype == np.float32
    assert np.isfinite(made.arrays[0]).all()
    assert "too large for float16" in heard.said[0]


def test_entries_are_listed_and_cleared(tmp_path: Path) -> None:
    made = entry(tmp_path)[0]
    listed = list_entries(tmp_path)
    assert {one["name"] for one in listed} >= {made.name}
    assert sum(one["bytes"] for one in listed) == sum(
        json.loads(path.read_text())["bytes"] for path in tmp_path.glob("*/meta.json")
    )
    (tmp_path / ".scratch-dead").mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    assert clear_cache(tmp_path) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "precious.txt"]


def test_the_home_is_the_argument_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "env"))
    assert default_cache_dir(tmp_path / "given") == tmp_path / "given"
    assert default_cache_dir() == tmp_path / "env"
    monkeypatch.delenv("REGRAFT_CACHE")
    assert "regraft" in str(default_cache_dir())


def test_the_entries_used_longest_ago_go_first_when_the_bound_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [entry(tmp_path, seed=seed)[0] for seed in range(3)]
    for age, one in enumerate(made):
        os.utime(tmp_path / one.name / "meta.json", (1000 + age, 1000 + age))
    entry(tmp_path, seed=0)  # used again, so that the second is now the oldest
    values = np.array(made[1].arrays[0])
    total = sum(one["bytes"] for one in list_entries(tmp_path))
    monkeypatch.setenv("REGRAFT_CACHE_LIMIT", str(total / 1e9))
    heard = Heard()
    entry(tmp_path, seed=3, reporter=heard)
    left = {one["name"] for one in list_entries(tmp_path)}
    assert made[1].name not in left
    assert {made[0].name, made[2].name} <= left
    assert "Removed 1 cache entries used longest ago" in heard.said[0]
    assert (made[1].arrays[0] == values).all()  # still readable for whoever has it open


def test_an_impossible_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("much", "-3", "nan"):
        monkeypatch.setenv("REGRAFT_CACHE_LIMIT", given)
        with pytest.raises(
            UserError, match=f"REGRAFT_CACHE_LIMIT is '{given}'. Expected gigabytes"
        ):
            cache_limit(tmp_path)


def test_two_processes_filling_one_entry_end_with_one_whole_entry(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); from test_cache import entry; "
        "made = entry(Path(sys.argv[1]))[0]; print(made.name, float(made.arrays[0].astype('float64').sum()))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "both"), str(Path(__file__).parent)]
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert len(list_entries(tmp_path / "both")) == 2
    assert not list((tmp_path / "both").glob(".scratch*"))


def test_augmented_views_are_named_after_the_images_identities_too(tmp_path: Path) -> None:
    _, prefix, look, _ = entry(tmp_path)
    ids = look.identities
    for view, same in ((NO_AUGMENTATION, True), (AugmentedView("flip", 0, 0), False)):
        names = {
            entry_name(prefix.digest(), replace(look, identities=one, view=view))
            for one in (ids, ids + 1)
        }
        assert (len(names) == 1) == same

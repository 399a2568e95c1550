"""The frozen part computed once: extraction, the cache folder, and what is cached."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import TINY, toy
from regraft.commands.compare import compare
from regraft.commands.options import Ways
from regraft.commands.plan import plan as make_plan
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.features.batches import Batches
from regraft.features.entry import Entry
from regraft.features.extract import (
    EXTRACTOR,
    Extractor,
    ModelInputs,
    StoredPixels,
    entry_bytes,
    entry_name,
    extract_features,
    extraction_batch_size,
    run_prefix,
    store_pixels,
)
from regraft.features.policy import (
    CachePolicy,
    Decision,
    DiskSpeed,
    FrozenWork,
    estimate_costs,
    measure_disk_speed,
    time_forward_pass,
)
from regraft.features.store import cache_limit, clear_cache, list_entries
from regraft.models.augment import NO_AUGMENTATION, AugmentedView
from regraft.models.backbone import load_backbone
from regraft.models.network import Cut
from regraft.models.transforms import Preprocess
from regraft.options import (
    CacheOptions,
    Options,
    PlanOverrides,
    RunDir,
    Runtime,
    default_cache_dir,
)
from regraft.plans.schema import InputRules, Phase
from regraft.system.hardware import is_out_of_memory
from regraft.system.progress import ProgressReporter
from tiny import DATA, Recorder, cut_of, fit_tiny, inputs_of

CPU = torch.device("cpu")


def extract(
    cut: Cut,
    inputs: ModelInputs,
    folder: Path,
    reporter: ProgressReporter | None = None,
    compiling: str = "auto",
    extractor: Extractor = EXTRACTOR,
) -> Entry:
    """Return the entry of one cut."""
    runtime = Runtime(compile=compiling, reporter=reporter or ProgressReporter())
    return extract_features([cut], inputs, CacheOptions(folder), runtime, "extract", extractor)[0]


def entry(
    folder: Path,
    train: str = "head",
    resolution: int = 32,
    view: AugmentedView = NO_AUGMENTATION,
    precision: str = "float32",
    seed: int = 0,
    reporter: ProgressReporter | None = None,
    dataset=DATA,
):  # type: ignore[no-untyped-def]
    """Return an entry of a small network, its cut, and its inputs."""
    source = load_backbone(TINY, "random", resolution, seed)
    cut = cut_of(source, train, precision=precision)
    inputs = inputs_of(source, folder, dataset).augmented(view)
    return extract(cut, inputs, folder, reporter), cut, inputs


# what an entry holds


def test_what_is_cached_is_what_a_live_pass_gives(tmp_path: Path) -> None:
    seen = 0
    for train in ("head", "layer3"):
        for precision, tolerance in (("float32", 1e-3), ("bfloat16", 2e-2)):
            cached, cut, inputs = entry(tmp_path, train, precision=precision)
            live = run_prefix(cut.frozen, inputs.batch(np.arange(60), CPU), "float32")
            for array, value in zip(cached.arrays, live, strict=True):
                assert array.dtype == np.float16
                difference = array.astype(np.float32) - value.numpy()
                error = np.linalg.norm(difference) / np.linalg.norm(value.numpy())
                assert error < tolerance, (train, precision, error)
                seen += 1
    assert seen >= 4


def test_the_second_time_is_read_and_cold_equals_warm(tmp_path: Path) -> None:
    recorder = Recorder()
    cold = entry(tmp_path, reporter=recorder)[0]
    assert recorder.steps[-1] == ("extract", 60, 60)
    recorder.steps.clear()
    warm = entry(tmp_path, reporter=recorder)[0]
    assert (cold.hit, warm.hit, recorder.steps) == (False, True, [])
    assert (cold.arrays[0] == warm.arrays[0]).all()


def test_an_entry_is_named_after_everything_it_depends_on(tmp_path: Path) -> None:
    other_pixels = toy(60, seed=1)
    entries = [
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
    assert len({each[0].name for each in entries}) == len(entries) == 9
    assert all(not each[0].hit for each in entries)


def test_rules_of_the_weights_are_part_of_the_name(tmp_path: Path) -> None:
    _, cut, inputs = entry(tmp_path)
    names = set()
    for rules in (
        InputRules((0, 0, 0), (1, 1, 1), "bicubic"),
        InputRules((0, 0, 0), (1, 1, 1), "bilinear"),
        InputRules((0.5, 0, 0), (1, 1, 1), "bicubic"),
    ):
        other = replace(inputs, preprocess=Preprocess(rules, 32))
        names.add(extract(cut, other, tmp_path).name)
    assert len(names) == 3


def test_augmented_views_are_named_after_the_images_ids_too(tmp_path: Path) -> None:
    _, cut, inputs = entry(tmp_path)
    for view, same in ((NO_AUGMENTATION, True), (AugmentedView("flip", 0, 0), False)):
        names = set()
        for ids in (inputs.ids, inputs.ids + 1):
            names.add(entry_name(cut, replace(inputs, ids=ids, view=view)))
        assert (len(names) == 1) == same


def test_names_of_entries_are_those_of_0_1() -> None:
    """An upgrade computes nothing again."""
    pixels = SimpleNamespace(entry=SimpleNamespace(arrays=(np.zeros((4, 16, 16, 3), np.uint8),)))
    rules = InputRules((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")
    hashes = np.array(["a", "b", "c", "d"])
    inputs = ModelInputs(pixels, np.arange(4), hashes, Preprocess(rules, 32))  # type: ignore[arg-type]
    cut = SimpleNamespace(digest="0123", precision="bfloat16")
    names = []
    for view in (NO_AUGMENTATION, AugmentedView("flip", 3, 1)):
        names.append(entry_name(cut, inputs.augmented(view)))  # type: ignore[arg-type]
    assert names == ["7f5a4734b42358d080a66a4f8f47c24e", "223f444d76118c375c1781af5e5d65e5"]


def test_numbers_too_large_for_half_precision_are_stored_wide(tmp_path: Path) -> None:
    recorder = Recorder()
    source = load_backbone(TINY, "random", 32)
    with torch.no_grad():
        source.model.get_submodule("layer4")[-1].bn2.bias.fill_(1e6)
    wide = extract(cut_of(source), inputs_of(source, tmp_path), tmp_path, recorder)
    assert wide.arrays[0].dtype == np.float32
    assert np.isfinite(wide.arrays[0]).all()
    assert "too large for float16" in recorder.texts[0]


def test_one_entry_that_overflows_is_stored_wide_and_the_others_are_not(tmp_path: Path) -> None:
    source = load_backbone(TINY, "random", 32)
    with torch.no_grad():
        source.model.get_submodule("layer4")[-1].bn2.bias.fill_(1e6)
    cuts = [cut_of(source), cut_of(source, "head", ("layer2",))]
    inputs = inputs_of(source, tmp_path)
    for hit in (False, True):
        entries = extract_features(cuts, inputs, CacheOptions(tmp_path), Runtime())
        assert [each.arrays[0].dtype for each in entries] == [np.float32, np.float16]
        assert [each.hit for each in entries] == [hit, hit]


# one pass


def test_one_pass_fills_all_entries_that_are_missing_and_no_other(tmp_path: Path) -> None:
    source = load_backbone(TINY, "random", 32)
    stages = tuple(source.stages)
    cuts = [cut_of(source, stage) for stage in stages[1:]]
    cuts += [cut_of(source, "head", (stage,)) for stage in stages]
    cuts += [cut_of(source, "head", stages), cut_of(source)]
    inputs = inputs_of(source, tmp_path)
    alone = [extract(cut, inputs, tmp_path / "alone") for cut in cuts]
    cache = CacheOptions(tmp_path / "many")
    recorder = Recorder()
    runtime = Runtime(reporter=recorder)
    extract_features(cuts[:1], inputs, cache, runtime)
    assert recorder.passes() == [60]
    many = extract_features(cuts, inputs, cache, runtime)
    assert recorder.passes() == [60, 60]
    assert [each.hit for each in many] == [True] + [False] * (len(cuts) - 1)
    assert [each.name for each in many] == [each.name for each in alone]
    for together, single in zip(many, alone, strict=True):
        for left, right in zip(together.arrays, single.arrays, strict=True):
            assert (left == right).all()
    assert all(each.hit for each in extract_features(cuts, inputs, cache, runtime))
    assert recorder.passes() == [60, 60]


def test_batches_are_halved_until_they_fit_into_memory(tmp_path: Path) -> None:
    source, recorder = load_backbone(TINY, "random", 32), Recorder()
    cut, inputs = cut_of(source), inputs_of(source, tmp_path)
    whole = extract(cut, inputs, tmp_path / "whole")
    sizes = []

    def small(forward, batch, precision):  # type: ignore[no-untyped-def]
        if len(batch) > 15:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        sizes.append(len(batch))
        return run_prefix(forward, batch, precision)

    halved = extract(cut, inputs, tmp_path / "halved", recorder, extractor=Extractor(run=small))
    assert sizes == [12] * 5
    expected = [f"Memory is short; going on with batches of {size}." for size in (50, 25, 12)]
    assert recorder.texts == expected
    assert np.allclose(whole.arrays[0], halved.arrays[0], atol=1e-3)
    for fault in (RuntimeError("something else"), ValueError("not enough memory")):

        def broken(*_: object, fault: Exception = fault) -> tuple[torch.Tensor, ...]:
            raise fault

        with pytest.raises(type(fault), match=str(fault)):
            extract(cut, inputs, tmp_path / "broken", extractor=Extractor(run=broken))


def test_compiling_is_tried_where_it_is_asked_for_or_repays(tmp_path: Path) -> None:
    source = load_backbone("tf_efficientnet_lite0", "random", 32)
    inputs = inputs_of(source, tmp_path)
    tried: list[int] = []
    cases = [
        ("auto", 1e18, 0),
        ("auto", 1e18, 0),
        ("auto", 0.0, 1),
        ("auto", 0.0, 1),
        ("off", 0.0, 0),
        ("on", 1e18, 1),
    ]
    for number, (compiling, pays_from, times) in enumerate(cases):
        tried.clear()
        extractor = Extractor(
            batch_size=lambda *_: 20,
            compile=lambda prefix, images, reporter: tried.append(len(images)),
            compile_pays_from=pays_from,
        )
        cut = cut_of(source, precision=("float32", "bfloat16")[number % 2])
        folder = tmp_path / str(number)
        extract(cut, inputs, folder, compiling=compiling, extractor=extractor)
        assert tried == [20] * times, (compiling, pays_from)


def test_whole_batches_run_compiled_and_the_rest_does_not(tmp_path: Path) -> None:
    source = load_backbone(TINY, "random", 32)
    cut, inputs = cut_of(source), inputs_of(source, tmp_path)
    sizes: list[int] = []

    def compiled(prefix, images, reporter):  # type: ignore[no-untyped-def]
        return lambda batch: sizes.append(len(batch)) or prefix(batch)

    extractor = Extractor(batch_size=lambda *_: 25, compile=compiled)
    result = extract(cut, inputs, tmp_path / "c", compiling="on", extractor=extractor)
    plain = extract(cut, inputs, tmp_path / "p", extractor=Extractor(batch_size=lambda *_: 25))
    assert sizes == [25, 25]
    assert (result.arrays[0] == plain.arrays[0]).all()


def test_batches_grow_smaller_with_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [extraction_batch_size("cpu", side) for side in (32, 96, 128, 160, 224, 448)]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[1], sizes[-1]) == (100, 16)
    for free, most in ((140e9, 1024), (8e9, 1024), (1e6, 16)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (int(free), int(free)))
        assert 16 <= extraction_batch_size("cuda", 224) <= most
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_pixels_on_the_device_are_those_on_the_disk_and_are_uploaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_backbone(TINY, "random", 32)
    rows = np.array([3, 1, 7])
    on_cpu = inputs_of(source, tmp_path).pixels.batch(rows, CPU)
    assert (on_cpu.numpy() == DATA.images.read(rows)).all()
    uploads = []
    upload = torch.Tensor.to

    def to(self: torch.Tensor, device: object, **options: object) -> torch.Tensor:
        """Stand in for a GPU: everything stays where it is."""
        if getattr(device, "type", "") == "cuda":
            uploads.append(len(self))
            return self
        return upload(self, device, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    for memory, expected in ((10**12, [60, 3, 3]), (1, [3, 3])):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda memory=memory: (memory, memory))
        pixels = StoredPixels(inputs_of(source, tmp_path).pixels.entry)
        for _ in range(2):
            assert torch.equal(pixels.batch(rows, torch.device("cuda")), on_cpu)
        assert uploads == expected
        uploads.clear()


# the cache folder


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
        lambda path: path.unlink(),
    ):
        damage(tmp_path / good.name / "0.npy")
        recorder = Recorder()
        again = entry(tmp_path, reporter=recorder)[0]
        assert "is damaged" in recorder.texts[0]
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
    source = load_backbone(TINY, "random", 32)
    inputs = inputs_of(source, tmp_path)
    cut = cut_of(source)
    # 200 MB are to stay free
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=200_000_000))
    with pytest.raises(
        UserError,
        match=r"The cache entry needs 0 MB, but .* has 200 MB free. Make room, run "
        r"`regraft cache clear`, or set REGRAFT_CACHE",
    ):
        extract(cut, inputs, tmp_path)
    monkeypatch.undo()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array_header_1_0", full)
    with pytest.raises(UserError, match="The cache entry needs"):
        extract(cut, inputs, tmp_path)
    assert len(list_entries(tmp_path)) == 1
    assert not list(tmp_path.glob(".scratch*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    preprocess = Preprocess(InputRules((0, 0, 0), (1, 1, 1), "bicubic"), 32)
    with pytest.raises(UserError, match="cannot be written .*Set REGRAFT_CACHE, or pass --cache"):
        store_pixels(DATA, preprocess, CacheOptions(tmp_path / "file"), Runtime())


def test_entries_are_listed_and_cleared(tmp_path: Path) -> None:
    name = entry(tmp_path)[0].name
    listed = list_entries(tmp_path)
    assert {each["name"] for each in listed} >= {name}
    sizes = [json.loads(path.read_text())["bytes"] for path in tmp_path.glob("*/meta.json")]
    assert sum(each["bytes"] for each in listed) == sum(sizes)
    (tmp_path / ".scratch-dead").mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    assert clear_cache(tmp_path) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "precious.txt"]


def test_the_cache_folder_is_the_argument_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "env"))
    assert default_cache_dir(tmp_path / "given") == tmp_path / "given"
    assert default_cache_dir() == CacheOptions().dir == tmp_path / "env"
    monkeypatch.delenv("REGRAFT_CACHE")
    assert "regraft" in str(default_cache_dir())


def test_the_entries_used_longest_ago_go_first_when_the_limit_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [entry(tmp_path, seed=seed)[0] for seed in range(3)]
    for age, each in enumerate(entries):
        os.utime(tmp_path / each.name / "meta.json", (1000 + age, 1000 + age))
    entry(tmp_path, seed=0)  # used again, so that the second is now the oldest
    values = np.array(entries[1].arrays[0])
    total = sum(each["bytes"] for each in list_entries(tmp_path))
    monkeypatch.setenv("REGRAFT_CACHE_LIMIT", str(total / 1e9))
    recorder = Recorder()
    entry(tmp_path, seed=3, reporter=recorder)
    left = {each["name"] for each in list_entries(tmp_path)}
    assert entries[1].name not in left
    assert {entries[0].name, entries[2].name} <= left
    assert "Removed 1 cache entries used longest ago" in recorder.texts[0]
    assert (entries[1].arrays[0] == values).all()  # still readable for whoever has it open


def test_an_impossible_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("much", "-3", "nan"):
        monkeypatch.setenv("REGRAFT_CACHE_LIMIT", text)
        with pytest.raises(UserError, match=f"REGRAFT_CACHE_LIMIT is '{text}'. Expected gigabytes"):
            cache_limit(tmp_path)


@pytest.mark.slow
def test_two_processes_filling_one_entry_end_with_one_whole_entry(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); "
        "from test_features import entry; found = entry(Path(sys.argv[1]))[0]; "
        "print(found.name, float(found.arrays[0].astype('float64').sum()))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "both"), str(Path(__file__).parent)]
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(list_entries(tmp_path / "both")) == 2
    assert not list((tmp_path / "both").glob(".scratch*"))


# whether something is cached


def decide(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: int,
    disk: float = 0.0,
    keep: str = "auto",
    free: float = 1e15,
) -> Decision:
    cut = cut_of(load_backbone(TINY, "random", 32), "layer4")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    policy = CachePolicy(
        CacheOptions(tmp_path / "cache", keep),
        time_forward=lambda _: 1e-3,
        measure_disk=lambda *_: DiskSpeed(disk, disk),
    )
    return policy.for_phase(FrozenWork(cut, Phase(train="layer4"), 1000, 100, missing))


def test_what_is_cached_follows_from_what_both_ways_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        # little is cached without measuring
        ({"missing": 10**6}, True, "is cached: 1 MB to write"),
        (
            {"missing": 10**9, "disk": 1e9},
            True,
            "computing once and reading costs about 1.1 s; computing it every epoch about 12 s",
        ),
        (
            {"missing": 10**9, "disk": 1e3},
            False,
            "computed again every epoch, at about 12 s; caching its 1,000 MB about",
        ),
        ({"missing": 10**9, "disk": 1e9, "free": 1e8}, False, "would take 1,000 MB, more than"),
        ({"missing": 10**9, "disk": 1e3, "keep": "always"}, True, "--keep always"),
        ({"missing": 10**6, "disk": 1e9, "keep": "never"}, False, "--keep never"),
    ]
    for case, cached, reason in cases:
        decision = decide(tmp_path, monkeypatch, **case)  # type: ignore[arg-type]
        assert decision.cached == cached, case
        assert reason in decision.reason, decision.reason


def test_costs_count_every_time_an_image_is_needed() -> None:
    cut = cut_of(load_backbone(TINY, "random", 32), "layer4")
    image_bytes, seen = entry_bytes(cut, 1), 0
    for phase, reads, first in (
        (Phase(train="layer4", epochs=3), 4 * 110, 110),
        (Phase(optimizer="lbfgs"), 2 * 110, 110),
        (Phase(train="layer4", epochs=3, augment="flip", views=2), 3 * 110, 2 * 100 + 10),
    ):
        work = FrozenWork(cut, phase, 100, 10, 0)
        costs = estimate_costs(work, 0.5, DiskSpeed(write=1e3, read=1e4))
        assert costs.live == pytest.approx(reads * 0.5)
        once = first * (0.5 + image_bytes / 1e3)
        assert costs.cached == pytest.approx(once + reads * image_bytes / 1e4)
        seen += 1
    assert seen == 3


def test_the_speed_of_the_disk_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    for needed in (1, 10**15):
        speed = measure_disk_speed(tmp_path / "new", needed)
        assert 1e6 < speed.write < 1e12
        assert 1e6 < speed.read < 1e12
    assert list((tmp_path / "new").iterdir()) == []


def test_a_pass_is_timed_on_blank_images() -> None:
    source = load_backbone(TINY, "random", 32)
    for precision in ("float32", "bfloat16"):
        assert 0 < time_forward_pass(cut_of(source, precision=precision)) < 10


def test_cached_or_not_the_run_says_the_same(photos: Path) -> None:
    for technique, overrides in (
        ("fine-tune-top", ["phases.0.epochs=2", "phases.0.augment=flip", "phases.0.views=2"]),
        ("linear-probe", []),
    ):
        runs = {}
        for keep in ("always", "never"):
            runs[keep] = fit_tiny(
                photos,
                technique,
                f"{technique}-{keep}",
                ["precision=float32", *overrides],
                CacheOptions(Path(keep), keep),
            )
        losses = {keep: run.scores["val"]["loss"] for keep, run in runs.items()}
        assert losses["always"] == pytest.approx(losses["never"], rel=0.05)
        log = (runs["never"].path / "log.txt").read_text()
        assert "the frozen part is computed again every epoch" in log
        shapes = [each["shapes"][0] for each in list_entries(Path("never"))]
        assert all(len(shape) == 4 and shape[-1] == 3 for shape in shapes)  # pixels only
        assert len(list_entries(Path("always"))) > len(shapes)


def test_no_more_views_are_computed_than_there_are_epochs(photos: Path, own_cache: Path) -> None:
    overrides = ["phases.0.augment=light", "phases.0.epochs=2", "phases.0.patience=0"]

    def count_features() -> int:
        return [len(each["shapes"][0]) for each in list_entries(own_cache)].count(2)

    two = fit_tiny(photos, "feature-extraction", "two", [*overrides, "phases.0.views=2"])
    assert count_features() == 4  # two views of train, train as it is, val
    many = fit_tiny(photos, "feature-extraction", "many", [*overrides, "phases.0.views=9"])
    assert count_features() == 4
    assert np.array_equal(two.predictions()["logits"], many.predictions()["logits"])
    assert "one augmented view" not in (many.path / "log.txt").read_text()
    one = fit_tiny(photos, "feature-extraction", "one", overrides)
    assert "Each image is seen in one augmented view" in (one.path / "log.txt").read_text()


def test_a_comparison_computes_its_frozen_parts_in_one_pass(photos: Path) -> None:
    recorder = Recorder()
    techniques = ("linear-probe", "multi-layer-probe", "feature-extraction", "fine-tune-top")
    overrides = ("phases.0.epochs=1", "phases.0.l2=[0.1]", "precision=float32")
    comparison = compare(
        photos,
        Ways(techniques=techniques, backbones=(TINY,)),
        PlanOverrides(weights="random", resolution=32, overrides=overrides),
        Options(runtime=Runtime(reporter=recorder), run_dir=RunDir(out="out")),
    )
    rows = comparison.to_json()["rows"]
    assert len(rows) == 4
    for part in ("train", "val", "test"):
        text = f"Computing 3 frozen parts of test_resnet in one pass over {part}."
        assert text in recorder.texts
    assert sum(recorder.passes()) == 120
    for row in rows:
        technique = row["technique"]
        cache = CacheOptions(Path("fresh") / technique)
        alone = fit_tiny(photos, technique, f"alone-{technique}", overrides, cache)
        assert alone.scores["val"] == row["val"], technique
        assert row["seconds"]["extract"] + row["shared_seconds"] > 0


def test_batches_see_every_image_once_an_epoch_in_an_order_that_the_seed_decides() -> None:
    def read(rows: np.ndarray, epoch: int) -> tuple[torch.Tensor, ...]:
        return (torch.from_numpy(rows),)

    def order(batches: Batches) -> list[int]:
        return torch.cat([features[0] for features, _ in batches]).tolist()

    labels = np.arange(50)
    first, same, other = (Batches(read, labels, 16, seed) for seed in (1, 1, 2))
    orders = [order(batches) for batches in (first, same, other)]
    assert all(sorted(rows) == list(range(50)) for rows in orders)
    assert orders[0] == orders[1] != orders[2]
    first.epoch = 1
    assert order(first) != orders[0]
    assert all(torch.equal(features[0], targets) for features, targets in first)
    assert order(Batches(read, labels, 16, None)) == list(range(50))
    # a lone image cannot be normalised
    for images, seed, sizes in (
        (33, 0, [16, 16]),
        (33, None, [16, 16, 1]),
        (1, 0, [1]),
        (34, 0, [16, 16, 2]),
        (32, 0, [16, 16]),
    ):
        batches = Batches(read, np.arange(images), 16, seed)
        assert [len(targets) for _, targets in batches] == sizes
        assert len(batches) == len(sizes)


def test_sizes_and_hashes_of_files_are_read_once(photos: Path) -> None:
    data = load_dataset(photos, Path("cache"))
    read: list[int] = []

    def load(number: int) -> bytes:
        read.append(number)
        return data.images.load(number)  # type: ignore[attr-defined]

    images = replace(data.images, load=load, known={}, hashed={})  # type: ignore[type-var]
    counted = replace(data, images=images, known_hashes=None)
    first = counted.images.sizes(np.arange(10))
    part = counted.take(np.arange(5, 15))
    assert (part.images.sizes(np.arange(10))[:5] == first[5:]).all()
    assert len(read) == 15
    read.clear()
    hashes = counted.hashes
    assert (counted.take(np.arange(20)).hashes == hashes[:20]).all()
    assert (counted.take(np.arange(5, 15)).hashes == hashes[5:15]).all()
    assert len(read) == len(counted)


def test_precision_keep_and_compile_are_options_and_their_mistakes_one_sentence(
    photos: Path,
) -> None:
    def asked(precision: str | None = None) -> PlanOverrides:
        return PlanOverrides(backbone=TINY, weights="random", resolution=32, precision=precision)

    never = Options(cache=CacheOptions(keep="never"))
    forecast = make_plan(photos, "linear-probe", asked("float32"), never)
    assert forecast.plan.precision == "float32"
    assert not forecast.phases[0].kept
    shown = make_plan(photos, "linear-probe", asked())
    assert shown.phases[0].decision == ("The frozen part's output is cached: 0 MB to write.")
    for kind, flag in ((CacheOptions, "keep"), (Runtime, "compile")):
        with pytest.raises(UserError, match=f"--{flag} perhaps was given. Expected"):
            kind(**{flag: "perhaps"})
    with pytest.raises(
        UserError,
        match="precision: expected 'float32' or 'bfloat16', did you mean 'float32'.*'float8'",
    ):
        make_plan(photos, "linear-probe", asked("float8"))

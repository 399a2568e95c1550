"""Less work, the same answers: one pass for many frozen parts, compiled or not, kept or not, in whatever arithmetic and batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from regraft.train import head
from regraft.workflow import keeping
from regraft.workflow.settings import Settings
from torch import nn

import regraft as api
from conftest import TINY, toy
from regraft import backbone
from regraft.errors import UserError
from regraft.features import extract
from regraft.features.batches import Batches
from regraft.features.extract import (
    ModelInputs,
    cached_pixels,
    entry_bytes,
    extract_features,
    extract_one,
    pixel_batch,
    resident_pixels,
    run_prefix,
)
from regraft.features.store import clear_cache, list_entries
from regraft.models import transforms
from regraft.models.backbone import Backbone, load_backbone, model_info
from regraft.models.compile import compile_prefix, count_multiply_adds, has_compiler
from regraft.models.cut import cut_backbone
from regraft.models.joint import merge_prefixes
from regraft.models.layers import distance_to_head
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn
from regraft.models.parts import Prefix
from regraft.models.transforms import NO_AUGMENTATION, sample_ids, transform
from regraft.plans.schema import Phase, Plan
from regraft.plans.toml import parse_plan
from regraft.system import hardware
from regraft.system.hardware import extraction_batch_size, is_out_of_memory
from regraft.system.progress import ProgressReporter
from regraft.training import autotune
from regraft.training.autotune import choose_execution
from regraft.training.module import TransferModule
from regraft.training.trainer import fit_phase

DATA = toy(60)


class Heard(ProgressReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


def look(source: Backbone, home: Path, precision: str = "float32") -> ModelInputs:
    images = cached_pixels(DATA, source.resolution, source.rules.interpolation, home)
    return ModelInputs(
        images,
        sample_ids(DATA),
        DATA.hashes,
        source.rules,
        source.resolution,
        precision=precision,
    )


def cuts(source: Backbone) -> list[Prefix]:
    """Every stage as a border, its pooled features, and all of them side by side."""
    stages = list(source.stages)
    found = [cut_backbone(source, stage)[0] for stage in stages[1:]]
    found += [cut_backbone(source, "head", (stage,))[0] for stage in stages] + [
        cut_backbone(source, "head", stages)[0],
        cut_backbone(source, "head")[0],
    ]
    return found


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_vit", "densenet121", "tf_efficientnet_lite0"]
)
def test_many_frozen_parts_in_one_pass_say_what_each_says_alone(name: str) -> None:
    torch.manual_seed(0)
    source = load_backbone(name, "random", None if name == "test_vit" else 32)
    images = torch.randn(3, 3, source.resolution, source.resolution)
    prefixes = cuts(source)
    together = merge_prefixes(prefixes)
    apart = [out for prefix in prefixes for out in prefix(images)]
    assert len(prefixes) >= 5
    assert len(together.shapes) == len(apart)
    for one, other, shape in zip(together(images), apart, together.shapes, strict=True):
        assert torch.equal(one, other)
        assert one.shape[1:] == shape
    alone = sum(count_multiply_adds(prefix, images) for prefix in prefixes)
    dearest = max(count_multiply_adds(prefix, images) for prefix in prefixes)
    assert count_multiply_adds(together, images) <= dearest * 1.001 < alone


def test_one_pass_fills_all_entries_that_are_missing_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_backbone(TINY, "random", 32)
    seen, prefixes = look(source, tmp_path), cuts(source)
    named = [(prefix, prefix.digest()) for prefix in prefixes]
    alone = [extract_one(prefix, digest, seen, tmp_path / "alone") for prefix, digest in named]
    passes: list[int] = []
    original = run_prefix
    monkeypatch.setattr(
        extract, "run", lambda *given: passes.append(len(given[3])) or original(*given)
    )
    extract_one(*named[0], seen, tmp_path / "many")
    assert passes == [60]
    many = extract_features(named, seen, tmp_path / "many")
    assert passes == [60, 60]
    assert [entry.hit for entry in many] == [True] + [False] * (len(named) - 1)
    assert [entry.name for entry in many] == [entry.name for entry in alone]
    for one, other in zip(many, alone, strict=True):
        assert all((a == b).all() for a, b in zip(one.arrays, other.arrays, strict=True))
    assert all(entry.hit for entry in extract_features(named, seen, tmp_path / "many"))
    assert passes == [60, 60]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "tf_efficientnet_lite0"])
def test_weights_cast_once_say_what_weights_cast_every_time_say(name: str) -> None:
    source = load_backbone(name, "random", None if name == "test_vit" else 32)
    images = torch.randn(2, 3, source.resolution, source.resolution)
    prefix, _ = cut_backbone(source, "head")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            fuse_conv_bn(prefix)(images)[0], cast_bfloat16(fuse_conv_bn(prefix))(images)[0]
        )
    assert all(parameter.dtype == torch.float32 for parameter in prefix.parameters())


def test_one_entry_that_overflows_is_kept_wide_and_the_others_are_not(tmp_path: Path) -> None:
    source = load_backbone(TINY, "random", 32)
    with torch.no_grad():
        source.model.get_submodule("layer4")[-1].bn2.bias.fill_(1e6)
    named = [
        (prefix, prefix.digest())
        for prefix in (
            cut_backbone(source, "head")[0],
            cut_backbone(source, "head", ("layer2",))[0],
        )
    ]
    for hit in (False, True):
        found = extract_features(named, look(source, tmp_path), tmp_path)
        assert [entry.arrays[0].dtype for entry in found] == [np.float32, np.float16]
        assert [entry.hit for entry in found] == [hit, hit]


def test_batches_are_halved_until_they_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, heard = load_backbone(TINY, "random", 32), Heard()
    prefix, _ = cut_backbone(source, "head")
    seen = look(source, tmp_path)
    whole = extract_one(prefix, prefix.digest(), seen, tmp_path / "whole")
    original, sizes = run_prefix, []

    def small(run, device, seen, rows):  # type: ignore[no-untyped-def]
        if len(rows) > 15:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        sizes.append(len(rows))
        return original(run, device, seen, rows)

    monkeypatch.setattr(extract, "run", small)
    halved = extract_one(prefix, prefix.digest(), seen, tmp_path / "halved", heard)
    assert sizes == [12] * 5
    assert heard.said == [
        f"Memory is short; going on with batches of {size}." for size in (50, 25, 12)
    ]
    assert np.allclose(whole.arrays[0], halved.arrays[0], atol=1e-3)
    for fault in (RuntimeError("something else"), ValueError("not enough memory")):

        def broken(*_: object, fault: Exception = fault) -> None:
            raise fault

        monkeypatch.setattr(extract, "run", broken)
        with pytest.raises(type(fault), match=str(fault)):
            extract_one(prefix, prefix.digest(), seen, tmp_path / "broken")


def test_compiling_is_tried_where_it_is_asked_for_or_repays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_backbone("tf_efficientnet_lite0", "random", 32)
    prefix, _ = cut_backbone(source, "head")
    monkeypatch.setattr(hardware, "batch_size", lambda *_: 20)
    tried: list[int] = []
    monkeypatch.setattr(
        backbone, "compiled", lambda prefix, images, reporter: tried.append(len(images))
    )
    cases = [
        ("auto", 1e18, 0),
        ("auto", 1e18, 0),
        ("auto", 0.0, 1),
        ("auto", 0.0, 1),
        ("off", 0.0, 0),
        ("on", 1e18, 1),
    ]
    for number, (wanted, pays, times) in enumerate(cases):
        monkeypatch.setattr(backbone, "PAYS_FROM", pays)
        tried.clear()
        seen = look(source, tmp_path, ("float32", "bfloat16")[number % 2])
        extract_one(prefix, prefix.digest(), seen, tmp_path / str(number), compiling=wanted)
        assert tried == [20] * times, (wanted, pays)


def test_a_compiled_frozen_part_says_the_same(tmp_path: Path) -> None:
    if not has_compiler():
        pytest.skip("there is no C++ compiler here")
    source, heard = load_backbone(TINY, "random", 32), Heard()
    quick = fuse_conv_bn(cut_backbone(source, "head")[0])
    images = torch.randn(4, 3, 32, 32)
    made = compile_prefix(quick, images, heard)
    if made is None:
        assert "it runs uncompiled" in heard.said[0]
        assert "of the time" in heard.said[0]  # only for being slower, never for failing
    else:
        assert torch.allclose(made(images)[0], quick(images)[0], atol=1e-4)
        assert "Compiled the frozen part in" in heard.said[0]


def test_without_a_compiler_or_where_it_fails_the_frozen_part_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick, images = (
        cut_backbone(load_backbone(TINY, "random", 32), "head")[0],
        torch.randn(2, 3, 32, 32),
    )

    def fails(*_: object, **__: object) -> object:
        def run(_: torch.Tensor) -> None:
            raise RuntimeError("InvalidCxxCompiler: broken")

        return run

    heard = Heard()
    monkeypatch.setattr(torch, "compile", fails)
    assert compile_prefix(quick, images, heard) is None
    assert (
        heard.said[-1]
        == "Compiling the frozen part failed (InvalidCxxCompiler: broken); it runs uncompiled."
    )
    monkeypatch.setattr(
        torch, "compile", lambda body, **_: lambda images: tuple(out * 2 for out in body(images))
    )
    assert compile_prefix(quick, images, heard) is None
    assert "differ by 1.0e+00; it runs uncompiled" in heard.said[-1]
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    assert compile_prefix(quick, images, heard) is None
    assert (
        heard.said[-1]
        == "There is no C++ compiler, so the frozen part runs uncompiled. Install g++ to have large extractions compiled."
    )


def test_pixels_held_on_the_device_are_those_on_the_disk(tmp_path: Path) -> None:
    extract._RESIDENT.clear()
    for seed in range(5):
        images = cached_pixels(toy(20, seed=seed), 32, "bicubic", tmp_path)
        rows = np.array([3, 1, 7])
        held = resident_pixels(images, torch.device("cpu"))
        assert held is resident_pixels(images, torch.device("cpu"))
        assert torch.equal(held[rows], pixel_batch(images, rows, torch.device("cpu")))
    assert len(extract._RESIDENT) == 3


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


def decision(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: int,
    disk: float,
    keep: str = "auto",
    free: float = 1e15,
    **phase: object,
) -> keeping.Decision:
    source = load_backbone(TINY, "random", 32)
    plan = Plan(backbone=TINY, resolution=32, phases=(Phase(train="layer4", **phase),))  # type: ignore[arg-type]
    prefix, _ = cut_backbone(source, "layer4")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(keeping, "pace", lambda *_: (disk, disk))
    monkeypatch.setattr(keeping, "seconds", lambda *_: 1e-3)
    return keeping.decide(
        source,
        prefix,
        plan,
        plan.phases[0],
        (1000, 100),
        missing,
        Settings(home=tmp_path / "home", keep=keep),
    )


def test_what_is_kept_follows_from_what_both_ways_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        (
            {"missing": 10**6, "disk": 1.0},
            True,
            "is kept: 1 MB to write",
        ),  # little is kept without measuring
        (
            {"missing": 10**9, "disk": 1e9},
            True,
            "computing once and reading costs about 1 s; computing it every epoch about 12 s",
        ),
        (
            {"missing": 10**9, "disk": 1e3},
            False,
            "computed again every epoch, at about 12 s; keeping its 1,000 MB about",
        ),
        ({"missing": 10**9, "disk": 1e9, "free": 1e8}, False, "would take 1,000 MB, more than"),
        ({"missing": 10**9, "disk": 1e3, "keep": "always"}, True, "--keep always"),
        ({"missing": 10**6, "disk": 1e9, "keep": "never"}, False, "--keep never"),
    ]
    for given, kept, said in cases:
        made = decision(tmp_path, monkeypatch, **given)  # type: ignore[arg-type]
        assert made.kept == kept, given
        assert said in made.why, made.why


def test_costs_count_every_time_an_image_is_needed() -> None:
    source = load_backbone(TINY, "random", 32)
    prefix, _ = cut_backbone(source, "layer4")
    bytes_each, seen = entry_bytes(prefix, 1), 0
    for phase, needed, first in (
        (Phase(train="layer4", epochs=3), 4 * 110, 110),
        (Phase(optimizer="lbfgs"), 2 * 110, 110),
        (Phase(train="layer4", epochs=3, augment="flip", views=2), 3 * 110, 2 * 100 + 10),
    ):
        plan = Plan(backbone=TINY, resolution=32, phases=(phase,))
        once, again = keeping.costs(prefix, plan, phase, (100, 10), 0.5, (1e3, 1e4))
        assert again == pytest.approx(needed * 0.5)
        assert once == pytest.approx(first * (0.5 + bytes_each / 1e3) + needed * bytes_each / 1e4)
        seen += 1
    assert seen == 3


def test_the_pace_of_the_disk_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    for needed in (1, 10**15):
        writing, reading = keeping.pace(tmp_path / "new", needed)
        assert 1e6 < writing < 1e12
        assert 1e6 < reading < 1e12
    assert list((tmp_path / "new").iterdir()) == []


def test_kept_or_not_the_run_says_the_same(photos: Path) -> None:
    for way, fields in (
        ("fine-tune-top", ["phases.0.epochs=2", "phases.0.augment=flip", "phases.0.views=2"]),
        ("linear-probe", []),
    ):
        made = [
            api.fit(
                str(photos),
                way,
                TINY,
                weights="random",
                resolution=32,
                out=f"{way}-{keep}",
                keep=keep,
                home=Path(keep),
                changes=["precision=float32", *fields],
            )
            for keep in ("always", "never")
        ]
        assert made[0].scores["val"]["loss"] == pytest.approx(
            made[1].scores["val"]["loss"], rel=0.05
        )
        assert "it is computed again every epoch" in (made[1].path / "log.txt").read_text()
        assert all(
            len(one["shapes"][0]) == 4 and one["shapes"][0][-1] == 3
            for one in list_entries(Path("never"))
        )  # pixels only
        assert len(list_entries(Path("always"))) > len(list_entries(Path("never")))


def test_a_comparison_computes_its_frozen_parts_in_one_pass(
    regraft, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    passes: list[int] = []
    original = run_prefix
    monkeypatch.setattr(
        extract, "run", lambda *given: passes.append(len(given[3])) or original(*given)
    )
    ways = "linear-probe,multi-layer-probe,feature-extraction,fine-tune-top"
    words = [
        "--backbones",
        TINY,
        "--weights",
        "random",
        "--resolution",
        32,
        "--set",
        "phases.0.epochs=1",
        "--precision",
        "float32",
    ]
    result = regraft(
        "compare",
        photos,
        "--techniques",
        ways,
        *words,
        "--set",
        "phases.0.l2=[0.1]",
        "--out",
        "out",
        "--json",
    )
    board = json.loads(result.out)
    assert len(board["rows"]) == 4
    assert "Computing 3 frozen parts of test_resnet in one pass over train." in result.err
    assert "Computing 3 frozen parts of test_resnet in one pass over test." in result.err
    assert sum(passes) == 120
    for row in board["rows"]:
        alone = api.fit(
            str(photos),
            row["technique"],
            TINY,
            weights="random",
            resolution=32,
            out=f"alone-{row['technique']}",
            home=Path("fresh") / row["technique"],
            changes=["phases.0.epochs=1", "phases.0.l2=[0.1]", "precision=float32"],
        )
        assert alone.scores["val"] == row["val"], row["technique"]
        assert row["seconds"]["extract"] + row["shared_seconds"] > 0


def test_plans_that_train_the_head_only_share_one_network_and_the_others_do_not(
    photos: Path,
) -> None:
    from regraft.workflow import sharing

    from regraft.data.dataset import DatasetInfo
    from regraft.plans.techniques import TECHNIQUES, make_technique_plan

    shelf = sharing.Shelf(Settings())
    facts, data = model_info(TINY), DatasetInfo("toy", 120, ("a", "b"), (16, 16))
    given = {
        way: shelf.of(
            make_technique_plan(way, facts, data).model_copy(update={"weights": "random"})
        )
        for way in TECHNIQUES
    }
    shared = {way for way, network in given.items() if network is not None}
    assert shared == {"linear-probe", "multi-layer-probe", "feature-extraction"}
    assert len({id(given[way]) for way in shared}) == 1


def known(**seconds: float) -> dict[str, float]:
    return {name.replace("_", " "): value for name, value in seconds.items()}


def untouchable() -> SimpleNamespace:
    """A module that must not be measured, and notes whether it is to run compiled."""
    made = SimpleNamespace(forward=lambda *_: None, used=[])
    made.use = lambda quick, size: made.used.append(size)
    return made


def test_the_fastest_way_is_taken_where_training_is_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    times = known(float32=1.0, bfloat16=0.5, bfloat16_compiled=0.2, float32_compiled=0.5)
    cases = [
        (10, "auto", "auto", times, ("float32", False)),  # ten seconds: nothing repays
        (60, "auto", "auto", times, ("bfloat16", False)),  # a minute: arithmetic does
        (600, "auto", "auto", times, ("bfloat16", True)),
        (600, "auto", "off", times, ("bfloat16", False)),
        (10, "auto", "on", times, ("float32", True)),
        (600, "float32", "auto", times, ("float32", True)),
        (600, "auto", "auto", {**times, "bfloat16": 0.95}, ("float32", True)),  # not clearly faster
        (600, "auto", "auto", {**times, "bfloat16 compiled": 0.49}, ("bfloat16", False)),
        (600, "bfloat16", "off", times, ("bfloat16", False)),
    ]
    batch = ((torch.zeros(4, 2),), torch.zeros(4, dtype=torch.int64))
    for steps, precision, compiling, seconds, wanted in cases:
        module = untouchable()
        chosen = choose_execution(module, batch, steps, precision, compiling, dict(seconds))
        assert (chosen.precision, chosen.compiled) == wanted, (steps, precision, compiling)
        assert module.used == [4] * wanted[1]
        assert "ms a step" in chosen.why


def tiny_module(batch_norm: str = "adapt") -> TransferModule:
    source = load_backbone(TINY, "random", 32)
    _, suffix = cut_backbone(source, "all")
    return TransferModule(
        suffix,
        head.make("", 96, 3, 0),
        Phase(train="all", batch_norm=batch_norm),
        0,
        distance_to_head(source),
    )  # type: ignore[arg-type]


def test_measuring_leaves_weights_buffers_gradients_and_chance_alone() -> None:
    module = tiny_module().ready()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(0)
    chance = torch.random.get_rng_state()
    measured: dict[str, float] = {}
    choose_execution(
        module,
        (
            (torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)),),
            torch.tensor([0, 1, 2, 0]),
        ),
        10**6,
        "auto",
        "off",
        measured,
    )
    assert set(measured) == {"float32", "bfloat16"}
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(chance, torch.random.get_rng_state())


def test_compiling_that_fails_is_said_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda run, **_: broken)
    module = tiny_module().ready()
    chosen = choose_execution(
        module, ((torch.randn(4, 3, 32, 32),), torch.tensor([0, 1, 2, 0])), 10, "float32", "on", {}
    )
    assert (chosen.precision, chosen.compiled) == ("float32", False)
    assert "compiling failed (no compiler)" in chosen.why


def test_whole_batches_run_compiled_and_the_last_one_does_not(tmp_path: Path) -> None:
    sizes: list[int] = []
    made = TransferModule(
        nn.Identity(), head.make("", 8, 3, 0), Phase(epochs=2, batch_size=16), 0, lambda _: 1
    )
    values, labels = torch.randn(40, 8), np.arange(40) % 3
    batches = [Batches(lambda rows, epoch: (values[rows],), labels, 16, seed) for seed in (0, None)]

    def quick(*given: torch.Tensor) -> torch.Tensor:
        sizes.append(len(given[0]))
        return TransferModule.forward(made, *given)

    made.use(quick, 16)
    fit_phase(made, *batches, tmp_path, 0)
    assert sizes == [16] * 4


def test_half_batches_whose_gradients_add_up_train_the_same(tmp_path: Path) -> None:
    found = []
    values, labels = (
        torch.randn(64, 8, generator=torch.Generator().manual_seed(0)),
        np.arange(64) % 3,
    )
    for share in (1, 2, 4):
        made = TransferModule(
            nn.Identity(),
            head.make("dense 6 relu", 8, 3, 0),
            Phase(epochs=3, lr=0.1, optimizer="sgd"),
            0,
            lambda _: 1,
        )
        batches = [
            Batches(lambda rows, epoch: (values[rows],), labels, 16 // share, seed)
            for seed in (0, None)
        ]
        left = fit_phase(made, *batches, tmp_path / str(share), 0, accumulate=share)
        found.append((made.head[0].weight.detach(), left.history[-1]["val_loss"]))
    assert all(torch.allclose(found[0][0], weight, atol=1e-5) for weight, _ in found)
    assert all(loss == pytest.approx(found[0][1], rel=1e-4) for _, loss in found)


def test_training_that_runs_out_of_memory_starts_again_with_half_batches(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.training import trainer as room
    from regraft.training.trainer import fit_phase

    original, tried = fit_phase, []

    def short(module, train, *rest, **more):  # type: ignore[no-untyped-def]
        tried.append(train.size)
        if train.size > 4:
            with torch.no_grad():
                module.head[-1].weight.fill_(7.0)  # what a broken step would leave
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        assert float(module.head[-1].weight.detach().abs().max()) == 0.0
        return original(module, train, *rest, **more)

    monkeypatch.setattr(room, "tune", short)
    done = api.fit(
        str(photos),
        "fine-tune",
        TINY,
        weights="random",
        resolution=32,
        out="out",
        changes=["phases.0.epochs=1", "phases.0.batch_size=16"],
    )
    assert tried == [16, 8, 4]
    said = (done.path / "log.txt").read_text()
    assert "the phase starts again with batches of 8, 2 of which make a step" in said
    assert "batches of 4, 4 of which make a step" in said


def test_what_was_measured_is_remembered_so_that_the_same_run_takes_the_same_way(
    photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "MEASURE_FROM", 0.0)
    monkeypatch.setattr(hardware, "has_bfloat16", lambda *_: True)
    changes = ["phases.0.epochs=1", "train_precision=auto"]
    first = api.fit(
        str(photos), "fine-tune", TINY, weights="random", resolution=32, out="one", changes=changes
    )
    shelf = list((own_cache / "paces").glob("*.json"))
    assert len(shelf) == 1
    assert set(json.loads(shelf[0].read_text())) == {"float32", "bfloat16"}
    shelf[0].write_text(json.dumps({"float32": 10.0, "bfloat16": 1.0}))
    second = api.fit(
        str(photos),
        "fine-tune",
        TINY,
        weights="random",
        resolution=32,
        out="two",
        changes=[*changes],
        compile="off",
    )
    assert second.scores["paces"][0]["precision"] == "bfloat16"
    assert (
        "Training in bfloat16: bfloat16 takes 1,000 ms a step, float32 10,000."
        in (second.path / "log.txt").read_text()
    )
    assert first.scores["paces"][0]["phase"] == 0
    shelf[0].write_text("{broken")
    api.fit(
        str(photos),
        "fine-tune",
        TINY,
        weights="random",
        resolution=32,
        out="three",
        changes=changes,
    )
    clear_cache(own_cache)
    assert not (own_cache / "paces").exists()


def test_who_is_stopped_while_the_pace_is_remembered_has_noted_none_of_his_own(
    photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def stopped(path: Path, _: object) -> None:
        written.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr("regraft.workflow.pacing.run.write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        api.fit(photos, "fine-tune", "test_resnet", weights="random", resolution=32, out="out")
    assert written[0].parent == own_cache / "paces"
    assert not list(Path("out").rglob("pace-*"))


def test_a_phase_may_see_smaller_images_than_the_plan(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []
    original = transform

    def spy(images, ids, rules, resolution, view=NO_AUGMENTATION):  # type: ignore[no-untyped-def]
        sides.append(resolution)
        return original(images, ids, rules, resolution, view)

    monkeypatch.setattr(transforms, "see", spy)
    changes = ["phases.1.resolution=24", "phases.1.epochs=1", "phases.1.batch_size=8"]
    done = api.fit(
        str(photos),
        "probe-then-fine-tune",
        TINY,
        weights="random",
        resolution=40,
        out="out",
        changes=changes,
    )
    assert list(dict.fromkeys(sides)) == [40, 24]
    assert sides[-1] == 40  # scores are those of the plan's resolution
    assert done.plan.phases[1].resolution == 24


def test_a_resolution_that_cannot_be_is_refused() -> None:
    facts = model_info("test_vit")
    phase = {"train": "all", "resolution": 64}
    plan = parse_plan({"backbone": "test_vit", "resolution": facts.resolution, "phases": [phase]})
    fixed = replace(facts, fixed_resolution=True)
    with pytest.raises(
        UserError, match=r"phases.0.resolution: test_vit takes one resolution only; use 0"
    ):
        plan.check(fixed, ("a", "b"))
    with pytest.raises(
        UserError, match="resolution 5 is too small to see anything; use 8 or more, or 0"
    ):
        parse_plan({"backbone": TINY, "resolution": 32, "phases": [{**phase, "resolution": 5}]})
    with pytest.raises(UserError, match="a head with 'flatten' takes one resolution only"):
        parse_plan(
            {"backbone": TINY, "resolution": 32, "head": "flatten", "phases": [phase]}
        ).check(model_info(TINY), ("a", "b"))


def test_precision_keep_and_compile_are_flags_and_their_mistakes_one_sentence(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    words = ["--backbone", TINY, "--weights", "random", "--resolution", 32]
    told = json.loads(
        regraft("plan", photos, *words, "--precision", "float32", "--keep", "never", "--json").out
    )
    assert told["plan"]["precision"] == "float32"
    assert told["phases"][0]["kept"] is False
    shown = regraft("plan", photos, *words).out
    assert "The frozen part's output is kept: 0 MB to write." in shown
    for flag in ("--keep", "--compile"):
        result = regraft("fit", photos, *words, flag, "perhaps")
        assert result.code == 2
        assert f"{flag} perhaps was given. Expected" in result.err
    result = regraft("fit", photos, *words, "--precision", "float8")
    assert result.code == 2
    assert (
        "precision: expected 'float32' or 'bfloat16', did you mean 'float32'?, got 'float8'"
        in result.err.replace("\n", " ")
    )


def test_sizes_and_hashes_of_files_are_read_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.data import decode
    from regraft.data.decode import image_size
    from regraft.data.images import hash_content
    from regraft.data.load import load_dataset

    data = load_dataset(photos, Path("home"))
    read: list[int] = []
    original = image_size
    monkeypatch.setattr(decode, "size", lambda content: read.append(1) or original(content))
    first = data.images.sizes(np.arange(10))
    part = data.take(np.arange(5, 15))
    assert (part.images.sizes(np.arange(10))[:5] == first[5:]).all()
    assert len(read) == 15
    hashed: list[int] = []
    content_hash = hash_content
    monkeypatch.setattr(
        decode, "content_hash", lambda content: hashed.append(1) or content_hash(content)
    )
    assert (data.take(np.arange(20)).hashes == data.hashes[:20]).all()
    assert (data.take(np.arange(5, 15)).hashes == data.hashes[5:15]).all()
    assert len(hashed) == len(data)


def test_no_more_views_are_computed_than_there_are_epochs(photos: Path, own_cache: Path) -> None:
    changes = ["phases.0.augment=light", "phases.0.epochs=2", "phases.0.patience=0"]
    two = api.fit(
        photos,
        "feature-extraction",
        TINY,
        weights="random",
        resolution=32,
        out="two",
        changes=[*changes, "phases.0.views=2"],
    )
    kinds = [
        len(json.loads(path.read_text())["arrays"][0]["shape"])
        for path in own_cache.glob("*/meta.json")
    ]
    assert kinds.count(2) == 4  # two views of train, train as it is, val
    many = api.fit(
        photos,
        "feature-extraction",
        TINY,
        weights="random",
        resolution=32,
        out="many",
        changes=[*changes, "phases.0.views=9"],
    )
    assert [
        len(json.loads(path.read_text())["arrays"][0]["shape"])
        for path in own_cache.glob("*/meta.json")
    ].count(2) == 4
    assert np.array_equal(two.predictions()["logits"], many.predictions()["logits"])
    assert "one augmented view" not in (many.path / "log.txt").read_text()
    one = api.fit(
        photos,
        "feature-extraction",
        TINY,
        weights="random",
        resolution=32,
        out="one",
        changes=changes,
    )
    assert "Each image is seen in one augmented view" in (one.path / "log.txt").read_text()


def test_where_the_processor_lacks_bfloat16_everything_is_float32(
    regraft, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    words = ["--backbone", TINY, "--weights", "random", "--resolution", 32, "--json"]
    said = {}
    for native in (True, False):
        monkeypatch.setattr(hardware, "has_bfloat16", lambda *_, native=native: native)
        said[native] = json.loads(regraft("plan", photos, *words).out)["plan"]["precision"]
    assert said == {True: "bfloat16", False: "float32"}
    done = regraft(
        "fit",
        photos,
        *words,
        "--technique",
        "fine-tune-top",
        "--set",
        "phases.0.epochs=1",
        "--set",
        "train_precision=bfloat16",
        "--out",
        "out",
        "-q",
    )
    assert json.loads(done.out)["paces"][0]["precision"] == "float32"

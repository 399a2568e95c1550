"""`regraft fit` end to end, on a tiny network: what a person does, and what he finds afterwards."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import (
    TINY,
    TINY_FLAGS,
    Regraft,
    spy_on_reads,
    tiny_fit,
    tiny_plan,
    to_folder,
    toy,
    write_folder,
)
from regraft.commands.evaluate import open_test, score_dataset
from regraft.data.dataset import Dataset, make_dataset
from regraft.data.images import ArrayImages
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.features.parts import open_parts
from regraft.inference.classifier import load_classifier
from regraft.models.backbone import load_backbone
from regraft.models.network import TransferNetwork
from regraft.models.transforms import Preprocess
from regraft.options import CacheOptions, DataOptions, Options, Runtime
from regraft.reporting.plots import find_kept_epoch, to_run_series
from regraft.runs.folder import Run, load_run
from regraft.runs.writer import write_weights
from regraft.system.output import write_json
from regraft.system.progress import ProgressReporter

QUICK = ("--backbone", TINY, *TINY_FLAGS, "-q")
EPOCHS = ("--set", "phases.0.epochs=2", "--set", "phases.0.batch_size=16")
FILES = {
    "plan.toml",
    "environment.json",
    "classes.json",
    "split.csv",
    "history.csv",
    "predictions.npz",
    "checkpoints",
    "model.safetensors",
    "log.txt",
    "scores.json",
    "freeze.json",
    "state.json",
}


def test_fit_leaves_a_whole_run_folder(regraft: Regraft, photos: Path) -> None:
    result = regraft("fit", photos, "--technique", "fine-tune-top", *QUICK, *EPOCHS, "--json")
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    path = Path(scores["path"])
    assert path == Path("runs/photos-fine-tune-top")
    assert {file.name for file in path.iterdir()} == FILES
    assert {file.name for file in (path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    plan = tomllib.loads((path / "plan.toml").read_text())
    undecided = [name for name, value in plan.items() if value == "auto"]
    assert undecided in ([], ["train_precision"])  # measured while it ran, and noted:
    assert [pace["precision"] for pace in scores["paces"]] == ["float32"]
    assert plan["phases"][0]["epochs"] == 2
    counts = scores["parameters"]
    assert counts["total"] == counts["trainable"] + counts["frozen"]
    assert {"load", "extract", "train", "evaluate", "total"} == set(scores["seconds"])
    assert scores["peak_memory_mb"] > 0
    history = load_run(path).history()
    assert [row["epoch"] for row in history] == [0, 1]
    assert {"train_loss", "val_loss", "train_accuracy", "val_accuracy", "lr"} <= set(history[0])
    contract = json.loads((path / "freeze.json").read_text())
    assert contract[0]["frozen_before"] == contract[0]["frozen_after"]
    assert contract[0]["without_gradient"] == []
    for checkpoint in (path / "checkpoints").iterdir():
        torch.load(checkpoint, weights_only=True)  # holds nothing but plain values and tensors


@pytest.mark.parametrize(
    "technique",
    [
        "linear-probe",
        "multi-layer-probe",
        "feature-extraction",
        "fine-tune-top",
        "fine-tune",
        "probe-then-fine-tune",
        "gradual-unfreezing",
        "from-scratch",
    ],
)
def test_every_technique_runs_and_freezes_what_it_says(technique: str, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", toy(90))
    run = tiny_fit(photos, technique, to_folder("out"))
    weights = run.weights()
    random = load_backbone(TINY, "random", 32, run.plan.seed)
    frozen = TransferNetwork(random, run.plan, run.classes).final_cut().frozen
    before = {id(value): name for name, value in named_tensors(random.model)}
    names = [before[id(value)] for _, value in named_tensors(frozen)]
    compared = [name for name in names if "num_batches" not in name]
    for name in compared:
        assert torch.equal(weights[f"backbone.{name}"], random.model.state_dict()[name]), name
    counts = run.scores["parameters"]
    assert sum(value.numel() for value in frozen.parameters()) == counts["frozen"]
    trains_all = ("fine-tune", "probe-then-fine-tune", "gradual-unfreezing", "from-scratch")
    assert (counts["frozen"] == 0) == (technique in trains_all)
    assert bool(compared) == (technique not in trains_all)


def named_tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def test_learning_happens_and_the_kept_weights_are_the_best_ones(photos: Path) -> None:
    changes = ("phases.0.epochs=12", "phases.0.batch_size=16")
    run = tiny_fit(photos, "fine-tune", to_folder("out"), *changes)
    best = max(run.history(), key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert run.scores["val"]["accuracy"] == pytest.approx(best["val_accuracy"])
    assert run.scores["val"]["loss"] == pytest.approx(best["val_loss"], rel=1e-3)
    assert run.scores["val"]["accuracy"] > 0.8


def test_of_equally_accurate_epochs_the_one_with_the_smaller_loss_is_kept(tmp_path: Path) -> None:
    ties = 0
    for seed in range(3):
        pixels = np.zeros((40, 32, 32, 3), np.uint8)
        pixels[20:] = 255
        labels = [0] * 20 + [1] * 20
        easy = make_dataset("easy", labels, ["dark", "bright"], ArrayImages(pixels + seed))
        changes = ("phases.0.epochs=8", "phases.0.patience=3", f"seed={seed}")
        run = tiny_fit(easy, "feature-extraction", to_folder(tmp_path / str(seed)), *changes)
        history = run.history()
        best = max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        assert run.scores["val"]["loss"] == pytest.approx(best["val_loss"], rel=1e-3)
        assert run.scores["val"]["accuracy"] == pytest.approx(best["val_accuracy"])
        assert history[find_kept_epoch(to_run_series(run, "val"))] == best  # the star in plots
        first = next(row for row in history if row["val_accuracy"] == best["val_accuracy"])
        ties += first is not best
    assert ties >= 2  # the case is met


def test_fit_never_reads_a_test_image(photos: Path) -> None:
    dataset, names, read = spy_on_reads(load_dataset(photos, Path("home")))
    held_out = {names[row] for row in dataset.split().test}
    run = tiny_fit(dataset, "fine-tune-top", to_folder("out"), "phases.0.epochs=1")
    assert len(read) == len(dataset.split().train) + len(dataset.split().val)
    assert not set(read) & held_out
    open_test(run, dataset)
    assert set(read) >= held_out


class StopAfter(ProgressReporter):
    """Does as Ctrl-C does once a piece of work is so far."""

    def __init__(self, what: str, steps: int) -> None:
        self.what = what
        self.steps = steps

    def progress(self, what: str, done: int, total: int) -> None:
        if what == self.what and done >= self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("technique", "phase", "steps"),
    [
        ("fine-tune-top", "phase 1", 15),
        ("gradual-unfreezing", "phase 3", 15),
        ("fine-tune", "phase 1", 3),
    ],
)
def test_a_resumed_run_equals_one_that_was_never_stopped(
    photos: Path, technique: str, phase: str, steps: int
) -> None:
    data = load_dataset(photos, Path("home"))
    phases = (1, 2, 3) if technique == "gradual-unfreezing" else (0,)
    changes = [f"phases.{number}.batch_size=16" for number in phases]
    if technique == "fine-tune-top":
        changes.append("head=dropout 0.3")
    whole = tiny_fit(data, technique, to_folder("whole"), *changes)
    stopped = Runtime(reporter=StopAfter(phase, steps))
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(data, technique, to_folder("parts", runtime=stopped), *changes)
    assert not Path("parts/scores.json").exists()
    with pytest.raises(UserError, match="is not finished. Resume it with"):
        load_classifier("parts")
    resumed = tiny_fit(data, technique, to_folder("parts", resume=True), *changes)
    assert_equal_weights(whole, resumed)
    assert timeless(whole) == timeless(resumed)
    assert (whole.predictions()["logits"] == resumed.predictions()["logits"]).all()
    again = tiny_fit(data, technique, to_folder("parts", resume=True), *changes)
    assert again.scores == resumed.scores


def assert_equal_weights(run: Run, other: Run) -> None:
    weights = other.weights()
    for name, value in run.weights().items():
        assert torch.equal(value, weights[name]), name


def timeless(run: Run) -> list[dict[str, float]]:
    rows = run.history()
    for row in rows:
        row.pop("seconds", None)
    return rows


def test_the_same_seed_gives_the_same_run_and_another_seed_another(photos: Path) -> None:
    changes = ("phases.0.augment=light", "phases.0.epochs=4")
    first, same, other = (
        tiny_fit(photos, "fine-tune", to_folder(f"out{number}"), *changes, seed=seed)
        for number, seed in enumerate((0, 0, 1))
    )
    assert_equal_weights(first, same)
    assert not torch.equal(first.weights()["head.0.weight"], other.weights()["head.0.weight"])


def test_plan_explains_saves_and_runs_nothing_and_fit_takes_the_file(
    regraft: Regraft, photos: Path, own_cache: Path
) -> None:
    words = ("--technique", "fine-tune-top", "--backbone", TINY, *TINY_FLAGS)
    shown = regraft("plan", photos, *words, "--save", "plan.toml")
    assert shown.code == 0, shown.err
    for part in (
        "Phase 1: train layer4",
        "frozen: ",
        "computed once and cached:",
        "trained: ",
        " held out; 3 classes",
        "Nothing was run.",
    ):
        assert part in shown.out
    assert not Path("runs").exists()
    assert not list(own_cache.glob("*/meta.json"))
    forecast = json.loads(regraft("plan", photos, *words, "--json").out)
    assert forecast["parameters"]["frozen"] == forecast["phases"][0]["frozen_parameters"]
    again = regraft("plan", photos, *words, "--save", "plan.toml")
    assert (again.code, "plan.toml exists already" in again.err) == (2, True)
    change = ("--set", "phases.0.lr=3e-4")
    done = regraft("fit", photos, "--plan", "plan.toml", *change, *EPOCHS, "-q", "--json")
    assert done.code == 0, done.err
    plan = tomllib.loads((Path(json.loads(done.out)["path"]) / "plan.toml").read_text())
    phase = plan["phases"][0]
    assert (phase["lr"], phase["epochs"], phase["train"]) == (3e-4, 2, "layer4")


def test_flags_given_beside_a_plan_file_count(regraft: Regraft, photos: Path) -> None:
    regraft("plan", photos, "--backbone", TINY, *TINY_FLAGS, "--save", "plan.toml")
    flags = ("--seed", 3, "--resolution", 40, "--backbone", "test_efficientnet")
    result = regraft("plan", photos, "--plan", "plan.toml", *flags, "--json")
    plan = json.loads(result.out)["plan"]
    assert (plan["seed"], plan["resolution"]) == (3, 40)
    assert (plan["backbone"], plan["weights"]) == ("test_efficientnet", "random")
    broken = Path("plan.toml").read_text().replace("resolution = 32", "resolution = 2")
    Path("plan.toml").write_text(broken)
    assert regraft("plan", photos, "--plan", "plan.toml").code == 2
    assert regraft("plan", photos, "--plan", "plan.toml", "--set", "resolution=32").code == 0


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no room on any disk."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: FullDisk())


def with_pixels_only(data: str | Path | Dataset, cache: CacheOptions) -> CacheOptions:
    """Put decoded images into a cache: without them nothing can be fitted; returns the cache."""
    dataset = load_dataset(data, cache.dir)
    preprocess = Preprocess(load_backbone(TINY, "random").rules, 32)
    open_parts(dataset, dataset.split(), preprocess, Options(cache=cache))
    return cache


class FullDisk:
    total = 10**9
    used = 10**9
    free = 0


def test_a_disk_without_room_computes_the_frozen_part_again_and_says_so(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = "precision=float32"
    cached = tiny_fit(photos, "fine-tune-top", to_folder("cached"), exact)
    full = with_pixels_only(photos, CacheOptions(cache_dir=Path("full")))
    no_room(monkeypatch)
    live = tiny_fit(photos, "fine-tune-top", to_folder("live", cache=full), exact)
    assert "it is computed again every epoch" in (live.path / "log.txt").read_text()
    assert live.scores["val"]["loss"] == pytest.approx(cached.scores["val"]["loss"], abs=0.02)


def test_what_is_cached_already_is_used_on_a_full_disk(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_fit(photos, "fine-tune-top", to_folder("first"))
    no_room(monkeypatch)
    second = tiny_fit(photos, "fine-tune-top", to_folder("second"))
    assert second.scores["cache"]["hit"]
    assert "computed again" not in (second.path / "log.txt").read_text()
    assert (first.predictions()["logits"] == second.predictions()["logits"]).all()


def test_a_linear_probe_without_room_for_its_features_is_still_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = toy(1000)  # more than are read at once
    exact = "precision=float32"
    cached = tiny_fit(photos, "linear-probe", to_folder("cached"), exact)
    full = with_pixels_only(photos, CacheOptions(cache_dir=Path("full")))
    no_room(monkeypatch)
    live = tiny_fit(photos, "linear-probe", to_folder("live", cache=full), exact)
    assert live.scores["train"]["n"] > 500
    assert live.scores["cache"]["bytes"] == 0  # nothing was cached
    assert live.scores["val"]["loss"] == pytest.approx(cached.scores["val"]["loss"], rel=0.05)


def test_what_is_cached_is_not_read_where_nothing_is_to_be_cached(photos: Path) -> None:
    def logits(name: str, keep: str) -> np.ndarray[Any, Any]:
        options = to_folder(name, cache=CacheOptions(keep=keep))
        return tiny_fit(photos, "linear-probe", options, "precision=float32").predictions()[
            "logits"
        ]

    cold = logits("cold", "never")
    assert not np.array_equal(logits("cached", "always"), cold)  # cached in half precision
    assert np.array_equal(logits("warm", "never"), cold)


def test_runs_on_different_splits_are_not_compared(photos: Path) -> None:
    from regraft.commands.report import report

    runs = []
    for seed in (0, 1):
        data = DataOptions(split_seed=seed)
        runs.append(tiny_fit(photos, "linear-probe", to_folder(f"out{seed}", data=data)))
    with pytest.raises(UserError, match="was fitted on split .*, out1 on"):
        report([run.path for run in runs])
    digest = runs[0].scores["split_digest"]
    with pytest.raises(UserError, match=digest):
        report([run.path for run in runs])


def test_altered_weights_are_refused(photos: Path) -> None:
    run = tiny_fit(photos, "linear-probe", to_folder("out"))
    tensors = run.weights()
    altered = {"backbone.other": tensors["head.0.weight"].clone(), **tensors}
    write_weights(run.path / "model.safetensors", altered)
    message = r"was altered after it was finished \(model.safetensors\)"
    with pytest.raises(UserError, match=message):
        load_classifier(run.path).predict(np.zeros((1, 16, 16, 3), np.uint8))
    scores = json.loads((run.path / "scores.json").read_text())
    del scores["files"]  # a run of before files had digests
    write_json(run.path / "scores.json", scores)
    with pytest.raises(UserError, match="do not belong to its plan"):
        load_classifier("out").predict(np.zeros((1, 16, 16, 3), np.uint8))


def test_fit_skips_bad_images_when_asked_and_a_repaired_set_can_run_at_once(
    regraft: Regraft, photos: Path
) -> None:
    broken = sorted(photos.rglob("*.png"))[0::40]
    whole = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"")
    stopped = regraft("fit", photos, *QUICK, "--out", "out")
    assert (stopped.code, "cannot be decoded" in stopped.err) == (2, True)
    assert not Path("out").exists()
    went_on = regraft("fit", photos, *QUICK, "--out", "skipped", "--skip-bad", "--json")
    assert went_on.code == 0, went_on.err
    opened = regraft("evaluate", "skipped", "--split", "test", "--json", "-q")
    assert opened.code == 0, opened.err
    for path, content in zip(broken, whole, strict=True):
        path.write_bytes(content)
    assert regraft("fit", photos, *QUICK, "--out", "out").code == 0


def test_statistics_move_in_a_real_run_only_where_the_plan_lets_them(photos: Path) -> None:
    before = load_backbone(TINY, "random", 32).model.state_dict()
    for policy in ("keep", "adapt"):
        changes = ("phases.0.epochs=1", f"phases.0.batch_norm={policy}")
        run = tiny_fit(photos, "fine-tune", to_folder(policy), *changes)
        moved = []
        for name, value in run.weights().items():
            if "running_mean" in name:
                moved.append(not torch.equal(value, before[name.removeprefix("backbone.")]))
        assert len(moved) > 5
        assert set(moved) == {policy == "adapt"}


def test_a_network_that_diverged_is_no_result(regraft: Regraft, photos: Path) -> None:
    changes = ("optimizer=sgd", "lr=100", "epochs=12", "label_smoothing=0")
    words = [word for change in changes for word in ("--set", f"phases.0.{change}")]
    done = regraft("fit", photos, "--technique", "fine-tune", *QUICK, *words, "--out", "wild")
    assert done.code == 2
    assert "wild diverged: the trained network gives numbers that are not finite." in done.err
    assert not Path("wild/scores.json").exists()


def test_a_batch_of_one_is_refused_where_batch_normalisation_needs_two(
    regraft: Regraft, photos: Path
) -> None:
    one = ("--set", "phases.0.batch_size=1", "--set", "phases.0.epochs=1")
    for technique in ("feature-extraction", "from-scratch"):
        done = regraft("fit", photos, "--technique", technique, *QUICK, *one, "--out", technique)
        assert (done.code, "BatchNorm needs at least two images" in done.err) == (2, True), done.err
    done = regraft("fit", photos, "--technique", "fine-tune", *QUICK, *one, "--out", "kept")
    assert done.code == 0, done.err


def test_what_a_linear_probe_has_no_use_for_is_logged(photos: Path) -> None:
    changes = ("phases.0.lr=3e-4", "phases.0.epochs=50")
    probed = tiny_fit(photos, "linear-probe", to_folder("probed"), *changes)
    unused = "A linear probe has no use for lr = 0.0003, epochs = 50."
    assert unused in (probed.path / "log.txt").read_text()
    plain = tiny_fit(photos, "linear-probe", to_folder("plain"))
    assert "no use" not in (plain.path / "log.txt").read_text()


def test_a_run_scored_on_other_images_gives_the_logits_of_its_own(photos: Path) -> None:
    run = tiny_fit(photos, "fine-tune", to_folder("out"), "phases.0.epochs=1")
    dataset = load_dataset(photos, Path("home"))
    logits, _ = score_dataset(run, dataset)
    own = run.predictions()
    row_of = {key: row for row, key in enumerate(dataset.keys.tolist())}
    rows = [row_of[key] for key in own["keys"].tolist()]
    assert len(rows) >= 9
    assert np.allclose(logits[rows], own["logits"], atol=1e-5)


def test_other_images_are_matched_by_the_names_of_their_classes(photos: Path) -> None:
    run = tiny_fit(photos, "linear-probe", to_folder("out"))
    dataset = load_dataset(photos, Path("home"))
    logits, targets = score_dataset(run, dataset)
    turned = make_dataset(
        "turned",
        len(dataset.classes) - 1 - dataset.labels,
        dataset.classes[::-1],
        dataset.images,
        dataset.keys,
    )
    same_logits, same_targets = score_dataset(run, turned)
    assert np.array_equal(logits, same_logits)
    assert np.array_equal(targets, same_targets)
    two = replace(dataset, classes=("elsewhere", *dataset.classes[1:]))
    with pytest.raises(UserError, match="'elsewhere', which the run does not know"):
        score_dataset(run, two)
    first, *_, last = range(len(dataset.classes))
    rows = np.flatnonzero(np.isin(dataset.labels, (first, last)))
    part = dataset.take(rows)
    fewer = make_dataset(
        "fewer",
        (part.labels == last).astype(int),
        (dataset.classes[first], dataset.classes[last]),
        part.images,
        part.keys,
    )
    _, some_targets = score_dataset(run, fewer)
    assert np.array_equal(some_targets, targets[rows])


def test_evaluate_shows_val_and_opens_test_on_purpose_recording_each_time(
    regraft: Regraft, photos: Path
) -> None:
    fitted = regraft("fit", photos, *QUICK, "--out", "out")
    held_out = "the test part is held out, `regraft evaluate out --split test` opens it"
    assert held_out in fitted.out
    shown = regraft("evaluate", "out")
    assert shown.code == 0, shown.err
    assert held_out in shown.out
    assert not Path("out/test.json").exists()
    for count in (1, 2):
        opened = json.loads(regraft("evaluate", "out", "--split", "test", "--json", "-q").out)
        assert len(opened["opened"]) == count
    assert "is held out" not in regraft("evaluate", "out").out
    other = write_folder(Path("other"), toy(seed=3))
    refused = regraft("evaluate", "out", other, "--split", "test")
    assert (refused.code, "was fitted on" in refused.err) == (2, True)
    every = json.loads(regraft("evaluate", "out", other, "--split", "all", "--json", "-q").out)
    assert every["all"]["n"] == 120
    for words, part in (
        (("out", "--split", "all"), "no DATA was given"),
        (("out", "--split", "tset"), "is no part"),
        ((photos,), "is no run"),
        (("out", photos), "Expected --split all to score the run on those images."),
    ):
        refused = regraft("evaluate", *words)
        assert (refused.code, part in refused.err) == (2, True), refused.err


def test_predictions_of_a_folder_equal_those_of_the_run(regraft: Regraft, photos: Path) -> None:
    changes = ("phases.0.epochs=2", "phases.0.batch_size=16", "precision=float32")
    run = tiny_fit(photos, "fine-tune-top", to_folder("out"), *changes)
    val = run.predictions()
    probabilities = load_classifier("out").predict_proba([photos / key for key in val["keys"]])
    logits = val["logits"].astype(float)
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    assert np.abs(probabilities - wanted / wanted.sum(1, keepdims=True)).max() < 2e-3
    broken = photos / "class0" / "broken.png"
    broken.write_bytes(b"")
    rows = json.loads(regraft("predict", "out", photos, "--top", 2, "--json").out)["predictions"]
    assert len(rows) == 121
    assert [row["path"] for row in rows if row["error"]] == [str(broken)]
    by_path = {row["path"]: row for row in rows}
    for key, number in zip(val["keys"], logits.argmax(1), strict=True):
        assert by_path[str(photos / key)]["label"] == run.classes[number]
    plain = regraft("predict", "out", broken)
    assert "cannot be read: the file is empty" in plain.out
    missing = regraft("predict", "out", "nowhere.png")
    assert (missing.code, "There is nothing at nowhere.png" in missing.err) == (2, True)


def test_the_plan_of_a_run_is_the_plan_that_was_asked_for(photos: Path) -> None:
    run = tiny_fit(photos, "linear-probe", to_folder("out"), seed=4)
    asked = tiny_plan(seed=4)
    assert (run.plan.backbone, run.plan.weights) == (asked.backbone, asked.weights)
    assert (run.plan.resolution, run.plan.seed) == (32, 4)

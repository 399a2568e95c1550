"""Run folders: begun, resumed, refused, read; those of 0.1; images that leave their part."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY, toy, write_folder
from regraft.commands.evaluate import evaluate
from regraft.commands.fit import fit
from regraft.commands.predict import predict
from regraft.commands.report import report
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.options import CacheOptions, DataOptions, Options, PlanOverrides, RunDir
from regraft.plans.schema import Plan
from regraft.plans.toml import parse_plan, read_plan
from regraft.runs.directory import choose_dir, require_free_dir
from regraft.runs.folder import Run, load_run, verify_run
from regraft.runs.layout import FORMAT
from regraft.runs.provenance import describe_origin, recorded_split, rows_by_part
from regraft.runs.writer import PhaseRecord, RunWriter
from tiny import fit_tiny

OLD = Path(__file__).parent / "data"
OLD_LOSSES = {"val": 0.8806226285577928, "test": 0.948415410731877, "resumed": 1.1831935872173511}
OLD_PLAN = {
    "backbone": TINY,
    "weights": "random",
    "until": "layer1",
    "resolution": 32,
    "head": "bn, dense 16 relu",
    "phases": [
        {"train": "head", "epochs": 2, "lr": 0.01, "batch_norm": "adapt"},
        {
            "train": "head",
            "epochs": 3,
            "lr": 0.003,
            "schedule": "one-cycle",
            "batch_norm": "keep",
            "monitor": "val_loss",
        },
    ],
}


def tiny_plan(seed: int = 0) -> Plan:
    values = {"backbone": TINY, "resolution": 32, "seed": seed, "phases": [{"train": "head"}]}
    return parse_plan(values)


# the writer


def test_a_folder_is_begun_kept_to_one_process_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunWriter(path, tiny_plan(), "abc", RunDir()) as writer:
        assert not writer.is_finished
        state = json.loads((path / "state.json").read_text())
        assert state == {"format": FORMAT, "split_digest": "abc"}
        assert read_plan(path / "plan.toml") == tiny_plan()
        with (
            pytest.raises(UserError, match="writ"),
            RunWriter(path, tiny_plan(), "abc", RunDir(resume=True)),
        ):
            pass
        record = PhaseRecord([{"phase": 0, "val_loss": 1.0}], [{"kept": True}], [], {"train": 2.0})
        writer.save_phase(0, {"head.0.bias": torch.ones(3)}, record)
    with pytest.raises(UserError, match="is not finished. Resume it with the same"):
        load_run(path)
    with RunWriter(path, tiny_plan(), "abc", RunDir(resume=True)) as writer:
        assert not writer.is_finished
        tensors, read = writer.load_phase(0) or ({}, None)
        assert read == record
        assert tensors["head.0.bias"].tolist() == [1.0, 1.0, 1.0]
        assert writer.load_phase(1) is None


@pytest.mark.parametrize(
    ("plan", "digest", "message"),
    [
        (tiny_plan(seed=1), "abc", "holds another plan"),
        (tiny_plan(), "abd", "was begun with other images or another split"),
    ],
)
def test_another_plan_or_split_is_not_resumed(
    tmp_path: Path, plan: Plan, digest: str, message: str
) -> None:
    with RunWriter(tmp_path / "run", tiny_plan(), "abc", RunDir()):
        pass
    with (
        pytest.raises(UserError, match=message),
        RunWriter(tmp_path / "run", plan, digest, RunDir(resume=True)),
    ):
        pass
    with RunWriter(tmp_path / "run", plan, digest, RunDir(overwrite=True)):
        assert read_plan(tmp_path / "run" / "plan.toml") == plan


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file. Expected a folder for the run"):
        require_free_dir(tmp_path / "file", "run", RunDir())
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_text("mine")
    for run_dir, message in (
        (RunDir(), "is not empty. Expected a new or empty folder"),
        (RunDir(overwrite=True), "holds something other than a run"),
        (RunDir(resume=True), "holds no run to go on with"),
    ):
        with (
            pytest.raises(UserError, match=message),
            RunWriter(folder, tiny_plan(), "abc", run_dir),
        ):
            pass
        assert (folder / "a.png").read_text() == "mine"
        assert not (folder / "plan.toml").exists()


def test_a_folder_is_chosen_with_the_next_free_number() -> None:
    assert choose_dir(RunDir(out="mine"), "runs", "toy") == Path("mine")
    names = []
    for _ in range(3):
        path = choose_dir(RunDir(), "runs", "toy/probe")
        path.mkdir(parents=True)
        (path / "plan.toml").write_text("")
        names.append(path.name)
    assert names == ["toy-probe", "toy-probe-2", "toy-probe-3"]
    assert choose_dir(RunDir(resume=True), "runs", "toy/probe").name == "toy-probe-3"


# reading


def test_a_run_is_read_verified_and_refused_when_it_was_altered(photos: Path) -> None:
    run = fit_tiny(photos, "linear-probe", "out", ["phases.0.l2=[0.1]"])
    assert run.scores["format"] == FORMAT
    assert load_run("out").scores == run.scores
    verify_run(run)
    (run.path / "history.csv").write_text("phase\n")
    with pytest.raises(UserError, match=r"was altered after it was finished \(history.csv\)"):
        verify_run(run)
    with pytest.raises(UserError, match="is no run. Expected a folder that"):
        load_run(photos)
    with pytest.raises(UserError, match="holds 1 runs and is none itself: out"):
        load_run(Path())


def test_a_newer_format_is_refused_in_one_sentence(photos: Path) -> None:
    run = fit_tiny(photos, "linear-probe", "out", ["phases.0.l2=[0.1]"])
    message = (
        rf"has format {FORMAT + 1}, and this version of regraft reads formats up to {FORMAT}. "
        r".*Upgrade regraft."
    )

    def resume(run: Run) -> None:
        with RunWriter(run.path, run.plan, run.scores["split_digest"], RunDir(resume=True)):
            pass

    for name, again in (("scores.json", lambda run: load_run(run.path)), ("state.json", resume)):
        values = json.loads((run.path / name).read_text())
        (run.path / name).write_text(json.dumps({**values, "format": FORMAT + 1}))
        with pytest.raises(UserError, match=message):
            again(run)
        (run.path / name).write_text(json.dumps(values))
    assert load_run("out").scores == run.scores


# folders of 0.1


@pytest.fixture
def old_run(tmp_path: Path) -> Run:
    """A finished run that 0.1 wrote, on digits."""
    folder = tmp_path / "old"
    shutil.copytree(OLD / "run-0.1-finished", folder)
    return load_run(folder)


def test_a_run_of_0_1_is_read(old_run: Run) -> None:
    assert "format" not in old_run.scores
    verify_run(old_run)
    assert old_run.plan.phases[1].schedule == "warmup-cosine"  # "one-cycle" in its file
    assert old_run.plan.digest == old_run.scores["plan_digest"]
    assert old_run.scores["val"]["loss"] == pytest.approx(OLD_LOSSES["val"])
    assert [row["phase"] for row in old_run.history()] == [0, 0, 1, 1, 1]
    assert [check["kept"] for check in old_run.freeze_checks()] == [True, True]
    assert old_run.environment()["packages"]["regraft"] == "0.1.0"
    split = old_run.split()
    assert len(split) == 1797
    assert {image.skipped for image in split} == {""}
    dataset = load_dataset("digits", Path("cache"))
    assert recorded_split(old_run, dataset).digest == old_run.scores["split_digest"]
    assert recorded_split(old_run, dataset).digest == dataset.split().digest
    rows = rows_by_part(old_run, dataset)
    assert (len(rows["train"]), len(rows["val"])) == (1270, 184)
    assert old_run.warnings == []


def test_a_run_of_0_1_is_evaluated_predicted_with_and_reported(
    old_run: Run, tmp_path: Path
) -> None:
    evaluation = evaluate(old_run, split="test")
    assert evaluation.scores is not None
    assert evaluation.scores["loss"] == pytest.approx(OLD_LOSSES["test"], rel=1e-4)
    logits = load_run(old_run.path).predictions("test")["logits"]
    first = [-3.0693288, 0.08042242, 1.2461325, -1.0048263, -2.4455514]
    assert logits[0, :5].tolist() == pytest.approx(first, abs=1e-3)
    digits = load_dataset("digits", Path("cache"))
    images = write_folder(tmp_path / "digits", digits.take(np.arange(10)))
    predictions = list(predict(old_run, [images]))
    assert len(predictions) == 10
    assert {prediction.label for prediction in predictions} <= set(old_run.classes)
    page = report([old_run.path], format="md", options=Options(run_dir=RunDir(out="report.md")))
    assert page is not None
    assert "its test accuracy is 75.8% on 343 images" in Path("report.md").read_text()


def test_the_plan_of_a_run_of_0_1_gives_the_same_run_again(old_run: Run) -> None:
    torch.set_num_threads(1)  # as the folder was written: sums over threads differ
    again = fit("digits", overrides=PlanOverrides(plan=old_run.path / "plan.toml"))
    assert again.scores["plan_digest"] == old_run.scores["plan_digest"]
    assert again.scores["split_digest"] == old_run.scores["split_digest"]
    assert again.scores["val"]["loss"] == pytest.approx(OLD_LOSSES["val"], rel=1e-3)
    ours, theirs = again.weights(), old_run.weights()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].float(), tensor.float(), atol=1e-3), name


def test_an_unfinished_run_of_0_1_is_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(OLD / "run-0.1-unfinished", folder)
    options = Options(run_dir=RunDir(out=folder, resume=True))
    run = fit("digits", overrides=PlanOverrides(plan=parse_plan(OLD_PLAN)), options=options)
    assert run.scores["val"]["loss"] == pytest.approx(OLD_LOSSES["resumed"], rel=1e-3)
    assert [row["phase"] for row in run.history()] == [0, 0, 1, 1, 1]
    assert "Phase 1 of 2 was done before." in (folder / "log.txt").read_text()
    assert run.scores["format"] == FORMAT


def test_folders_of_0_1_hold_no_path_of_a_machine() -> None:
    seen = 0
    for path in OLD.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"/tmp/" not in content, path
            assert str(Path(__file__).parents[1]).encode() not in content, path
            assert len(content) < 300_000
            seen += 1
    assert seen >= 17


# images that cannot be decoded


def parts_in(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        return {row["key"]: row["part"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_broken_image_leaves_its_part_and_no_other_moves(tmp_path: Path, seed: int) -> None:
    photos = write_folder(tmp_path / "photos", toy(90, seed=seed))
    overrides = ["phases.0.l2=[0.1]"]
    whole = parts_in(fit_tiny(photos, "linear-probe", "whole", overrides).path / "split.csv")
    rng = np.random.default_rng(seed)
    files = sorted(photos.rglob("*.png"))
    for number in rng.choice(len(files), 8, replace=False):
        files[number].write_bytes(b"")
    asked = PlanOverrides(
        backbone=TINY, weights="random", resolution=32, overrides=tuple(overrides)
    )
    options = Options(DataOptions(skip_bad=True), CacheOptions(), run_dir=RunDir(out="skipped"))
    run = fit(photos, "linear-probe", asked, options)
    left = parts_in(run.path / "split.csv")
    skipped = parts_in(run.path / "skipped.csv")
    assert left | skipped == whole
    assert not left.keys() & skipped.keys()
    broken = {path.relative_to(photos).as_posix() for path in files if not path.stat().st_size}
    unopened = {key for key in broken if whole[key] == "test"}
    assert skipped.keys() == broken - unopened
    assert run.scores["skipped"] == len(skipped)
    assert {image.key for image in run.split() if image.skipped} == skipped.keys()
    opened = evaluate(run, split="test", options=Options(DataOptions(skip_bad=True)))
    assert opened.scores is not None
    tested = sum(part == "test" for part in whole.values())
    assert opened.scores["n"] == tested - len(unopened)
    recorded = opened.run.test or {}
    assert set(recorded.get("skipped", {})) == unopened
    dataset = load_dataset(photos, Path("cache"))
    assert recorded_split(run, dataset).digest == run.scores["split_digest"]


def test_the_origin_is_in_the_users_words_or_a_whole_path(photos: Path) -> None:
    assert describe_origin("digits", DataOptions())["data"] == "digits"
    assert describe_origin(photos, DataOptions())["data"] == str(photos.resolve())
    assert describe_origin(toy(12), DataOptions(split_seed=3)) == {
        "data": None,
        "train_images": None,
        "val_images": None,
        "split_seed": 3,
        "skip_bad": False,
    }

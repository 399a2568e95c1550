"""The command line end to end, on a tiny network: what a person does, and what he finds afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from regraft.workflow import opening, story

import regraft as api
from conftest import reading, toy, write_folder
from regraft.commands.evaluate import open_test
from regraft.data.load import load_dataset
from regraft.runs.folder import load_run
from regraft.runs.writer import write_weights
from regraft.system.output import write_json

QUICK = ("--backbone", "test_resnet", "--weights", "random", "--resolution", "32", "-q")
EPOCHS = ("--set", "phases.0.epochs=2", "--set", "phases.0.batch_size=16")


def test_fit_leaves_a_whole_run_folder(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = regraft("fit", photos, "--technique", "fine-tune-top", *QUICK, *EPOCHS, "--json")
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    path = Path(scores["path"])
    assert path == Path("runs/photos-fine-tune-top")
    expected = {
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
    assert {one.name for one in path.iterdir()} == expected
    assert {one.name for one in (path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    plan = tomllib.loads((path / "plan.toml").read_text())
    assert [name for name, value in plan.items() if value == "auto"] in (
        [],
        ["train_precision"],
    )  # measured while it ran, and noted:
    assert [pace["precision"] for pace in scores["paces"]] == ["float32"]
    assert plan["phases"][0]["epochs"] == 2
    assert (
        scores["parameters"]["total"]
        == scores["parameters"]["trainable"] + scores["parameters"]["frozen"]
    )
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
def test_every_technique_runs_and_freezes_what_it_says(
    regraft, technique: str, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    pixels = toy(90)
    write_folder(tmp_path / "photos", pixels)
    result = regraft(
        "fit", tmp_path / "photos", "--technique", technique, *QUICK, "--out", "out", "--json"
    )
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    finished = load_run(Path("out"))
    original = api.load("out").network[0].model.state_dict()
    random = story.backbone.load("test_resnet", "random", 32, finished.plan.seed).model.state_dict()
    frozen = story.final_cut(story.backbone.load("test_resnet", "random", 32), finished.plan)[0]
    names = {
        name.removeprefix("body.")
        for name, _ in (*frozen.named_parameters(), *frozen.named_buffers())
        if "num_batches" not in name
    }
    assert all(torch.equal(original[name], random[name]) for name in names)
    assert (
        sum(
            random[name].numel()
            for name, _ in frozen.named_parameters()
            for name in [name.removeprefix("body.")]
        )
        == scores["parameters"]["frozen"]
    )
    assert (scores["parameters"]["frozen"] == 0) == (
        technique in ("fine-tune", "probe-then-fine-tune", "gradual-unfreezing", "from-scratch")
    )


def test_learning_happens_and_the_kept_weights_are_the_best_ones(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = regraft(
        "fit",
        photos,
        "--technique",
        "fine-tune",
        *QUICK,
        "--set",
        "phases.0.epochs=12",
        "--set",
        "phases.0.batch_size=16",
        "--out",
        "out",
        "--json",
    )
    scores = json.loads(result.out)
    history = load_run(Path("out")).history()
    assert scores["val"]["accuracy"] == pytest.approx(max(row["val_accuracy"] for row in history))
    assert scores["val"]["accuracy"] > 0.8


def test_plan_explains_saves_and_runs_nothing_and_fit_takes_the_file(
    regraft, photos: Path, own_cache: Path
) -> None:  # type: ignore[no-untyped-def]
    words = (
        "--technique",
        "fine-tune-top",
        "--backbone",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        "32",
    )
    shown = regraft("plan", photos, *words, "--save", "plan.toml")
    assert shown.code == 0, shown.err
    for part in (
        "Phase 1: train layer4",
        "frozen: ",
        "computed once and kept:",
        "trained: ",
        "Nothing was run.",
    ):
        assert part in shown.out
    assert not Path("runs").exists()
    assert not list(own_cache.glob("*/meta.json"))
    told = json.loads(regraft("plan", photos, *words, "--json").out)
    assert told["parameters"]["frozen"] == told["phases"][0]["frozen_parameters"]
    again = regraft("plan", photos, *words, "--save", "plan.toml")
    assert (again.code, "plan.toml exists already" in again.err) == (2, True)
    done = regraft(
        "fit", photos, "--plan", "plan.toml", "--set", "phases.0.lr=3e-4", *EPOCHS, "-q", "--json"
    )
    assert done.code == 0, done.err
    plan = tomllib.loads((Path(json.loads(done.out)["path"]) / "plan.toml").read_text())
    assert (plan["phases"][0]["lr"], plan["phases"][0]["epochs"], plan["phases"][0]["train"]) == (
        3e-4,
        2,
        "layer4",
    )


def test_compare_ranks_on_val_opens_test_once_and_shares_the_frozen_part(
    regraft, photos: Path, own_cache: Path
) -> None:  # type: ignore[no-untyped-def]
    words = (
        "--techniques",
        "linear-probe,feature-extraction,fine-tune",
        "--backbones",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        "32",
    )
    result = regraft("compare", photos, *words, *EPOCHS, "-q", "--out", "board", "--json")
    assert result.code == 0, result.err
    board = json.loads(result.out)
    vals = [row["val"]["accuracy"] for row in board["rows"]]
    assert vals == sorted(vals, reverse=True)
    assert board["selected"] == board["rows"][0]["name"]
    for row in board["rows"]:
        assert len(row["opened"]) == 1
        assert row["test"]["n"] == board["rows"][0]["test"]["n"]
        assert row["test"]["ci95"][0] <= row["test"]["accuracy"] <= row["test"]["ci95"][1]
    assert {path.name for path in Path("board").iterdir() if path.is_file()} == {
        "comparison.json",
        "leaderboard.json",
        "leaderboard.csv",
        "curves.png",
        "accuracy-against-seconds.png",
    }
    for path in Path("board").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.size[0] > 500
    by_name = {row["name"]: row for row in board["rows"]}
    assert by_name["feature-extraction"]["cache"]["hit"]
    assert not by_name["linear-probe"]["cache"]["hit"]
    kinds = [
        len(json.loads(path.read_text())["arrays"][0]["shape"])
        for path in own_cache.glob("*/meta.json")
    ]
    assert (kinds.count(4), kinds.count(2)) == (
        3,
        3,
    )  # pixels and features of train, val and test: each once, for three techniques
    shown = regraft("compare", photos, *words, *EPOCHS, "-q")
    assert "→" in shown.out
    assert Path("compare/photos/leaderboard.json").is_file()


def test_rows_that_are_given_one_network_in_turn_score_as_each_would_alone(photos: Path) -> None:
    ways = ["from-scratch", "linear-probe", "fine-tune", "multi-layer-probe", "fine-tune-top"]
    done = api.compare(
        photos,
        ways,
        ["test_resnet"],
        weights="random",
        resolution=32,
        changes=["phases.0.epochs=1"],
        out="board",
    )
    assert len(done.runs) == len(ways)
    dataset = load_dataset(photos, Path("home"))
    for one in done.runs:
        together = one.predictions("test")
        alone = opening.open_test(one, dataset).predictions("test")
        assert np.array_equal(together["logits"], alone["logits"]), one.name
        assert together["keys"].tolist() == alone["keys"].tolist()


def test_a_failed_row_is_reported_and_the_others_finish(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = regraft(
        "compare",
        photos,
        "--techniques",
        "linear-probe",
        "--backbones",
        "inception_v3,test_resnet",
        "--weights",
        "random",
        "--resolution",
        "32",
        "-q",
        "--json",
    )
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    assert [("error" in row) for row in rows] == [False, True]
    assert "cannot take images of 32 px" in rows[1]["error"]
    assert rows[1]["backbone"] == "inception_v3"


def test_seeds_give_mean_and_spread_on_one_split(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = regraft(
        "compare",
        photos,
        "--techniques",
        "fine-tune-top",
        "--backbones",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        "32",
        "--seeds",
        2,
        *EPOCHS,
        "-q",
        "--json",
    )
    board = json.loads(result.out)
    assert [row["seed"] for row in sorted(board["rows"], key=lambda row: row["seed"])] == [0, 1]
    assert board["seeds"][0]["seeds"] == 2
    assert len({row["split_digest"] for row in board["rows"]}) == 1


def test_fit_never_reads_a_test_image(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(photos, Path("home"))
    names, read = reading(dataset, monkeypatch)
    shut = {names[row] for row in dataset.split().test}
    done = api.fit(
        dataset,
        "fine-tune-top",
        "test_resnet",
        weights="random",
        resolution=32,
        out="out",
        changes=["phases.0.epochs=1"],
    )
    assert len(read) == len(dataset.split().train) + len(dataset.split().val)
    assert not set(read) & shut
    open_test(done, dataset)
    assert set(read) >= shut


def test_evaluate_shows_val_and_opens_test_on_purpose_recording_each_time(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    regraft("fit", photos, *QUICK, "--out", "out")
    shown = regraft("evaluate", "out")
    assert shown.code == 0, shown.err
    assert "the test part is shut" in shown.out
    assert not Path("out/test.json").exists()
    for count in (1, 2):
        opened = json.loads(regraft("evaluate", "out", "--split", "test", "--json", "-q").out)
        assert len(opened["opened"]) == count
    other = write_folder(Path("other"), toy(seed=3))
    refused = regraft("evaluate", "out", other, "--split", "test")
    assert (refused.code, "was fitted on" in refused.err) == (2, True)
    every = json.loads(regraft("evaluate", "out", other, "--split", "all", "--json", "-q").out)
    assert every["all"]["n"] == 120
    for words, says in (
        (("out", "--split", "all"), "no DATA was given"),
        (("out", "--split", "tset"), "is no part"),
        ((photos,), "is no run"),
    ):
        refused = regraft("evaluate", *words)
        assert (refused.code, says in refused.err) == (2, True), refused.err


def test_predictions_of_a_folder_equal_those_of_the_run(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    regraft(
        "fit",
        photos,
        "--technique",
        "fine-tune-top",
        *QUICK,
        *EPOCHS,
        "--set",
        "precision=float32",
        "--out",
        "out",
    )
    finished = load_run(Path("out"))
    kept = finished.predictions()
    classifier = api.load("out")
    chances = classifier.predict_proba([photos / key for key in kept["keys"]])
    logits = kept["logits"].astype(float)
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    assert np.abs(chances - wanted / wanted.sum(1, keepdims=True)).max() < 2e-3
    (photos / "class0" / "broken.png").write_bytes(b"")
    rows = json.loads(regraft("predict", "out", photos, "--top", 2, "--json").out)["predictions"]
    assert len(rows) == 121
    assert [row["path"] for row in rows if row["error"]] == [str(photos / "class0" / "broken.png")]
    by_path = {row["path"]: row for row in rows}
    assert all(
        by_path[str(photos / key)]["label"] == finished.classes[number]
        for key, number in zip(kept["keys"], logits.argmax(1), strict=True)
    )
    plain = regraft("predict", "out", photos / "class0" / "broken.png")
    assert "cannot be read: the file is empty" in plain.out
    missing = regraft("predict", "out", "nowhere.png")
    assert (missing.code, "There is nothing at nowhere.png" in missing.err) == (2, True)


def stop_after(watched: str, epochs: int):  # type: ignore[no-untyped-def]
    class Stop(story.Watcher):
        def progress(self, what: str, done: int, total: int) -> None:
            if what == watched and done >= epochs:
                raise KeyboardInterrupt

    return Stop()


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
    changes = (
        ["phases.0.batch_size=16"]
        if technique != "gradual-unfreezing"
        else [f"phases.{n}.batch_size=16" for n in (1, 2, 3)]
    )
    changes += ["head=dropout 0.3"] if technique == "fine-tune-top" else []
    options: dict[str, object] = {"weights": "random", "resolution": 32, "changes": changes}
    whole = api.fit(data, technique, "test_resnet", out="whole", **options)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        api.fit(
            data,
            technique,
            "test_resnet",
            out="parts",
            reporter=stop_after(phase, steps),
            **options,
        )  # type: ignore[arg-type]
    assert not Path("parts/scores.json").exists()
    with pytest.raises(api.UserError, match="is not finished. Go on with"):
        api.load("parts")
    resumed = api.fit(data, technique, "test_resnet", out="parts", resume=True, **options)  # type: ignore[arg-type]
    assert all(
        torch.equal(value, resumed.weights()[name]) for name, value in whole.weights().items()
    )
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in one.history()]
        for one in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]
    assert (whole.predictions()["logits"] == resumed.predictions()["logits"]).all()
    assert (
        api.fit(data, technique, "test_resnet", out="parts", resume=True, **options).scores
        == resumed.scores
    )  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(photos: Path) -> None:
    made = [
        api.fit(
            str(photos),
            "fine-tune",
            "test_resnet",
            weights="random",
            resolution=32,
            out=f"out{n}",
            seed=seed,
            changes=["phases.0.augment=light"],
        )
        for n, seed in enumerate((0, 0, 1))
    ]
    assert all(
        torch.equal(value, made[1].weights()[name]) for name, value in made[0].weights().items()
    )
    assert not torch.equal(made[0].weights()["head.0.weight"], made[2].weights()["head.0.weight"])


def test_folders_are_not_overwritten_unless_asked(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("do not lose me")
    cases = {
        (): "mine is not empty",
        ("--overwrite",): "holds something other than a run, so --overwrite does not touch it",
    }
    for words, says in cases.items():
        for verb in ("fit", "compare"):
            extra = (
                QUICK
                if verb == "fit"
                else ("--backbones", "test_resnet", "--weights", "random", "-q")
            )
            result = regraft(verb, photos, *extra, "--out", "mine", *words)
            assert (result.code, says in result.err) == (2, True), result.err
    assert Path("mine/thesis.txt").read_text() == "do not lose me"
    regraft("fit", photos, *QUICK, "--out", "out")
    assert regraft("fit", photos, *QUICK, "--out", "out").code == 2
    assert regraft("fit", photos, *QUICK, "--out", "out", "--overwrite").code == 0
    other = regraft("fit", photos, *QUICK, "--out", "out", "--resume", "--seed", 5)
    assert (other.code, "holds another plan" in other.err) == (2, True)
    fewer = regraft("fit", photos, *QUICK, "--out", "out", "--resume", "--train-images", 20)
    assert (fewer.code, "other images or another split" in fewer.err) == (2, True)


def test_bad_images_stop_the_run_before_training_or_are_skipped_when_asked(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    files = sorted(photos.rglob("*.png"))
    files[0].write_bytes(b"")
    files[70].write_bytes(files[70].read_bytes()[:80])
    words = (
        "compare",
        photos,
        "--techniques",
        "linear-probe",
        "--backbones",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        "32",
        "-q",
    )
    stopped = regraft(*words)
    assert stopped.code == 2
    assert "2 images cannot be decoded" in stopped.err
    assert all(str(files[row]) in stopped.err for row in (0, 70))
    went_on = regraft(*words, "--skip-bad", "--json")
    assert went_on.code == 0, went_on.err
    row = json.loads(went_on.out)["rows"][0]
    assert row["train"]["n"] + row["val"]["n"] + row["test"]["n"] == 118


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--technique", "fine-tun"),
            "No technique is called 'fine-tun'. Did you mean 'fine-tune'",
        ),
        (("--backbone", "resnet5"), "No backbone is called 'resnet5'. Did you mean"),
        (("--set", "phases.0.trian=all"), "phases.0.trian: unknown key, did you mean 'train'?"),
        (
            ("--set", "phases.0.train=layer9", "--set", "phases.0.optimizer=adam"),
            "test_resnet has no stage 'layer9', nearest: layer",
        ),
        (("--set", "until=layer9"), "until: test_resnet has no stage 'layer9'"),
        (("--resolution", "4"), "resolution: expected greater than or equal to 8, got 4"),
        (("--weights", "none.pth"), "is neither 'pretrained', 'random' nor a file"),
        (("--plan", "none.toml"), "There is no plan at none.toml"),
        (("--train-images", "1"), "--train-images 1 was given"),
        (("--out", "file.txt"), "file.txt is a file. Expected a folder"),
        (("--seed", "many"), "Invalid value for '--seed'"),
        (("--tecnique", "x"), "No such option"),
    ],
)
def test_every_mistake_with_a_flag_is_one_sentence_and_exit_2(
    regraft, photos: Path, words: tuple[str, ...], says: str
) -> None:  # type: ignore[no-untyped-def]
    Path("file.txt").write_text("")
    given = {
        "--backbone": "test_resnet",
        "--weights": "random",
        **dict(zip(words[::2], words[1::2], strict=True)),
    }
    flags = [part for pair in given.items() if pair[0] != "--set" for part in pair]
    flags += [
        part
        for name, value in zip(words[::2], words[1::2], strict=True)
        if name == "--set"
        for part in (name, value)
    ]
    result = regraft("fit", photos, *flags, "-q")
    assert result.code == 2, result.err
    assert says in " ".join(result.err.split()), result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not Path("runs").exists()


def test_no_network_for_weights_is_one_sentence(
    regraft, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    import timm

    original = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no route to host")
        return original(name, pretrained=False, **options)

    monkeypatch.setattr("timm.create_model", offline)
    result = regraft("fit", photos, "--backbone", "resnet18", "-q")
    assert (
        result.code,
        "The weights of resnet18 cannot be fetched" in result.err,
        "--weights random" in result.err,
    ) == (2, True, True)


def test_ctrl_c_stops_in_a_sentence_and_the_run_can_go_on(photos: Path, own_cache: Path) -> None:
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "regraft",
        "fit",
        str(photos),
        "--technique",
        "fine-tune",
        "--backbone",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        "64",
        "--set",
        "phases.0.epochs=400",
        "--out",
        "out",
    ]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    for _ in range(600):
        if Path("out/checkpoints/last.ckpt").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == 2, err
    assert (
        "Stopped. What was finished is kept; fit, compare and predict --out go on from there with the same command and --resume."
        in err
    )
    assert "Traceback" not in err
    assert out == ""
    assert not Path("out/scores.json").exists()


def test_lists_are_plain_and_json(regraft) -> None:  # type: ignore[no-untyped-def]
    assert "linear-probe" in regraft("techniques").out
    assert set(json.loads(regraft("techniques", "--json").out)["techniques"]) >= {
        "linear-probe",
        "from-scratch",
    }
    assert "digits" in regraft("sources").out
    assert "cifar10" in json.loads(regraft("sources", "--json").out)["names"]
    assert (
        "test_resnet"
        in json.loads(regraft("backbones", "list", "test_*", "--json").out)["backbones"]
    )
    assert "resnet50" in regraft("backbones").out.split()
    assert regraft("backbones", "list", "nothing*").code == 2
    shown = json.loads(
        regraft("backbones", "show", "test_resnet", "--resolution", 64, "--json").out
    )
    assert [place["name"] for place in shown["places"]] == [
        "conv1",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
    ]
    assert "layer3" in regraft("backbones", "show", "test_resnet").out


def test_the_cache_is_listed_and_cleared(regraft, photos: Path, own_cache: Path) -> None:  # type: ignore[no-untyped-def]
    regraft("fit", photos, *QUICK)
    entries = json.loads(regraft("cache", "list", "--json").out)
    assert len(entries["entries"]) == 4
    assert entries["folder"] == str(own_cache)
    assert "4 entries" in regraft("cache", "list").out
    assert json.loads(regraft("cache", "size", "--json").out)["bytes"] == sum(
        entry["bytes"] for entry in entries["entries"]
    )
    assert "MB allowed" in regraft("cache", "size").out
    assert "MB freed" in regraft("cache", "clear").out
    assert json.loads(regraft("cache", "list", "--json").out)["entries"] == []


def test_a_disk_without_room_computes_the_frozen_part_again_and_says_so(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = api.fit(
        str(photos),
        "fine-tune-top",
        "test_resnet",
        weights="random",
        resolution=32,
        out="kept",
        changes=["precision=float32"],
    )
    monkeypatch.setattr("regraft.cache.fits", lambda needed, folder: False)
    live = api.fit(
        str(photos),
        "fine-tune-top",
        "test_resnet",
        weights="random",
        resolution=32,
        out="live",
        home=Path("full"),
        changes=["precision=float32"],
    )
    assert "it is computed again every epoch" in (live.path / "log.txt").read_text()
    assert live.scores["val"]["loss"] == pytest.approx(kept.scores["val"]["loss"], abs=0.02)


def test_runs_on_different_splits_are_not_compared(photos: Path) -> None:
    from regraft.reporting.leaderboard import build_leaderboard_json

    made = [
        api.fit(
            str(photos),
            "linear-probe",
            "test_resnet",
            weights="random",
            resolution=32,
            out=f"out{n}",
            split_seed=n,
        )
        for n in (0, 1)
    ]
    with pytest.raises(api.UserError, match="was fitted on split .*, out1 on"):
        build_leaderboard_json(made)
    digests = [one.scores["split_digest"] for one in made]
    with pytest.raises(api.UserError, match=digests[0]):
        build_leaderboard_json(made)


def test_altered_weights_are_refused(photos: Path) -> None:
    done = api.fit(
        str(photos), "linear-probe", "test_resnet", weights="random", resolution=32, out="out"
    )
    tensors = done.weights()
    write_weights(
        done.path / "model.safetensors",
        {"backbone.other": tensors["head.0.weight"].clone(), **tensors},
    )
    with pytest.raises(
        api.UserError, match=r"was altered after it was finished \(model.safetensors\)"
    ):
        api.load(done.path).predict(np.zeros((1, 16, 16, 3), np.uint8))
    scores = {
        name: value for name, value in done.scores.items() if name != "files"
    }  # a run of before files had digests
    write_json(done.path / "scores.json", scores)
    with pytest.raises(api.UserError, match="do not belong to its plan"):
        api.load("out").predict([])


def test_fit_skips_bad_images_when_asked_and_a_repaired_set_can_run_at_once(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    broken = sorted(photos.rglob("*.png"))[0::40]
    whole = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"")
    stopped = regraft("fit", photos, *QUICK, "--out", "out")
    assert (stopped.code, "cannot be decoded" in stopped.err, Path("out").exists()) == (
        2,
        True,
        False,
    )
    went_on = regraft("fit", photos, *QUICK, "--out", "skipped", "--skip-bad", "--json")
    assert went_on.code == 0, went_on.err
    opened = regraft("evaluate", "skipped", "--split", "test", "--json", "-q")
    assert opened.code == 0, opened.err
    for path, content in zip(broken, whole, strict=True):
        path.write_bytes(content)
    assert regraft("fit", photos, *QUICK, "--out", "out").code == 0


def test_flags_given_beside_a_plan_file_count(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("--backbone", "test_resnet", "--weights", "random", "--resolution", "32")
    regraft("plan", photos, *words, "--save", "plan.toml")
    told = json.loads(
        regraft(
            "plan",
            photos,
            "--plan",
            "plan.toml",
            "--seed",
            3,
            "--resolution",
            40,
            "--backbone",
            "test_efficientnet",
            "--json",
        ).out
    )
    assert (
        told["plan"]["seed"],
        told["plan"]["resolution"],
        told["plan"]["backbone"],
        told["plan"]["weights"],
    ) == (3, 40, "test_efficientnet", "random")
    broken = Path("plan.toml").read_text().replace("resolution = 32", "resolution = 2")
    Path("plan.toml").write_text(broken)
    assert regraft("plan", photos, "--plan", "plan.toml").code == 2
    assert regraft("plan", photos, "--plan", "plan.toml", "--set", "resolution=32").code == 0


def test_an_impossible_device_is_refused_in_a_sentence(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    cases = {"tpu": "--device tpu was given, which is no device"}
    if not torch.cuda.is_available():
        cases["cuda"] = "--device cuda was given, but PyTorch finds no CUDA GPU"
    for device, says in cases.items():
        result = regraft("fit", photos, *QUICK, "--device", device)
        assert (result.code, says in result.err) == (2, True), result.err


def test_a_comparison_in_which_nothing_finishes_is_an_error(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    result = regraft(
        "compare",
        photos,
        "--techniques",
        "linear-probe",
        "--backbones",
        "inception_v3",
        "--weights",
        "random",
        "--resolution",
        "32",
        "-q",
    )
    assert result.code == 2
    assert "cannot take images of 32 px" in result.err


def test_what_is_kept_already_is_used_on_a_full_disk(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = api.fit(
        str(photos), "fine-tune-top", "test_resnet", weights="random", resolution=32, out="first"
    )
    monkeypatch.setattr("regraft.cache.store._RESERVE", 10**15)
    second = api.fit(
        str(photos), "fine-tune-top", "test_resnet", weights="random", resolution=32, out="second"
    )
    assert second.scores["cache"]["hit"]
    assert "computed again" not in (second.path / "log.txt").read_text()
    assert (first.predictions()["logits"] == second.predictions()["logits"]).all()


def test_a_linear_probe_without_room_for_its_features_is_still_solved(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = api.fit(
        str(photos),
        "linear-probe",
        "test_resnet",
        weights="random",
        resolution=32,
        out="kept",
        changes=["precision=float32"],
    )
    monkeypatch.setattr("regraft.cache.fits", lambda needed, folder: False)
    monkeypatch.setattr("regraft.workflow.story._SOLVED_AT_ONCE", 7)
    live = api.fit(
        str(photos),
        "linear-probe",
        "test_resnet",
        weights="random",
        resolution=32,
        out="live",
        home=Path("full"),
        changes=["precision=float32"],
    )
    assert live.scores["val"]["loss"] == pytest.approx(kept.scores["val"]["loss"], rel=0.05)


def test_photographs_of_many_sizes_are_resized_without_a_warning(regraft, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "sizes" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shape = (int(rng.integers(20, 300)), int(rng.integers(20, 300)), 3)
        Image.fromarray(np.full(shape, 40 + 150 * (number % 2), np.uint8)).save(
            folder / f"{number}.jpg"
        )
    result = regraft(
        "compare",
        tmp_path / "sizes",
        "--techniques",
        "linear-probe",
        "--backbones",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        "32",
        "-q",
        "--json",
    )
    assert result.code == 0, result.err
    assert result.err == ""
    assert json.loads(result.out)["rows"][0]["test"]["accuracy"] == 1.0


def test_statistics_move_in_a_real_run_only_where_the_plan_lets_them(photos: Path) -> None:
    from regraft.models.backbone import load_backbone

    before = load_backbone("test_resnet", "random", 32).model.state_dict()
    for policy in ("keep", "adapt"):
        changes = ["phases.0.epochs=1", f"phases.0.batch_norm={policy}"]
        done = api.fit(
            str(photos),
            "fine-tune",
            "test_resnet",
            weights="random",
            resolution=32,
            out=policy,
            changes=changes,
        )
        moved = [
            not torch.equal(value, before[name.removeprefix("backbone.")])
            for name, value in done.weights().items()
            if "running_mean" in name
        ]
        assert len(moved) > 5
        assert set(moved) == {policy == "adapt"}


def test_a_network_that_diverged_is_no_result(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    words = (
        "--set",
        "phases.0.optimizer=sgd",
        "--set",
        "phases.0.lr=100",
        "--set",
        "phases.0.epochs=12",
        "--set",
        "phases.0.label_smoothing=0",
    )
    done = regraft("fit", photos, "--technique", "fine-tune", *QUICK, *words, "--out", "wild")
    assert done.code == 2
    assert "wild diverged: the trained network gives numbers that are not finite." in done.err
    assert not Path("wild/scores.json").exists()


def test_a_batch_of_one_is_refused_where_batch_normalisation_needs_two(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    one = ("--set", "phases.0.batch_size=1", "--set", "phases.0.epochs=1")
    for technique in ("feature-extraction", "from-scratch"):
        done = regraft("fit", photos, "--technique", technique, *QUICK, *one, "--out", technique)
        assert (done.code, "BatchNorm needs at least two images" in done.err) == (2, True), done.err
    assert (
        regraft("fit", photos, "--technique", "fine-tune", *QUICK, *one, "--out", "kept").code == 0
    )


def test_what_a_solved_head_has_no_use_for_is_said(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    done = regraft(
        "fit",
        photos,
        "--technique",
        "linear-probe",
        *QUICK,
        "--set",
        "phases.0.lr=3e-4",
        "--set",
        "phases.0.epochs=50",
        "--out",
        "solved",
    )
    assert done.code == 0
    assert (
        "A head that is solved has no use for lr = 0.0003, epochs = 50."
        in Path("solved/log.txt").read_text()
    )
    quiet = regraft("fit", photos, "--technique", "linear-probe", *QUICK, "--out", "plain")
    assert quiet.code == 0
    assert "no use" not in Path("plain/log.txt").read_text()


def test_seeds_that_would_all_be_the_same_are_refused(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    done = regraft(
        "compare",
        photos,
        "--techniques",
        "linear-probe",
        "--backbones",
        "test_resnet",
        "--seeds",
        2,
        "--set",
        "seed=3",
        "-q",
    )
    assert (done.code, "would make 2 equal rows" in done.err) == (2, True)


def test_what_was_kept_is_not_read_where_nothing_is_to_be_kept(photos: Path) -> None:
    def logits(name: str, keep: str) -> np.ndarray:
        done = api.fit(
            photos,
            "linear-probe",
            "test_resnet",
            weights="random",
            resolution=32,
            out=name,
            keep=keep,
            changes=["precision=float32"],
        )
        return done.predictions()["logits"]

    cold = logits("cold", "never")
    assert not np.array_equal(logits("kept", "always"), cold)  # kept in half precision
    assert np.array_equal(logits("warm", "never"), cold)


def test_a_run_scored_on_other_images_says_what_it_said_of_its_own(photos: Path) -> None:
    done = api.fit(
        photos,
        "fine-tune",
        "test_resnet",
        weights="random",
        resolution=32,
        out="out",
        changes=["phases.0.epochs=1"],
    )
    dataset = load_dataset(photos, Path("home"))
    said, _ = opening.score(done, dataset)
    mine = done.predictions()
    rows = [dataset.keys.tolist().index(key) for key in mine["keys"].tolist()]
    assert len(rows) >= 9
    assert np.allclose(said[rows], mine["logits"], atol=1e-5)


@pytest.mark.parametrize("verb", ["fit", "compare", "probe"])
def test_overwrite_touches_no_folder_that_holds_what_is_not_ours(
    regraft, photos: Path, verb: str
) -> None:  # type: ignore[no-untyped-def]
    words = {
        "fit": QUICK,
        "compare": ("--backbones", *QUICK[1:], "--techniques", "linear-probe"),
        "probe": ("--backbones", *QUICK[1:4], "--resolutions", *QUICK[5:]),
    }
    out = ("--out", "mine", "--overwrite")
    Path("mine").mkdir()
    assert regraft("plan", photos, *QUICK[:-1], "--save", "mine/plan.toml").code == 0
    (Path("mine") / "notes").mkdir()
    (Path("mine") / "notes" / "one.txt").write_text("mine")
    refused = regraft(verb, photos, *words[verb], *out)
    assert (refused.code, "holds something other than a run (notes)" in refused.err) == (2, True), (
        refused.err
    )
    (Path("mine") / "state.json").write_text("{}")  # a run with somebody's folder in it
    assert regraft(verb, photos, *words[verb], *out).code == 2
    assert (Path("mine") / "notes" / "one.txt").read_text() == "mine"
    shutil.rmtree("mine")
    assert regraft(verb, photos, *words[verb], *out).code == 0
    assert regraft(verb, photos, *words[verb], *out).code == 0


def test_a_home_that_nobody_has_is_a_name_like_any_other(regraft) -> None:  # type: ignore[no-untyped-def]
    done = regraft("fit", "~nobody-of-that-name", *QUICK)
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert "~nobody-of-that-name" in done.err


def test_other_images_are_not_named_for_the_part_that_is_kept(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    assert regraft("fit", photos, *QUICK, "--technique", "linear-probe", "--out", "mine").code == 0
    done = regraft("evaluate", "mine", photos, "-q")
    assert (done.code, "Expected --split all to score it on those images." in done.err) == (2, True)

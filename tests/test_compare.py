"""`regraft compare` end to end, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import TINY, TINY_FLAGS, Regraft, to_folder
from regraft.commands.compare import compare
from regraft.commands.evaluate import open_test
from regraft.commands.options import Ways
from regraft.data.load import load_dataset
from regraft.options import PlanOverrides

QUICK = ("--backbones", TINY, *TINY_FLAGS, "-q")
EPOCHS = ("--set", "phases.0.epochs=2", "--set", "phases.0.batch_size=16")


def test_compare_ranks_on_val_opens_test_once_and_shares_the_frozen_part(
    regraft: Regraft, photos: Path, own_cache: Path
) -> None:
    words = ("--techniques", "linear-probe,feature-extraction,fine-tune", *QUICK)
    result = regraft("compare", photos, *words, *EPOCHS, "--out", "board", "--json")
    assert result.code == 0, result.err
    board = json.loads(result.out)
    accuracies = [row["val"]["accuracy"] for row in board["rows"]]
    assert accuracies == sorted(accuracies, reverse=True)
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
    dimensions = []
    for path in own_cache.glob("*/meta.json"):
        dimensions.append(len(json.loads(path.read_text())["arrays"][0]["shape"]))
    # pixels and features of train, val and test: each once, for three techniques
    assert (dimensions.count(4), dimensions.count(2)) == (3, 3)
    shown = regraft("compare", photos, *words, *EPOCHS)
    assert "→" in shown.out
    assert "≈ not significantly different from it on test (McNemar, 5 %)" in shown.out
    assert Path("compare/photos/leaderboard.json").is_file()


def test_rows_that_are_given_one_network_in_turn_score_as_each_would_alone(photos: Path) -> None:
    techniques = ("from-scratch", "linear-probe", "fine-tune", "multi-layer-probe", "fine-tune-top")
    overrides = PlanOverrides(weights="random", resolution=32, overrides=["phases.0.epochs=1"])
    done = compare(photos, Ways(techniques, (TINY,)), overrides, to_folder("board"))
    assert len(done.runs) == len(techniques)
    dataset = load_dataset(photos, Path("home"))
    for run in done.runs:
        together = run.predictions("test")
        alone = open_test(run, dataset).predictions("test")
        assert np.array_equal(together["logits"], alone["logits"]), run.name
        assert together["keys"].tolist() == alone["keys"].tolist()


def test_a_failed_row_is_reported_and_the_others_finish(regraft: Regraft, photos: Path) -> None:
    words = ("--techniques", "linear-probe", "--backbones", f"inception_v3,{TINY}")
    result = regraft("compare", photos, *words, *TINY_FLAGS, "-q", "--json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    assert [("error" in row) for row in rows] == [False, True]
    assert "cannot take images of 32 px" in rows[1]["error"]
    assert rows[1]["backbone"] == "inception_v3"


def test_a_comparison_in_which_nothing_finishes_is_an_error(regraft: Regraft, photos: Path) -> None:
    words = ("--techniques", "linear-probe", "--backbones", "inception_v3")
    result = regraft("compare", photos, *words, *TINY_FLAGS, "-q")
    assert result.code == 2
    assert "cannot take images of 32 px" in result.err


def test_seeds_give_mean_and_spread_on_one_split(regraft: Regraft, photos: Path) -> None:
    words = ("--techniques", "fine-tune-top", *QUICK, "--seeds", 2, *EPOCHS, "--json")
    board = json.loads(regraft("compare", photos, *words).out)
    assert sorted(row["seed"] for row in board["rows"]) == [0, 1]
    assert board["seeds"][0]["seeds"] == 2
    assert len({row["split_digest"] for row in board["rows"]}) == 1


def test_seeds_that_would_all_be_the_same_are_refused(regraft: Regraft, photos: Path) -> None:
    words = ("--techniques", "linear-probe", "--backbones", TINY, "--seeds", 2)
    done = regraft("compare", photos, *words, "--set", "seed=3", "-q")
    assert (done.code, "would make 2 equal rows" in done.err) == (2, True)


def test_bad_images_stop_the_run_before_training_or_are_skipped_when_asked(
    regraft: Regraft, photos: Path
) -> None:
    files = sorted(photos.rglob("*.png"))
    files[0].write_bytes(b"")
    files[70].write_bytes(files[70].read_bytes()[:80])
    words = ("compare", photos, "--techniques", "linear-probe", *QUICK)
    stopped = regraft(*words)
    assert stopped.code == 2
    assert "2 images cannot be decoded" in stopped.err
    assert all(str(files[row]) in stopped.err for row in (0, 70))
    went_on = regraft(*words, "--skip-bad", "--json")
    assert went_on.code == 0, went_on.err
    row = json.loads(went_on.out)["rows"][0]
    assert row["train"]["n"] + row["val"]["n"] + row["test"]["n"] == 118


def test_photographs_of_many_sizes_are_resized_without_a_warning(
    regraft: Regraft, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / "sizes" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shape = (int(rng.integers(20, 300)), int(rng.integers(20, 300)), 3)
        pixels = np.full(shape, 40 + 150 * (number % 2), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    words = ("--techniques", "linear-probe", *QUICK, "--json")
    result = regraft("compare", tmp_path / "sizes", *words)
    assert result.code == 0, result.err
    assert result.err == ""
    assert json.loads(result.out)["rows"][0]["test"]["accuracy"] == 1.0


@pytest.mark.parametrize("techniques", [None, ()])
def test_without_techniques_the_usual_ones_are_compared_or_none_beside_plans(
    techniques: tuple[str, ...] | None, photos: Path
) -> None:
    from regraft.commands.plan import plan
    from regraft.plans.techniques import DEFAULT_TECHNIQUES

    overrides = PlanOverrides(backbone=TINY, weights="random", resolution=32)
    probe = plan(photos, "linear-probe", overrides).plan
    own = Ways(techniques, (TINY,), plans={"own": probe})
    done = compare(photos, own, options=to_folder("own"))
    assert [run.name for run in done.runs] == ["own"]
    assert Ways().techniques is None
    assert len(DEFAULT_TECHNIQUES) == 6

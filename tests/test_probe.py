"""The probe as a verb: what it writes, what it promises, what a budget buys, what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import toy, write_folder
from regraft.commands.compare import compare
from regraft.commands.fit import fit
from regraft.commands.options import ProbeOptions, Ways
from regraft.commands.probe import Probe, probe
from regraft.data.dataset import Dataset, make_dataset
from regraft.data.images import ArrayImages, Rows
from regraft.errors import UserError
from regraft.options import CacheOptions, DataOptions, Options, PlanOverrides, RunDir, Runtime
from regraft.plans.toml import read_plan
from regraft.probing.instruments import Instruments
from regraft.runs.folder import list_runs
from regraft.system.progress import ProgressReporter

RANDOM = PlanOverrides(weights="random")
TINY = ("--backbones", "test_resnet", "--weights", "random", "-q")


class Heard(ProgressReporter):
    """Hears what is logged, and which pieces of work come to their end."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.done: list[str] = []

    def log(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, what: str, done: int, total: int) -> None:
        if done == total:
            self.done.append(what)


def resnet(*resolutions: int, **more: Any) -> ProbeOptions:
    return ProbeOptions(["test_resnet"], resolutions, **more)


def to(
    out: str | Path, overwrite: bool = False, reporter: ProgressReporter | None = None
) -> Options:
    runtime = Runtime() if reporter is None else Runtime(reporter=reporter)
    return Options(runtime=runtime, run_dir=RunDir(out, overwrite=overwrite))


@pytest.fixture(scope="module")
def shared_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("shared") / "photos", toy())


@pytest.fixture(scope="module")
def finished(shared_photos: Path) -> Probe:
    """Return a finished probe at two resolutions."""
    cache = CacheOptions(shared_photos.with_name("cache"))
    options = Options(cache=cache, run_dir=RunDir(shared_photos.with_name("p")))
    return probe(shared_photos, resnet(16, 32, runs=[]), RANDOM, options)


def test_a_probe_writes_tables_pictures_and_plans(finished: Probe) -> None:
    assert {path.name for path in finished.path.iterdir()} == {
        "probe.json",
        "places.csv",
        "accuracy-by-depth.png",
        "accuracy-against-cost.png",
        "learning-curve.png",
        "plan-fastest.toml",
        "plan-balanced.toml",
        "plan-best.toml",
    }
    for path in finished.path.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.size[0] > 500
    for budget, plan in finished.plans.items():
        assert read_plan(finished.path / f"plan-{budget}.toml") == plan
    rows = finished.result.rows
    assert {row.resolution for row in rows} == {16, 32}
    single = [row.name for row in rows if row.kind == "single"]
    assert len(single) == len(set(single)) == 2 * 5
    table = (finished.path / "places.csv").read_text().splitlines()
    assert len(table) == 1 + len(rows)


def test_the_result_is_written_with_the_keys_that_the_docs_name(finished: Probe) -> None:
    written = json.loads((finished.path / "probe.json").read_text())
    printed = finished.to_json()
    assert printed.pop("path") == str(finished.path)
    assert json.loads(json.dumps(printed)) == written
    assert " ".join(written) == (
        "data classes images asked split_digest places front recommendations learning_curve "
        "hit_rate runs neighbours skipped dropped verdict seconds"
    )
    assert set(written["asked"]) == {"train_images", "val_images", "split_seed"}
    assert [choice["plan"] for choice in written["recommendations"]] == [
        "plan-fastest.toml",
        "plan-balanced.toml",
        "plan-best.toml",
    ]
    assert written["verdict"] == finished.result.verdict
    assert written["learning_curve"]["of"] == finished.result.best.name


def test_fit_reaches_what_the_recommended_plans_promise(
    finished: Probe, shared_photos: Path
) -> None:
    cache = CacheOptions(shared_photos.with_name("cache"))
    promised = 0
    for choice in finished.result.recommendations:
        options = Options(cache=cache, run_dir=RunDir(f"fitted-{choice.budget}"))
        plan = PlanOverrides(plan=finished.path / choice.plan_file)
        scores = fit(shared_photos, overrides=plan, options=options).scores
        assert scores["val"]["accuracy"] == choice.row.accuracy
        assert tuple(scores["val"]["ci95"]) == choice.row.ci95
        assert scores["split_digest"] == finished.result.split_digest
        assert scores["technique"] == f"probe-{choice.budget}"
        promised += 1
    assert promised == 3
    options = Options(cache=cache, run_dir=RunDir("c"))
    board = compare(shared_photos, Ways(()), options=options, from_probe=finished.path).to_json()
    names = [row["name"].removeprefix("probe-").split("-") for row in board["rows"]]
    assert {budget for budgets in names for budget in budgets} == {"fastest", "balanced", "best"}
    reached = max(row["val"]["accuracy"] for row in board["rows"])
    assert reached == finished.result.best.accuracy


def test_the_probe_is_printed(regraft, photos: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("probe", photos, *TINY, "--resolutions", "16,32")
    printed = json.loads(regraft(*words, "--out", "p", "--json").out)
    assert printed["path"] == "p"
    shown = regraft(*words)
    assert shown.code == 0, shown.err
    assert printed["verdict"] in shown.out
    assert Path("probe/photos/probe.json").is_file()


class RecordedImages(ArrayImages):
    """Images in memory that note which of them are read."""

    read_hashes: list[str]

    def read(self, rows: Rows) -> list[np.ndarray]:
        self.read_hashes.extend(self.hashes()[rows].tolist())
        return super().read(rows)

    def take(self, rows: Rows) -> RecordedImages:
        taken = RecordedImages(self.array[rows])
        taken.read_hashes = self.read_hashes
        return taken


def recorded() -> tuple[Dataset, list[str]]:
    """Return images, and the hashes of those that were read, as they are read."""
    plain = toy()
    images = RecordedImages(np.stack(plain.images.read(np.arange(len(plain)))))
    images.read_hashes = []
    return make_dataset("toy", plain.labels, list(plain.classes), images), images.read_hashes


def test_probe_runs_the_network_once_a_candidate_and_never_reads_a_test_image() -> None:
    dataset, read = recorded()
    heard = Heard()
    first = probe(dataset, resnet(16, 32), RANDOM, to("p", reporter=heard))
    assert read
    assert not set(read) & set(dataset.hashes[dataset.split().test].tolist())
    extracted = [what for what in heard.done if what.startswith("extract")]
    assert extracted == ["extract train", "extract val"] * 2  # two resolutions
    again = probe(dataset, resnet(16, 32), RANDOM, to("q", reporter=heard))
    assert again.result.rows == first.result.rows
    overrides = PlanOverrides(backbone="test_resnet", weights="random", resolution=32)
    fit(dataset, "linear-probe", overrides, to("r", reporter=heard))
    extracted = [what for what in heard.done if what.startswith("extract")]
    assert len(extracted) == 4  # what the probe cached is what a linear probe takes


def test_fewer_neighbours_than_usual_are_reported(photos: Path) -> None:
    heard = Heard()
    options = replace(to("p", reporter=heard), data=DataOptions(train_images=30))
    assert probe(photos, resnet(16), RANDOM, options).result.neighbours == 10
    text = "The smallest class has 10 training images, so 10 neighbours vote and not 20."
    assert text in heard.texts


@pytest.mark.slow
def test_finished_runs_tell_how_well_the_scores_rank_them(photos: Path) -> None:
    other = write_folder(Path("other"), toy(90, seed=5))
    fine_tuned = PlanOverrides(
        backbone="test_resnet", weights="random", overrides=["phases.0.epochs=1"]
    )
    sides = (16, 24, 32)
    for side in sides:
        fit(photos, "fine-tune", replace(fine_tuned, resolution=side), to(f"runs/at-{side}"))
    fit(other, "fine-tune", fine_tuned, to("runs/other"))

    def probed() -> dict[str, Any]:
        return probe(photos, resnet(*sides), RANDOM, to("p", overwrite=True)).to_json()

    damaged = list_runs(Path("runs"))[0] / "predictions.npz"
    damaged.rename("kept.npz")
    assert probed()["runs"] == 2  # neither one on other images, nor one without its predictions
    Path("kept.npz").rename(damaged)
    # twelve images give no order to rely on
    for side, accuracy in zip(sides, (0.5, 0.6, 0.7), strict=True):
        path = Path(f"runs/at-{side}/scores.json")
        scores = json.loads(path.read_text())
        scores["val"]["accuracy"] = accuracy
        path.write_text(json.dumps(scores))
    written = probed()
    assert written["runs"] == 3
    assert {rank["technique"] for rank in written["hit_rate"]} == {"fine-tune"}
    assert all(-1 <= rank["kendall"] <= 1 and rank["runs"] == 3 for rank in written["hit_rate"])
    for plan in Path("runs").glob("at-*/plan.toml"):  # the same runs as if from other weights
        plan.write_text(plan.read_text().replace('weights = "random"', 'weights = "mine.pth"'))
    assert probed()["runs"] == 0


def test_a_broken_run_that_nobody_named_is_left_out_and_a_named_one_is_an_error() -> None:
    Path("runs/broken").mkdir(parents=True)
    Path("runs/broken/plan.toml").write_text("backbone = 3")
    Path("runs/broken/scores.json").write_text("{")
    assert probe(toy(), resnet(16), RANDOM).result.runs == 0
    with pytest.raises(UserError, match="The run in"):
        probe(toy(), resnet(16, runs=[Path("runs")]), RANDOM, to("p"))


class WorkClock(Heard):
    """A clock that moves on with what it hears: a tenth of a second for each image judged.

    Args:
        after: Seconds that pass once a candidate was judged on all of `last` images.
        last: Number of training images.
    """

    def __init__(self, after: float = 0.0, last: int = 0) -> None:
        super().__init__()
        self.now = 0.0
        self.after = after
        self.last = last
        self.judged: list[tuple[int, int]] = []

    def __call__(self) -> float:
        return self.now

    def log(self, text: str) -> None:
        super().log(text)
        match = re.fullmatch(r"test_resnet at (\d+) px, ([\d,]+) training images", text)
        if match:
            resolution, images = int(match[1]), int(match[2].replace(",", ""))
            self.judged.append((resolution, images))
            self.now += images / 10
            self.now += self.after if images == self.last else 0

    def instruments(self) -> Instruments:
        """Return instruments that show this clock; a larger image costs a little more."""
        return Instruments(clock=self, time_forward=lambda cut: cut.preprocess.resolution * 1e-6)


MANY = toy(400)


def test_a_budget_sees_few_images_first_and_says_what_it_dropped() -> None:
    clock = WorkClock()
    asked = resnet(16, 24, 32, 40, budget="220s")
    done = probe(MANY, asked, RANDOM, to("p", reporter=clock), clock.instruments())
    written = done.to_json()
    every = len(MANY.split().train)
    first, *rounds = clock.judged
    assert first == (16, 100)  # what judging costs is measured first
    counts = [images for _, images in rounds]
    few, more = counts[0], counts[4]
    assert counts == [few] * 4 + [more] * 2 + [every]
    assert 100 < few < more < every
    assert len(written["dropped"]) == 3
    assert all("its best layer reached" in dropped["why"] for dropped in written["dropped"])
    assert {row["images"] for row in written["places"]} == {few, more, every}
    last = [row for row in written["places"] if row["images"] == every]
    recommended = {choice["resolution"] for choice in written["recommendations"]}
    assert recommended == {row["resolution"] for row in last}
    assert {row["kind"] for row in last} > {"single"}
    assert written["learning_curve"]["forecast"]
    assert written["seconds"] == round(clock.now, 1) <= 0.7 * 220


def test_a_budget_that_is_used_up_leaves_out_what_is_not_needed_and_says_so() -> None:
    clock = WorkClock(after=1000, last=len(MANY.split().train))
    asked = resnet(16, 24, budget="220s")
    done = probe(MANY, asked, RANDOM, to("p", reporter=clock), clock.instruments())
    assert {row.kind for row in done.result.rows} == {"single"}
    assert done.result.learning_curve.forecast is None
    used_up = "The budget is used up: layers are not concatenated for"
    assert any(used_up in text for text in clock.texts)
    assert "The budget is used up: there is no learning curve." in clock.texts
    assert set(done.plans) == {"fastest", "balanced", "best"}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (resnet(16, budget="0.01s"), "The smallest useful run is test_resnet at 16 px with"),
        (resnet(16, budget="soon"), "--budget 'soon' is no time"),
        (resnet(4), "--resolutions 4 was given. Expected sides in pixels from 8 to 4096"),
        (ProbeOptions(["resnet5"], [16]), "No backbone is called 'resnet5'"),
        (resnet(16, runs=[Path("nowhere")]), "--runs nowhere is no folder"),
    ],
)
def test_what_cannot_be_probed_is_an_error_and_nothing_is_written(
    asked: ProbeOptions, text: str
) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        probe(toy(), asked, RANDOM, to("p"))
    assert not Path("p").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--budget", "0.01s"), "The smallest useful run is test_resnet at 16 px with"),
        (("--budget", "soon"), "--budget 'soon' is no time"),
        (("--resolutions", "big"), "--resolutions big was given. Expected whole numbers"),
        (
            ("--resolutions", "4"),
            "--resolutions 4 was given. Expected sides in pixels from 8 to 4096",
        ),
        (("--backbones", ""), "--backbones '' names nothing. Expected values separated by commas"),
        (("--resolutions", " , "), "names nothing"),
        (("--backbones", "resnet5"), "No backbone is called 'resnet5'"),
        (("--runs", "nowhere"), "--runs nowhere is no folder"),
        (
            ("--out", "taken"),
            "taken is not empty. Expected a new or empty folder. Pass --overwrite to replace it",
        ),
        (("--out", "file.txt"), "file.txt is a file. Expected a folder for the probe"),
        (("--train-images", "1"), "--train-images 1 was given"),
    ],
)
def test_every_mistake_is_one_sentence_and_exit_2(  # type: ignore[no-untyped-def]
    regraft, photos: Path, words: tuple[str, str], says: str
) -> None:
    Path("file.txt").write_text("")
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("precious")
    usual = {
        "--backbones": "test_resnet",
        "--weights": "random",
        "--resolutions": "16",
        "--out": "p",
    }
    flags = [word for pair in (usual | dict([words])).items() for word in pair]
    result = regraft("probe", photos, *flags, "-q")
    assert result.code == 2
    assert says in result.err
    assert "Traceback" not in result.err
    assert Path("taken/mine.txt").read_text() == "precious"
    assert not Path("p").exists()


def test_what_cannot_be_traced_is_skipped_with_the_reason_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from timm.models.byobnet import ByobNet

    def forward(self: ByobNet, x: Any) -> Any:
        return self.forward_head(self.forward_features(x if x.sum() > 0 else -x))

    monkeypatch.setattr(ByobNet, "forward", forward)
    names = ["test_byobnet", "test_resnet"]
    done = probe(toy(), ProbeOptions(names, [32]), RANDOM, to("p"))
    assert {row.backbone for row in done.result.rows} == {"test_resnet"}
    assert [skipped.name for skipped in done.result.skipped] == ["test_byobnet 32 px"]
    assert "ByobNet cannot be traced by torch.fx" in done.result.skipped[0].error
    usual = probe(toy(), ProbeOptions(names), RANDOM, to("u"))
    assert [skipped["name"] for skipped in usual.to_json()["skipped"]] == ["test_byobnet"]
    text = "Nothing can be probed. test_byobnet 32 px: ByobNet cannot be traced"
    with pytest.raises(UserError, match=text):
        probe(toy(), ProbeOptions(names[:1], [32]), RANDOM, to("q"))
    assert not Path("q").exists()


def test_a_probe_that_is_refused_leaves_the_old_one() -> None:
    probe(toy(), resnet(16), RANDOM, to("p"))
    before = Path("p/probe.json").read_text()
    with pytest.raises(UserError, match="is too short"):
        probe(toy(), resnet(16, budget="0.01s"), RANDOM, to("p", overwrite=True))
    assert Path("p/probe.json").read_text() == before


def test_a_class_layer_that_cannot_be_had_costs_leep_only() -> None:
    def offline(name: str, weights: str) -> None:
        raise OSError("no route to host")

    heard = Heard()
    options = to("p", reporter=heard)
    done = probe(toy(), resnet(16, 24), RANDOM, options, Instruments(find_head=offline))
    assert [text for text in heard.texts if "LEEP" in text] == [
        "Doing without LEEP: the class layer of test_resnet cannot be had (OSError)."
    ]
    assert all(row.leep is None for row in done.result.rows)


def test_a_comparison_from_a_folder_without_a_probe_is_refused() -> None:
    text = "There is no probe in nowhere. Expected a folder that `regraft probe` wrote."
    with pytest.raises(UserError, match=text):
        compare(toy(), from_probe="nowhere")


def test_three_images_a_class_are_enough() -> None:
    done = probe(toy(6, classes=2), resnet(32), RANDOM)
    assert {row.kind for row in done.result.rows} >= {"single"}
    assert len(done.result.recommendations) == 3


@pytest.mark.slow
def test_networks_of_every_kind_can_be_probed() -> None:
    names = ["test_vit", "test_efficientnet", "test_convnext"]
    options = replace(to("p"), data=DataOptions(train_images=40))
    result = probe(toy(), ProbeOptions(names, [32]), RANDOM, options).result
    probed = {row.backbone for row in result.rows}
    skipped = {skipped.name.split()[0] for skipped in result.skipped}
    assert probed | skipped == set(names)
    assert len(probed) >= 2

"""The report: its evidence, its words, and that it opens in a browser and loads nothing else."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import TINY, toy, write_folder
from fitting import Tiny, fit_tiny, options
from regraft.commands.compare import compare
from regraft.commands.evaluate import evaluate
from regraft.commands.fit import FitData, fit_plan
from regraft.commands.options import Ways
from regraft.commands.predict import predict
from regraft.commands.report import find_runs, report
from regraft.commands.resolve import resolve_plan, split_dataset
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.evaluation.paired import PairedDifference as Difference
from regraft.inference.cam import activation_maps
from regraft.inference.classifier import Classifier
from regraft.models.backbone import Backbone
from regraft.models.pool import BackbonePool
from regraft.options import DataOptions, PlanOverrides
from regraft.reporting.evidence import PairedDifference, RunEvidence, build_evidence
from regraft.reporting.html import Gallery, PageExtras, Thumbnail, render_html
from regraft.reporting.leaderboard import (
    LeaderboardRow,
    build_leaderboard,
    flat_row,
    to_failed_rows,
)
from regraft.reporting.plots import RunSeries, draw_cost, get_pyplot
from regraft.runs import layout
from regraft.runs.folder import Run, load_run
from regraft.runs.provenance import describe_origin
from regraft.system.progress import ProgressReporter


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two comparisons, of one row and of two rows, on images in folders."""
    root = tmp_path_factory.mktemp("compared")
    photos = write_folder(root / "photos", toy(180))
    for out, techniques, change in (
        ("compare", ("linear-probe",), "phases.0.l2=[0.1]"),
        ("two/tuned", ("fine-tune", "feature-extraction"), "phases.0.epochs=2"),
    ):
        plan = PlanOverrides(weights="random", resolution=32, overrides=[change])
        ways = Ways(techniques, (TINY,))
        compare(photos, ways, plan, options(root / "cache", root / out))
    return root


def copied(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "copy"))


def changed_scores(run: Path, **values: Any) -> None:
    """Write other values into what a run says of itself."""
    path = run / layout.SCORES
    scores = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in scores.items() if value != ...}))


def test_a_report_of_a_comparison_is_one_page_that_needs_nothing_else(
    compared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    paths = [compared / "compare", compared / "two" / "tuned"]
    assert report(paths, options=options(compared / "cache", out)).path == out
    text = out.read_text()
    assert "has the best validation accuracy" in text
    for heading in (
        "Leaderboard",
        "Cost",
        "Learning curves",
        "Errors of",
        "Worst mistakes",
        "Least certain",
        "Where it looks",
        "Calibration",
        "Freeze check",
        "Data checks",
        "Reproduce",
    ):
        assert heading in text, heading
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert text.count("data:image/jpeg;base64,") >= 18 + 6
    assert "regraft fit" in text
    for name in ("linear-probe", "fine-tune", "feature-extraction"):
        assert name in text


def test_a_report_of_one_run_works_and_markdown_says_the_same(
    compared: Path, tmp_path: Path
) -> None:
    one = copied(compared, tmp_path) / "compare" / "linear-probe"
    chosen = options(compared / "cache")
    assert report([one], options=chosen).path == one / "report.html"
    assert (one / "report.html").is_file()
    result = report([one], format="md", options=chosen).to_json()
    assert result["path"] == str(one / "report.md")
    text = (one / "report.md").read_text()
    assert "| → linear-probe |" in text
    assert "regraft fit" in text
    assert result["verdict"] in text
    assert result["runs"]["linear-probe"]["measures"]["n"] == len(
        load_run(one).predictions("test")["keys"]
    )
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") == 10, line


def test_the_report_is_judged_on_val_while_a_test_part_is_held_out(
    compared: Path, tmp_path: Path
) -> None:
    root = copied(compared, tmp_path)
    (root / "compare" / "linear-probe" / layout.TEST).unlink()
    paths = [root / "compare" / "linear-probe", root / "two" / "tuned" / "fine-tune"]
    result = report(paths, format="md").to_json()
    assert result["part"] == "val"
    assert len(result["pairs"]) == 1


def test_a_page_shows_names_as_they_are_and_runs_none_of_them(compared: Path) -> None:
    runs = [load_run(compared / "compare" / "linear-probe")]
    plain = json.dumps(build_evidence(runs).to_json())
    evil = "<script>alert(1)</script>$x_$"
    evidence = json.loads(plain.replace("class0", evil).replace('"toy"', json.dumps(evil)))
    text = render_html(evidence, PageExtras(), "0")
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<script>") == 1


@pytest.mark.parametrize(
    "name", [layout.WEIGHTS, layout.PREDICTIONS, layout.FREEZE, layout.SPLIT, layout.PLAN]
)
def test_an_altered_run_is_refused_by_name(name: str, compared: Path, tmp_path: Path) -> None:
    one = copied(compared, tmp_path) / "compare" / "linear-probe"
    with (one / name).open("ab") as file:
        file.write(b"\n")
    says = f"was altered after it was finished \\({re.escape(name)}\\)"
    with pytest.raises(UserError, match=says):
        report([one])
    with pytest.raises(UserError, match=says):
        evaluate(one)
    if name == layout.WEIGHTS:
        with pytest.raises(UserError, match=says):
            predict(one, [next(compared.rglob("*.png"))])


def test_unfinished_and_foreign_folders_are_refused(compared: Path, tmp_path: Path) -> None:
    def refused(path: Path, out: Path | None = None, format: str = "html") -> str:
        with pytest.raises(UserError) as caught:
            report([path], format=format, options=options(out=out))
        return str(caught.value)

    root = copied(compared, tmp_path)
    one = root / "compare" / "linear-probe"
    (one / layout.SCORES).unlink()
    assert "is not finished" in refused(one)
    (root / "compare" / layout.LEADERBOARD).unlink()
    message = refused(root / "compare")
    assert "comparison in" in message
    assert "is not finished" in message
    assert "is no run" in refused(tmp_path)
    tuned = root / "two" / "tuned"
    assert "Expected html or md" in refused(tuned, format="pdf")
    out = tmp_path / "there.html"
    out.write_text("mine")
    assert "exists already" in refused(tuned, out)
    assert out.read_text() == "mine"
    assert "is a folder" in refused(tuned, tmp_path)
    assert "is no folder" in refused(tuned, tmp_path / "no" / "x.html")


def test_runs_on_other_splits_classes_or_images_are_refused(compared: Path, tmp_path: Path) -> None:
    other = fit_tiny(compared / "photos", options(out=tmp_path / "other", split_seed=1))
    one = load_run(compared / "compare" / "linear-probe")
    digests = {run.scores["split_digest"] for run in (other, one)}
    assert len(digests) == 2
    with pytest.raises(UserError) as caught:
        report([other.path, compared / "compare"])
    assert all(digest in str(caught.value) for digest in digests)
    with pytest.raises(UserError, match="digits holds other images than"):
        report([compared / "compare"], "digits", options=options(out=tmp_path / "x.html"))
    two = Run(one.path, one.plan, ("a", "b", "c"), one.scores)
    with pytest.raises(UserError, match="Expected the same"):
        build_evidence([one, two])


def test_images_without_labels_or_with_other_classes_cannot_be_evaluated_on(
    compared: Path, tmp_path: Path
) -> None:
    one = compared / "compare" / "linear-probe"
    bare = tmp_path / "bare"
    bare.mkdir()
    for number, path in enumerate(sorted((compared / "photos").rglob("*.png"))[:5]):
        shutil.copy(path, bare / f"{number}.png")
    (tmp_path / "bare.csv").write_text(
        "path\n" + "\n".join(f"bare/{number}.png" for number in range(5)) + "\n"
    )
    for given, says in (
        (bare, "class"),
        (tmp_path / "bare.csv", "label"),
        ("digits", "which the run does not know"),
    ):
        with pytest.raises(UserError, match=says):
            evaluate(one, given, "all")
    with pytest.raises(UserError, match="no DATA was given"):
        evaluate(one, split="all")
    with pytest.raises(UserError, match="--split val shows the scores of `regraft fit`"):
        evaluate(one, compared / "photos")
    with pytest.raises(UserError, match="--split 'train' is no part. Expected 'val', 'test'"):
        evaluate(one, split="train")


def test_images_that_are_gone_leave_galleries_out_and_say_so(
    compared: Path, tmp_path: Path
) -> None:
    one = copied(compared, tmp_path) / "compare" / "linear-probe"
    origin = load_run(one).scores["origin"]
    changed_scores(one, origin={**origin, "data": str(tmp_path / "gone")})
    text = report([one]).path.read_text()
    assert "The images could not be had" in text
    assert "Name them with --data" in text


class Loosening(ProgressReporter):
    """Changes a frozen statistic of a network while its head is fitted."""

    def __init__(self, network: Backbone) -> None:
        self.network = network

    def progress(self, what: str, done: int, total: int) -> None:
        if what == "solve" and done == total:
            norm = self.network.model.get_submodule("bn1")
            norm.running_mean.add_(0.1)  # type: ignore[operator, union-attr]


def test_a_frozen_batch_norm_that_changes_breaks_the_contract(own_cache: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    data = toy()
    split = split_dataset(data, DataOptions())
    pool = BackbonePool()
    plan = resolve_plan("linear-probe", data, split, Tiny().plan(), pool)
    images = FitData(data, split, describe_origin(data, DataOptions()))
    good = fit_plan(plan, images, Path("good"), options(), pool)
    loosening = options(reporter=Loosening(pool.share(plan)))
    loose = fit_plan(plan, images, Path("loose"), loosening, pool)
    check = loose.freeze_checks()[0]
    assert check["kept"] is False
    assert check["changed"] == ["body.bn1.running_mean"]
    assert good.freeze_checks()[0]["kept"] is True
    assert loose.scores["contract"] == "broken"
    log = (loose.path / layout.LOG).read_text()
    assert "Frozen tensors changed during training: body.bn1.running_mean." in log
    paths = [loose.path, good.path]
    result = report(paths, format="md", options=options(out="report.md")).to_json()
    warning = "Frozen tensors of loose changed during training. Do not trust this run."
    assert result["warnings"] == [warning]
    assert result["board"]["selected"] == "good"
    shown = regraft("report", "loose", "good", "--out", "report.html", "-q")
    assert shown.code == 0
    assert "BROKEN: body.bn1.running_mean" in Path("report.html").read_text()
    assert warning in shown.out.splitlines()[0]
    assert warning in regraft("evaluate", "loose").out.splitlines()[0]


def test_images_that_occur_in_two_parts_are_said_on_the_first_line(tmp_path: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    photos = write_folder(tmp_path / "photos", toy(120), parts=True)
    train = sorted((photos / "train").rglob("*.png"))
    test = sorted((photos / "test").rglob("*.png"))
    for number in range(5):
        label = test[number].parent.name
        same_class = [path for path in train[number * 3 :] if path.parent.name == label]
        shutil.copy(same_class[0], test[number])
    leaky = fit_tiny(photos, options(out="leaky"))
    assert leaky.scores["leaks"] == 5
    sentence = "5 val or test images are exact copies of images in an earlier part"
    assert leaky.warnings[0].startswith(sentence)
    for words in (["evaluate", "leaky"], ["report", "leaky", "-q"]):
        assert regraft(*words).out.startswith(sentence)
    assert sentence in Path("leaky/report.html").read_text()


def test_evaluate_says_what_scikit_learn_says(compared: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    from sklearn.metrics import balanced_accuracy_score, classification_report, confusion_matrix

    one = load_run(compared / "two" / "tuned" / "fine-tune")
    result = evaluate(one, options=options(compared / "cache")).to_json()
    val = one.predictions("val")
    predicted = val["logits"].argmax(1)
    targets = val["targets"]
    expected = classification_report(
        targets, predicted, target_names=one.classes, output_dict=True, zero_division=0
    )
    measures = result["measures"]
    balanced = balanced_accuracy_score(targets, predicted)
    assert measures["balanced_accuracy"] == pytest.approx(balanced)
    assert measures["macro_f1"] == pytest.approx(expected["macro avg"]["f1-score"])
    assert measures["confusion"] == confusion_matrix(targets, predicted).tolist()
    for row in measures["per_class"]:
        assert row["f1"] == pytest.approx(expected[row["name"]]["f1-score"])
        assert row["n"] == expected[row["name"]]["support"]
    assert "expected calibration error" in regraft("evaluate", one.path).out


def test_every_opening_of_the_test_part_is_counted(compared: Path, tmp_path: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    one = copied(compared, tmp_path) / "compare" / "linear-probe"
    first = load_run(one)
    for count in (2, 3):
        result = evaluate(one, split="test", options=options(compared / "cache"))
        assert len(result.to_json()["opened"]) == count
        assert f"The test part was opened {count} times for linear-probe." in result.run.warnings
    scores = json.loads(json.dumps(result.to_json()["test"]))
    assert scores == first.test["test"]  # type: ignore[index]
    shown = regraft("evaluate", one, "--split", "test", "--cache", compared / "cache", "-q")
    assert "opened 4 times" in shown.out
    assert len(load_run(one).test["opened"]) == 4  # type: ignore[index]


def tracked(photos: Path, kind: str) -> Run:
    tiny = Tiny("feature-extraction", overrides=("phases.0.epochs=2",))
    chosen = options(out="mine")
    return fit_tiny(photos, replace(chosen, run_dir=replace(chosen.run_dir, track=kind)), tiny)


def test_a_run_can_be_tracked_in_a_table(photos: Path) -> None:
    one = tracked(photos, "csv")
    with Path("mine", layout.TRACK, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [row["val_accuracy"] for row in one.history()]
    assert [float(row["val_accuracy"]) for row in rows[:2]] == pytest.approx(expected)
    assert float(rows[-1]["val/accuracy"]) == one.scores["val"]["accuracy"]


def test_a_run_can_be_tracked_in_tensorboard(photos: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = tracked(photos, "tensorboard")
    events = EventAccumulator(f"mine/{layout.TRACK}").Reload()
    expected = [row["val_accuracy"] for row in one.history()]
    assert [event.value for event in events.Scalars("val_accuracy")] == pytest.approx(expected)


def test_a_tracker_that_is_missing_or_unknown_is_one_sentence(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind in ("tensorboard", "mlflow", "wandb"):
        with pytest.raises(UserError, match=rf"pip install 'regraft\[{kind}\]'"):
            tracked(photos, kind)
        assert not Path("mine").exists()
    with pytest.raises(UserError, match="Expected csv, tensorboard, mlflow or wandb"):
        tracked(photos, "paper")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "resolution", "seed"),
    [
        (TINY, 96, 0),
        *(("test_vit", None, seed) for seed in range(3)),
        ("test_vit2", None, 0),
        ("test_convnext", 96, 0),
    ],
)
def test_maps_light_up_where_the_class_is(
    name: str, resolution: int | None, seed: int, tmp_path: Path
) -> None:
    data = toy(150)
    changes = ("phases.0.epochs=25", "phases.0.lr=0.002", "phases.0.layer_decay=1.0")
    tiny = Tiny("fine-tune", name, resolution, seed=seed, overrides=changes)
    done = fit_tiny(data, options(out=tmp_path / "run"), tiny)
    assert done.scores["val"]["accuracy"] > 0.9
    classifier = Classifier(done)
    images = data.images.read(np.arange(60))
    labels = data.labels[:60]
    maps = activation_maps(classifier, images, labels.tolist())
    inside = []
    for image, label, heat in zip(images, labels, maps, strict=True):
        assert heat.shape == image.shape[:2]
        assert 0 <= heat.min() <= heat.max() <= 1
        square = heat[label * 5 : label * 5 + 5, label * 5 : label * 5 + 5]
        inside.append(float(square.mean() / max(heat.mean(), 1e-9)))
    assert len(inside) == 60
    assert np.mean(inside) > 2


def test_maps_have_the_size_of_their_image_and_are_blank_where_nothing_is_seen(
    compared: Path,
) -> None:
    classifier = Classifier(load_run(compared / "two" / "tuned" / "fine-tune"))
    pixels = np.random.default_rng(0).integers(0, 255, (20, 50, 3), dtype=np.uint8)
    images = [pixels, np.ascontiguousarray(pixels[:, :20]), toy(9).images.read(np.arange(1))[0]]
    maps = activation_maps(classifier, images, [0, 1, 2])
    assert [heat.shape for heat in maps] == [(20, 50), (20, 20), (16, 16)]
    wide = maps[0]
    assert wide[:, :15].max() == wide[:, 35:].max() == 0
    assert wide.max() > 0
    alone = activation_maps(classifier, images[1:2], [1])[0]
    assert np.abs(alone - maps[1]).max() < 1e-4


def chromium():  # type: ignore[no-untyped-def]
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None:
        pytest.skip("there is no Chromium on this machine to open the page in")
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_opens_in_a_browser_sorts_and_asks_nobody(compared: Path, tmp_path: Path) -> None:
    path = chromium()
    from playwright.sync_api import sync_playwright

    out = tmp_path / "report.html"
    paths = [compared / "compare", compared / "two" / "tuned"]
    report(paths, options=options(compared / "cache", out))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for width, scheme in ((1200, "light"), (390, "dark")):
            view = browser.new_page(
                viewport={"width": width, "height": 800},
                color_scheme=scheme,  # type: ignore[arg-type]
            )
            said: list[str] = []
            view.on("console", lambda message, said=said: said.append(message.text))
            view.on("pageerror", lambda error, said=said: said.append(str(error)))
            view.on(
                "request",
                lambda request, said=said: (
                    said.append(request.url)
                    if not request.url.startswith(("data:", "file:"))
                    else None
                ),
            )
            view.goto(out.as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            rows = (
                "[...document.querySelectorAll('#leaderboard tbody tr')]"
                ".map(row => row.cells[1].dataset.value)"
            )
            for _ in range(2):
                view.click("#leaderboard th:nth-child(2) button")
                values = [float(value) for value in view.evaluate(rows)]
                order = view.get_attribute("#leaderboard th:nth-child(2)", "aria-sort")
                assert len(values) == 3
                assert values == sorted(values, reverse=order == "descending")
            assert order == "ascending"
            broken = "[...document.images].filter(image => !image.naturalWidth).length"
            assert view.evaluate(broken) == 0
            ink, paper = view.evaluate(
                "[getComputedStyle(document.body).color, "
                "getComputedStyle(document.body).backgroundColor]"
            )
            assert (
                sum(map(int, re.findall(r"\d+", ink))) > sum(map(int, re.findall(r"\d+", paper)))
            ) is (scheme == "dark")
            assert said == []
        browser.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_of_classes_and_runs_are_text_in_a_browser(tmp_path: Path) -> None:
    path = chromium()
    from playwright.sync_api import sync_playwright

    classes = [
        "<img src=x onerror=\"document.title='run'\">",
        "</script><script>document.title='run'</script>",
        "'\"><b class=mine>\u202e\U0001f600\n<!--",
    ]
    images, name = toy(180), "<i class=mine>"
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number, (label, pixels) in enumerate(
            zip(images.labels, images.images.read(np.arange(180)), strict=True)
        ):
            Image.fromarray(pixels).save(tmp_path / f"{name}{number}.png")
            rows.writerow([f"{name}{number}.png", classes[label]])
    run = fit_tiny(tmp_path / "list.csv", options(out=tmp_path / name))
    out = report([run.path], options=options(out=tmp_path / "report.html")).path
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        view = browser.new_page()
        said: list[str] = []
        view.on("console", lambda message: said.append(message.text))
        view.on("dialog", lambda dialog: said.append(dialog.message))
        view.goto(out.as_uri())
        shown = view.inner_text("body")
        assert [one in shown for one in (classes[0], classes[1], name)] == [True] * 3, shown
        assert view.evaluate("document.images.length") > 0  # captions name classes
        assert view.locator(".mine").count() == view.locator("img[src=x]").count() == 0
        assert view.title() != "run"
        assert view.locator("script").count() == 1
        assert said == []
        browser.close()


def test_eight_runs_on_many_images_stay_small(compared: Path) -> None:
    runs = [load_run(compared / "two" / "tuned" / "fine-tune")]
    evidence = build_evidence(runs).to_json()
    one = evidence["runs"]["fine-tune"]
    evidence["runs"] = {f"run{number}": one for number in range(8)}
    evidence["board"]["selected"] = "run0"
    rng = np.random.default_rng(0)
    shape = (60, 600, 900, 3)
    thumbnails = [
        Thumbnail(pixels, ("a", "b")) for pixels in rng.integers(0, 255, shape, dtype=np.uint8)
    ]
    gallery = Gallery("Worst mistakes", "", thumbnails)
    assert len(render_html(evidence, PageExtras([gallery]), "0")) < 8e6


def test_one_seed_twice_is_one_seed_and_a_folder_of_runs_says_which(photos: Path) -> None:
    runs = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        runs[name] = fit_tiny(photos, options(out=f"all/{name}"), Tiny(seed=seed))
    assert build_leaderboard([runs["one"], runs["again"]]).to_json()["seeds"] == []
    assert build_leaderboard(list(runs.values())).to_json()["seeds"][0]["seeds"] == 2
    with pytest.raises(UserError, match="all holds 3 runs and is none itself: again, one, other"):
        evaluate("all")


def test_the_verdict_names_a_run_that_cannot_be_told_apart(compared: Path) -> None:
    def get_pair(name: str, p: float) -> PairedDifference:
        difference = Difference(-0.01, (-0.03, 0.01), p, 500, None)
        return PairedDifference(name, difference, f"sentence on {name}")

    def get_run(name: str, seconds: float) -> RunEvidence:
        return replace(fitted, name=name, scores={"seconds": {"total": seconds}})

    result = build_evidence([load_run(compared / "compare" / "linear-probe")])
    fitted = result.runs[0]
    assert result.pairs == ()
    assert result.verdict.endswith("%).")
    worse, similar = get_pair("worse", 0.01), get_pair("similar", 0.5)
    runs = (get_run("best", 1.0), get_run("worse", 0.1), get_run("similar", 1.0))
    assert replace(result, runs=runs, pairs=(worse, similar)).verdict.endswith("on similar")
    assert replace(result, runs=runs, pairs=(worse,)).verdict.endswith("on worse")
    cheap = (*runs[:2], get_run("similar", 0.5))
    verdict = replace(result, runs=cheap, pairs=(worse, similar)).verdict
    assert "similar is not significantly different" in verdict
    assert verdict.endswith("took 2.0 times less time.")


def test_the_leaderboard_says_which_rows_differ_significantly(compared: Path) -> None:
    leaderboard = build_leaderboard([load_run(compared / "compare" / "linear-probe")])

    def get_row(name: str, points: float, p: float) -> LeaderboardRow:
        difference = Difference(points, (points, points), p, 500, None)
        return replace(leaderboard.rows[0], name=name, versus_selected=difference)

    def get_verdict(*rows: LeaderboardRow) -> str:
        return replace(leaderboard, rows=(leaderboard.rows[0], *rows)).verdict

    better, similar, worse = get_row("a", 0.1, 0.01), get_row("b", 0, 1), get_row("c", -0.1, 0.01)
    assert get_verdict(worse).endswith("Every other row is significantly worse.")
    assert get_verdict(better, worse).endswith("On the test part a is significantly better.")
    assert get_verdict(similar, worse).endswith("shows no significant difference to b.")
    assert "a is significantly better. The test part" in get_verdict(better, similar)
    assert replace(leaderboard, rows=()).verdict == "No row finished."


def test_a_row_that_failed_is_part_of_the_evidence(compared: Path) -> None:
    runs = [load_run(compared / "compare" / "linear-probe")]
    row = {"name": "bad", "backbone": None, "technique": "x", "seed": 0, "error": "no"}
    failed = to_failed_rows([row])
    board = build_leaderboard(runs, failed).to_json()
    assert board["rows"][1] == row == flat_row(row)
    plain = build_evidence(runs, failed).to_json()
    assert plain["board"] == board
    assert json.loads(json.dumps(plain))["runs"].keys() == {"linear-probe"}
    page = render_html(plain, PageExtras(), "0")
    assert "failed: no" in page


def test_broken_test_images_are_left_out_when_asked_after_the_run(photos: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    data = load_dataset(photos, Path("home"))
    held_out = data.keys[data.split().test]
    (photos / held_out[0]).write_bytes(b"")
    fit_tiny(photos, options(out="two words"))
    with pytest.raises(UserError, match="--skip-bad goes on without them"):
        evaluate("two words", split="test")
    assert not Path("two words", layout.TEST).exists()
    opened = evaluate("two words", split="test", options=options(skip_bad=True)).to_json()
    assert opened["test"]["n"] == len(held_out) - 1
    every = evaluate("two words", photos, "all", options(skip_bad=True)).to_json()
    assert every["all"]["n"] == 120 - 1
    assert "written to" not in regraft("evaluate", "two words", "-q").out
    words = ("--backbone", TINY, "--weights", "random", "--resolution", 32, "--skip-bad", "-q")
    shown = regraft("fit", photos, *words, "--out", "two words again").out
    assert "`regraft evaluate 'two words again' --split test`" in shown


def as_0_1(run: Run, images: Path) -> Run:
    """Rewrite a run's folder as version 0.1 left it: no format, and a split of what was left."""
    dataset = load_dataset(images, Path("home"))
    row_of = {key: row for row, key in enumerate(dataset.keys.tolist())}
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for image in run.split():
        if not image.skipped:
            rows[image.part].append(row_of[image.key])
    split = dataset.split_of({part: np.array(sorted(rows[part])) for part in rows})
    (run.path / layout.SKIPPED).unlink()
    files = {name: digest for name, digest in run.scores["files"].items() if name != layout.SKIPPED}
    changed_scores(run.path, files=files, format=..., skipped=..., split_digest=split.digest)
    return load_run(run.path)


def test_a_run_of_0_1_that_skipped_images_is_read_evaluated_and_reported(photos: Path) -> None:
    data = load_dataset(photos, Path("home"))
    split = data.split()
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        for row in split[part][:count]:
            (photos / data.keys[row]).write_bytes(b"")
    new = fit_tiny(photos, options(out="new", skip_bad=True))
    assert new.scores["skipped"] == 3
    shutil.copytree("new", "old")
    expected = evaluate("new", split="test").to_json()
    old = as_0_1(load_run("old"), photos)
    assert old.scores["split_digest"] != new.scores["split_digest"]
    result = evaluate(old, split="test").to_json()
    assert result["test"] == expected["test"]
    assert result["test"]["n"] == len(split.test) - 1
    assert result["measures"] == expected["measures"]
    page = report(["old"]).path.read_text()
    assert "The images could not be had" not in page
    assert page.count("data:image/jpeg;base64,") >= 18 + 6
    (photos / data.keys[split.train[5]]).unlink()
    with pytest.raises(UserError, match="Expected the same images"):
        evaluate(old, split="test")


def test_runs_of_one_name_are_told_apart_and_an_opened_test_part_is_said(photos: Path) -> None:
    for folder, seed in (("a/runs/mine", 0), ("b/runs/mine", 1)):
        fit_tiny(photos, options(out=folder), Tiny(seed=seed))
    evaluate("a/runs/mine", split="test")
    folders = ["a/runs/mine", "b/runs/mine"]
    for order in (folders, folders[::-1]):
        assert [run.name for run in find_runs([Path(path) for path in order])[0]] == order
        result = report(order, format="md", options=options(out="page.md", overwrite=True))
        assert set(result.to_json()["runs"]) == set(folders)
    page = report(folders, options=options(out="page.html")).path.read_text()
    assert "The test part was opened: a/runs/mine 1 ×" in page
    assert "b/runs/mine" in page


def test_ticks_of_costs_are_few_and_apart() -> None:
    plt = get_pyplot()
    cases = ([1.6, 1.9, 3.2, 45, 64], [12_800, 3.38e6], [1, 1e6], [10, 11], [3.0], [1e3, 9e3])
    for costs in cases:
        series = []
        for cost in costs:
            series.append(RunSeries("run", "test", 0.9, (0.8, 0.95), cost, 1, [], {}))
        figure = draw_cost(plt, series, costs, "seconds of work")
        figure.canvas.draw()
        axis = figure.axes[0]
        low, high = axis.get_xlim()
        boxes = []
        for mark, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True):
            if low <= mark <= high:
                boxes.append(label.get_window_extent())
        assert boxes, costs
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), costs
        plt.close(figure)
    assert len(cases) == 6

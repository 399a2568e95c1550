"""The report: its evidence, its words, and that it opens in a browser and loads nothing else."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from regraft.workflow.comparison import compare
from regraft.workflow.named import fit_named
from regraft.workflow.pages import report_named
from regraft.workflow.planning import Wish, make
from regraft.workflow.settings import Settings
from regraft.workflow.story import fit

from conftest import TINY, toy, write_folder
from regraft.data.load import load_dataset
from regraft.errors import UserError
from regraft.reporting.evidence import PairedDifference
from regraft.models.backbone import Backbone, load_backbone
from regraft.reporting.evidence import (
    PairedDifference,
    RunEvidence,
    build_evidence,
    gather_evidence,
)
from regraft.reporting.html import Gallery, PageExtras, Thumbnail, render_html
from regraft.reporting.leaderboard import (
    LeaderboardRow,
    build_leaderboard,
    build_leaderboard_json,
    flat_row,
    to_failed_rows,
)
from regraft.runs.folder import Run, load_run
from regraft.system.progress import ProgressReporter

QUICK = ["--weights", "random", "--resolution", "32", "-q"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two comparisons, of one row and of two rows, on images in folders."""
    root = tmp_path_factory.mktemp("compared")
    photos = write_folder(root / "photos", toy(180))
    settings = Settings(home=root / "cache", origin=str(photos))
    from regraft.data.load import load_dataset

    data = load_dataset(str(photos), root / "cache")
    ways = ("linear-probe", "fine-tune", "feature-extraction")
    wish = Wish(weights="random", resolution=32, changes=["phases.0.l2=[0.1]"])
    compare(data, root / "compare", [TINY], ways[:1], 1, wish, settings)
    (root / "two").mkdir()
    wish = Wish(weights="random", resolution=32, changes=["phases.0.epochs=2"])
    compare(data, root / "two" / "tuned", [TINY], ways[1:], 1, wish, settings)
    return root


def copied(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "copy"))


def test_a_report_of_a_comparison_is_one_page_that_needs_nothing_else(
    compared: Path, tmp_path: Path, regraft
) -> None:
    out = tmp_path / "report.html"
    done = regraft(
        "report",
        compared / "compare",
        compared / "two" / "tuned",
        "--out",
        out,
        "--cache",
        compared / "cache",
        "-q",
    )
    assert done.code == 0, done.err
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
    compared: Path, tmp_path: Path, regraft
) -> None:
    one = copied(compared, tmp_path) / "compare" / "linear-probe"
    assert regraft("report", one, "--cache", compared / "cache", "-q").code == 0
    assert (one / "report.html").is_file()
    assert regraft("report", one, "--format", "md", "-q").code == 0
    text = (one / "report.md").read_text()
    assert "| → linear-probe |" in text
    assert "regraft fit" in text
    told = json.loads(regraft("report", one, "--format", "md", "--json", "-q").out)
    assert told["verdict"] in text
    assert told["runs"]["linear-probe"]["measures"]["n"] == len(
        load_run(one).predictions("test")["keys"]
    )
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") == 10, line


def test_the_report_is_judged_on_val_while_a_test_part_is_shut(
    compared: Path, tmp_path: Path, regraft
) -> None:
    root = copied(compared, tmp_path)
    (root / "compare" / "linear-probe" / "test.json").unlink()
    told = json.loads(
        regraft(
            "report",
            root / "compare" / "linear-probe",
            root / "two" / "tuned" / "fine-tune",
            "--format",
            "md",
            "--json",
        ).out
    )
    assert told["part"] == "val"
    assert len(told["pairs"]) == 1


def test_a_page_shows_names_as_they_are_and_runs_none_of_them(compared: Path) -> None:
    runs = [load_run(compared / "compare" / "linear-probe")]
    told = gather_evidence(runs)
    evil = "<script>alert(1)</script>$x_$"
    told = json.loads(json.dumps(told).replace("class0", evil).replace('"toy"', json.dumps(evil)))
    text = render_html(told, PageExtras(), "0")
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<script>") == 1


@pytest.mark.parametrize(
    "name", ["model.safetensors", "predictions.npz", "freeze.json", "split.csv", "plan.toml"]
)
def test_an_altered_run_is_refused_by_name(
    name: str, compared: Path, tmp_path: Path, regraft
) -> None:
    one = copied(compared, tmp_path) / "compare" / "linear-probe"
    with (one / name).open("ab") as file:
        file.write(b"\n")
    for words in (
        ["report", one],
        ["evaluate", one],
        *([["predict", one, next(compared.rglob("*.png"))]] if name == "model.safetensors" else []),
    ):
        done = regraft(*words)
        assert done.code == 2
        assert "was altered after it was finished" in done.err
        assert name in done.err


def test_unfinished_and_foreign_folders_are_refused(
    compared: Path, tmp_path: Path, regraft
) -> None:
    root = copied(compared, tmp_path)
    one = root / "compare" / "linear-probe"
    (one / "scores.json").unlink()
    assert "is not finished" in regraft("report", one).err
    (root / "compare" / "leaderboard.json").unlink()
    assert "comparison in" in regraft("report", root / "compare").err
    done = regraft("report", tmp_path)
    assert done.code == 2
    assert "is no run" in done.err
    assert "Expected html or md" in regraft("report", root / "two" / "tuned", "--format", "pdf").err
    out = tmp_path / "there.html"
    out.write_text("mine")
    assert "exists already" in regraft("report", root / "two" / "tuned", "--out", out).err
    assert out.read_text() == "mine"
    assert "is a folder" in regraft("report", root / "two" / "tuned", "--out", tmp_path).err
    assert (
        "is no folder"
        in regraft("report", root / "two" / "tuned", "--out", tmp_path / "no" / "x.html").err
    )


def test_runs_on_other_splits_classes_or_images_are_refused(
    compared: Path, tmp_path: Path, regraft
) -> None:
    other = regraft(
        "fit",
        compared / "photos",
        "--backbone",
        TINY,
        "--split-seed",
        "1",
        "--out",
        tmp_path / "other",
        *QUICK,
    )
    assert other.code == 0, other.err
    done = regraft("report", tmp_path / "other", compared / "compare")
    digests = {
        one.scores["split_digest"]
        for one in (load_run(tmp_path / "other"), load_run(compared / "compare" / "linear-probe"))
    }
    assert done.code == 2
    assert len(digests) == 2
    assert all(digest in done.err for digest in digests)
    done = regraft("report", compared / "compare", "--data", "digits", "--out", tmp_path / "x.html")
    assert done.code == 2
    assert "holds other images" in done.err
    one = load_run(compared / "compare" / "linear-probe")
    two = Run(one.path, one.plan, ("a", "b", "c"), one.scores)
    with pytest.raises(UserError, match="Expected the same"):
        gather_evidence([one, two])


def test_images_without_labels_or_with_other_classes_cannot_be_evaluated_on(
    compared: Path, tmp_path: Path, regraft
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
        ("digits", "Expected the same classes"),
    ):
        done = regraft("evaluate", one, given, "--split", "all", "-q")
        assert done.code == 2
        assert says in done.err
        assert "Traceback" not in done.err
    assert "no DATA was given" in regraft("evaluate", one, "--split", "all").err


def test_images_that_are_gone_leave_galleries_out_and_say_so(
    compared: Path, tmp_path: Path, regraft
) -> None:
    one = copied(compared, tmp_path) / "compare" / "linear-probe"
    scores = json.loads((one / "scores.json").read_text())
    (one / "scores.json").write_text(
        json.dumps({**scores, "origin": {**scores["origin"], "data": str(tmp_path / "gone")}})
    )
    assert regraft("report", one, "-q").code == 0
    text = (one / "report.html").read_text()
    assert "The images could not be had" in text
    assert "Name them with --data" in text


class Loosening(ProgressReporter):
    """Changes a frozen statistic of a network while its head is solved."""

    def __init__(self, network: Backbone) -> None:
        self.network = network

    def progress(self, what: str, done: int, total: int) -> None:
        if what == "solve" and done == total:
            norm = self.network.model.get_submodule("bn1")
            norm.running_mean.add_(0.1)  # type: ignore[operator, union-attr]


def test_a_frozen_batch_norm_that_was_let_loose_breaks_the_contract(
    own_cache: Path, tmp_path: Path, regraft
) -> None:
    photos = write_folder(tmp_path / "photos", toy())
    settings = Settings(home=own_cache, origin=str(photos))
    data = load_dataset(str(photos), own_cache)
    wish = Wish(backbone=TINY, weights="random", resolution=32)
    plan = make(data, settings.split(data), wish)
    fit(data, plan, Path("good"), settings)
    network = load_backbone(plan.backbone, plan.weights, plan.resolution, plan.seed)
    loosening = replace(settings, reporter=Loosening(network))
    fit(data, plan, Path("loose"), loosening, network)

    contract = json.loads(Path("loose/freeze.json").read_text())[0]
    assert contract["kept"] is False
    assert contract["changed"] == ["body.bn1.running_mean"]
    assert json.loads(Path("good/freeze.json").read_text())[0]["kept"] is True
    assert load_run(Path("loose")).scores["contract"] == "broken"
    assert "BROKEN" in Path("loose/log.txt").read_text()
    report = regraft("report", "loose", "good", "--out", "report.html", "-q")
    assert report.code == 0
    warning = "The freeze contract of loose is broken"
    assert warning in report.out.splitlines()[0]
    assert "BROKEN: body.bn1.running_mean" in Path("report.html").read_text()
    assert warning in regraft("evaluate", "loose").out.splitlines()[0]
    result = json.loads(regraft("report", "loose", "good", "--format", "md", "--json").out)
    assert result["board"]["selected"] == "good"


def test_images_that_occur_in_two_parts_are_said_on_the_first_line(tmp_path: Path, regraft) -> None:
    photos = write_folder(tmp_path / "photos", toy(120), parts=True)
    train, test = (
        sorted((photos / "train").rglob("*.png")),
        sorted((photos / "test").rglob("*.png")),
    )
    for number in range(5):
        shutil.copy(
            next(one for one in train[number * 3 :] if one.parent.name == test[number].parent.name),
            test[number],
        )
    assert regraft("fit", photos, "--backbone", TINY, "--out", "leaky", *QUICK).code == 0
    assert load_run(Path("leaky")).scores["leaks"] == 5
    for words in (["evaluate", "leaky"], ["report", "leaky", "-q"]):
        assert regraft(*words).out.startswith(
            "5 images of val and test are byte for byte in an earlier part too"
        )


def test_evaluate_says_what_scikit_learn_says(compared: Path, regraft) -> None:
    from sklearn.metrics import balanced_accuracy_score, classification_report, confusion_matrix

    one = load_run(compared / "two" / "tuned" / "fine-tune")
    told = json.loads(
        regraft("evaluate", one.path, "--split", "val", "--json", "--cache", compared / "cache").out
    )
    val = one.predictions("val")
    said = val["logits"].argmax(1)
    report = classification_report(
        val["targets"], said, target_names=one.classes, output_dict=True, zero_division=0
    )
    found = told["measures"]
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(val["targets"], said)
    )
    assert found["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert found["confusion"] == confusion_matrix(val["targets"], said).tolist()
    for row in found["per_class"]:
        assert row["f1"] == pytest.approx(report[row["name"]]["f1-score"])
        assert row["n"] == report[row["name"]]["support"]
    assert "expected calibration error" in regraft("evaluate", one.path).out


def test_every_opening_of_the_test_part_is_counted(compared: Path, tmp_path: Path, regraft) -> None:
    one = copied(compared, tmp_path) / "compare" / "linear-probe"
    for count in (2, 3):
        done = regraft("evaluate", one, "--split", "test", "--cache", compared / "cache", "-q")
        assert done.code == 0, done.err
        assert f"opened {count} times" in done.out
    assert len(load_run(one).test["opened"]) == 3


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_a_run_can_be_tracked(kind: str, tmp_path: Path, regraft) -> None:
    photos = write_folder(tmp_path / "photos", toy())
    words = [
        "fit",
        photos,
        "--technique",
        "feature-extraction",
        "--backbone",
        TINY,
        "--set",
        "phases.0.epochs=2",
        "--out",
        "mine",
        "--track",
        kind,
        *QUICK,
    ]
    assert regraft(*words).code == 0
    one = load_run(Path("mine"))
    if kind == "csv":
        import csv

        with Path("mine/track/metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["val_accuracy"]) for row in rows[:2]] == pytest.approx(
            [row["val_accuracy"] for row in one.history()]
        )
        assert float(rows[-1]["val/accuracy"]) == one.scores["val"]["accuracy"]
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator("mine/track").Reload()
        assert [event.value for event in events.Scalars("val_accuracy")] == pytest.approx(
            [row["val_accuracy"] for row in one.history()]
        )


def test_a_tracker_that_is_missing_or_unknown_is_one_sentence(
    tmp_path: Path, regraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_folder(tmp_path / "photos", toy())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind in ("tensorboard", "mlflow", "wandb"):
        done = regraft("fit", photos, "--backbone", TINY, "--out", "mine", "--track", kind, *QUICK)
        assert done.code == 2
        assert f"pip install 'regraft[{kind}]'" in done.err
        assert not Path("mine").exists()
    assert (
        "Expected csv, tensorboard, mlflow or wandb"
        in regraft("fit", photos, "--out", "mine", "--track", "paper").err
    )


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
    import regraft

    data = toy(150)
    changes = ["phases.0.epochs=25", "phases.0.lr=0.002", "phases.0.layer_decay=1.0"]
    done = regraft.fit(
        data,
        "fine-tune",
        name,
        out=tmp_path / "run",
        weights="random",
        resolution=resolution,
        seed=seed,
        changes=changes,
    )
    assert done.scores["val"]["accuracy"] > 0.9
    from regraft.inference.cam import activation_maps

    classifier = regraft.load(done.path)
    images, labels = data.images.read(np.arange(60)), data.labels[:60]
    inside = []
    for image, label, heat in zip(
        images, labels, activation_maps(classifier, images, labels.tolist()), strict=True
    ):
        assert heat.shape == image.shape[:2]
        assert 0 <= heat.min() <= heat.max() <= 1
        square = heat[label * 5 : label * 5 + 5, label * 5 : label * 5 + 5]
        inside.append(float(square.mean() / max(heat.mean(), 1e-9)))
    assert len(inside) == 60
    assert np.mean(inside) > 2
    wide = np.zeros((20, 50, 3), np.uint8)
    heat = activation_maps(classifier, [wide], [0])[0]
    assert heat.shape == (20, 50)
    assert heat[:, :15].max() == heat[:, 35:].max() == 0


def chromium():  # type: ignore[no-untyped-def]
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None:
        pytest.skip("there is no Chromium on this machine to open the page in")
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_opens_in_a_browser_sorts_and_asks_nobody(
    compared: Path, tmp_path: Path, regraft
) -> None:
    path = chromium()
    from playwright.sync_api import sync_playwright

    out = tmp_path / "report.html"
    assert (
        regraft(
            "report",
            compared / "compare",
            compared / "two" / "tuned",
            "--out",
            out,
            "--cache",
            compared / "cache",
            "-q",
        ).code
        == 0
    )
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
    wish = Wish(backbone=TINY, weights="random", resolution=32, technique="linear-probe")
    fit_named(tmp_path / "list.csv", wish, tmp_path / name, home=tmp_path / "cache")
    out = report_named([tmp_path / name], tmp_path / "report.html", home=tmp_path / "cache")[0]
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
    told = gather_evidence(runs)
    one = told["runs"]["fine-tune"]
    told["runs"] = {f"run{number}": one for number in range(8)}
    told["board"]["selected"] = "run0"
    rng = np.random.default_rng(0)
    shots = [
        Thumbnail(rng.integers(0, 255, (600, 900, 3), dtype=np.uint8), ("a", "b"))
        for _ in range(60)
    ]
    text = render_html(told, PageExtras([Gallery("Worst mistakes", "", shots)]), "0")
    assert len(text) < 8e6


def test_one_seed_twice_is_one_seed_and_a_folder_of_runs_says_which(regraft, photos: Path) -> None:
    words = (
        "--backbone",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        32,
        "--technique",
        "linear-probe",
        "-q",
        "--json",
    )
    for folder, seed in (("all/one", 0), ("all/again", 0), ("all/other", 1)):
        assert regraft("fit", photos, *words, "--seed", seed, "--out", folder).code == 0
    runs = {name: load_run(Path("all", name)) for name in ("one", "again", "other")}
    assert build_leaderboard_json([runs["one"], runs["again"]])["seeds"] == []
    assert build_leaderboard_json(list(runs.values()))["seeds"][0]["seeds"] == 2
    done = regraft("evaluate", "all")
    assert (done.code, "all holds 3 runs and is none itself: again, one, other" in done.err) == (
        2,
        True,
    )


def test_the_verdict_names_a_run_that_cannot_be_told_apart(compared: Path) -> None:
    def get_pair(name: str, p: float) -> PairedDifference:
        difference = PairedDifference(-0.01, (-0.03, 0.01), p, 500, None)
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
        difference = PairedDifference(points, (points, points), p, 500, None)
        return replace(leaderboard.rows[0], name=name, versus_selected=difference)

    def get_verdict(*rows: LeaderboardRow) -> str:
        return replace(leaderboard, rows=(leaderboard.rows[0], *rows)).verdict

    better, similar, worse = get_row("a", 0.1, 0.01), get_row("b", 0, 1), get_row("c", -0.1, 0.01)
    assert get_verdict(worse).endswith("Every other row is significantly worse.")
    assert get_verdict(better, worse).endswith("On the test part a is significantly better.")
    assert get_verdict(similar, worse).endswith("shows no significant difference to b.")
    assert "a is significantly better. The test part" in get_verdict(better, similar)
    assert replace(leaderboard, rows=()).verdict == "No row finished."


def test_typed_results_say_what_the_plain_ones_say(compared: Path) -> None:
    runs = [load_run(compared / "compare" / "linear-probe")]
    row = {"name": "bad", "backbone": None, "technique": "x", "seed": 0, "error": "no"}
    failed = to_failed_rows([row])
    assert build_leaderboard_json(runs, [row]) == build_leaderboard(runs, failed).to_json()
    assert build_leaderboard_json(runs, [row])["rows"][1] == row == flat_row(row)
    plain = gather_evidence(runs, [row])
    assert plain == build_evidence(runs, failed).to_json()
    assert json.loads(json.dumps(plain))["runs"].keys() == {"linear-probe"}


def test_broken_test_images_are_left_out_when_asked_after_the_run(regraft, photos: Path) -> None:
    words = (
        "--backbone",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        32,
        "--technique",
        "linear-probe",
        "-q",
        "--json",
    )
    data = load_dataset(photos, Path("home"))
    shut = data.keys[data.split().test]
    (photos / shut[0]).write_bytes(b"")
    assert regraft("fit", photos, *words, "--out", "two words").code == 0
    stopped = regraft("evaluate", "two words", "--split", "test", "-q")
    assert (
        stopped.code,
        "--skip-bad goes on without them" in stopped.err,
        Path("two words/test.json").exists(),
    ) == (2, True, False)
    opened = regraft("evaluate", "two words", "--split", "test", "--skip-bad", "--json")
    assert opened.code == 0, opened.err
    assert json.loads(opened.out)["test"]["n"] == len(shut) - 1
    every = regraft("evaluate", "two words", photos, "--split", "all", "--skip-bad", "--json", "-q")
    assert json.loads(every.out)["all"]["n"] == 120 - 1
    assert "written to" not in regraft("evaluate", "two words", "-q").out
    assert (
        "`regraft evaluate 'two words again' --split test`"
        in regraft("fit", photos, *words[:-1], "--out", "two words again", "--skip-bad").out
    )


def test_runs_of_one_name_are_told_apart_and_a_test_part_opened_for_one_is_said(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    for folder, seed in (("a/runs/mine", 0), ("b/runs/mine", 1)):
        words = (
            "--backbone",
            "test_resnet",
            "--weights",
            "random",
            "--resolution",
            32,
            "--technique",
            "linear-probe",
            "--seed",
            seed,
            "-q",
            "--out",
            folder,
        )
        assert regraft("fit", photos, *words).code == 0
    assert regraft("evaluate", "a/runs/mine", "--split", "test", "-q").code == 0
    for order in (("a/runs/mine", "b/runs/mine"), ("b/runs/mine", "a/runs/mine")):
        done = regraft("report", *order, "--out", "page.html", "--overwrite")
        assert done.code == 0, done.err
        page = Path("page.html").read_text()
        assert "The test part was opened: a/runs/mine 1 ×" in page
        assert "b/runs/mine" in page

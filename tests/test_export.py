"""A finished run for other programs: a format answers as the run does or is not left behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors
import timm
import torch
from PIL import Image

from conftest import toy, write_folder
from fitting import Messages, Tiny, fit_tiny, options
from regraft.commands.evaluate import evaluate
from regraft.commands.export import export
from regraft.commands.options import ExportRequest
from regraft.data.decode import decode_image
from regraft.errors import UserError
from regraft.evaluation.scores import compute_scores
from regraft.exporting.export import EXPORT_FORMATS, ExportTarget, ParitySamples, write_export
from regraft.exporting.onnx import OPSET, onnx_answers, write_onnx
from regraft.exporting.onnx_int8 import AccuracyDrop, check_drop
from regraft.exporting.onnx_resize import RESIZE_PREFIX, resize_graph
from regraft.exporting.parity import check_parity, compare_answers, run_answers, synthetic_images
from regraft.exporting.safetensors_file import safetensors_answers
from regraft.exporting.timm_folder import timm_folder_answers, write_timm_folder
from regraft.exporting.torchscript import torchscript_answers
from regraft.inference.classifier import Classifier, load_classifier
from regraft.models.transforms import Preprocess
from regraft.plans.schema import InputRules
from regraft.runs.folder import Run, load_run
from regraft.runs.layout import SCORES
from test_predict import damaged

ANSWERS = {
    "onnx": onnx_answers,
    "torchscript": torchscript_answers,
    "safetensors": safetensors_answers,
    "timm": timm_folder_answers,
    "hub-folder": timm_folder_answers,
}


LINEAR = Tiny()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs of several sizes."""
    made = tmp_path_factory.mktemp("home")
    photos = write_folder(made / "photos", toy(150))
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        with Image.open(file) as image:
            size = ((16, 16), (40, 90), (70, 50), (33, 33))[number % 4]
            image.resize(size, Image.Resampling.BICUBIC).save(file)
    return made


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A linear probe of a tiny network on them."""
    return fitted(home, "run").path


def fitted(home: Path, name: str, tiny: Tiny = LINEAR) -> Run:
    return fit_tiny(home / "photos", options(home / "cache", home / name), tiny)


@pytest.mark.parametrize("kind", list(EXPORT_FORMATS))
def test_every_format_answers_as_the_run_and_is_where_it_was_asked_for(
    finished: Path, home: Path, kind: str
) -> None:
    done = load_run(finished)
    report = export(finished, ExportRequest(kind, "made"), options(home / "cache")).to_json()
    parity = report["parity"]
    assert (parity["images"], parity["other_class"]) == ("validation", 0)
    assert parity["n"] == len(done.predictions()["keys"]) > 10
    assert parity["difference"] < 1e-5
    assert report["bytes"] > 1000
    assert ("as_fitted" in report) == (done.plan.precision == "bfloat16")
    assert report.get("as_fitted", {"difference": 1})["difference"] > parity["difference"]
    modes = {file.stat().st_mode & 0o444 for file in [Path("made"), *Path("made").glob("*")]}
    assert modes == {0o444}
    files = sorted((home / "photos").rglob("*.png"))[::5]
    images = [decode_image(file.read_bytes()) for file in files]
    theirs = run_answers(ANSWERS[kind](Path("made")), images)
    assert len(images) == 30
    assert np.ptp(theirs, axis=0).max() > 0.3
    ours = Classifier(done, precision="float32").predict_proba(files)
    assert np.abs(theirs - ours).max() < 1e-5
    assert [path.name for path in Path().iterdir()] == ["made"]


def test_by_default_an_export_lies_under_the_run_s_name(finished: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    for kind in ("safetensors", "hub-folder"):
        shown = regraft("export", finished, "--to", kind, "-q")
        assert "probabilities differ by at most" in shown.out
        assert Path("exports", f"run{EXPORT_FORMATS[kind].suffix}").exists()


@pytest.mark.parametrize("network", ["test_vit", "test_efficientnet"])
def test_other_families_too_with_any_batch(home: Path, network: str) -> None:
    done = fitted(home, network, Tiny(backbone=network, resolution=64))
    images = synthetic_images(64)
    for kind in ("onnx", "timm"):
        target = ExportTarget(kind, Path(f"made-{kind}"))
        report = write_export(done, target, ParitySamples(images, is_synthetic=True))
        assert report.parity.difference < 1e-4
    answers = onnx_answers(Path("made-onnx"))
    square = np.stack([image for image in images if image.shape == (64, 64, 3)])
    every = answers(square)
    assert len(every) > 20
    for batch in (1, 2, 7):
        assert np.abs(answers(square[:batch]) - every[:batch]).max() < 1e-5


PLANS = {
    "several": ("multi-layer-probe", (), "takes features at"),
    "middle": ("linear-probe", ("until=layer2",), "takes features at 'layer2'"),
    "hidden": ("feature-extraction", ("phases.0.epochs=1",), "has a head of its own"),
    "flat": ("linear-probe", ("head=flatten",), "has a head of its own (flatten)"),
}


@pytest.mark.parametrize("name", list(PLANS))
def test_what_is_no_plain_timm_model_is_refused_there_and_works_elsewhere(
    home: Path, name: str
) -> None:
    technique, changes, says = PLANS[name]
    run = fitted(home, name, Tiny(technique, overrides=changes))
    for kind in ("timm", "hub-folder"):
        with pytest.raises(UserError) as caught:
            export(run, ExportRequest(kind, "made"))
        assert says in str(caught.value)
        assert "Export it to onnx, torchscript or safetensors, which can." in str(caught.value)
        assert not list(Path().iterdir())
    samples = ParitySamples(synthetic_images(32, 9))
    for kind in ("onnx", "torchscript", "safetensors") if name == "several" else ("torchscript",):
        target = ExportTarget(kind, Path(kind))
        report = write_export(run, target, samples)
        assert report.parity.difference < 1e-5


def test_a_head_with_dropout_only_and_tuned_weights_fit_a_plain_timm_model(home: Path) -> None:
    changes = ("phases.0.epochs=2", "head=dropout 0.3", "phases.0.batch_norm=adapt")
    run = fitted(home, "tuned", Tiny("fine-tune", overrides=changes))
    samples = ParitySamples(synthetic_images(32))
    report = write_export(run, ExportTarget("timm", Path("made")), samples)
    assert report.parity.difference < 1e-4


def test_the_graph_makes_pixels_ready_to_the_last_bit() -> None:
    import onnxruntime

    chance, cases = np.random.default_rng(0), 0
    for side, kind in ((32, "bicubic"), (96, "bilinear"), (33, "bicubic")):
        rules = InputRules((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), kind)
        preprocess = Preprocess(rules, side)
        made = resize_graph(preprocess, 10, OPSET)
        session = onnxruntime.InferenceSession(
            made.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        shapes = [
            (8, 8),
            (side, side),
            (48, 48),
            (97, 95),
            (1, 1),
            (1, 50),
            (300, 200),
            (60, 61),
            *map(tuple, chance.integers(2, 260, (20, 2))),
        ]
        for height, width in shapes:
            images = chance.integers(0, 256, (2, int(height), int(width), 3), dtype=np.uint8)
            stored = np.stack([preprocess.store(image) for image in images])
            wanted = preprocess(torch.from_numpy(stored)).numpy()
            assert (session.run(None, {"images": images})[0] == wanted).all(), (
                side,
                kind,
                height,
                width,
            )
            cases += 1
    assert cases == 84


def test_the_onnx_file_is_alone_says_what_it_is_and_nothing_of_this_machine(
    finished: Path, home: Path
) -> None:
    done = load_run(finished)
    write_onnx(done, Path("made.onnx"))
    assert [path.name for path in Path().iterdir()] == ["made.onnx"]
    made = onnx.load("made.onnx")
    props = {one.key: one.value for one in made.metadata_props}
    assert json.loads(props["classes"]) == list(done.classes)
    assert props["plan_digest"] == done.plan.digest
    assert json.loads(props["val"])["n"] == done.scores["val"]["n"]
    assert [(one.name, len(one.type.tensor_type.shape.dim)) for one in made.graph.input] == [
        ("images", 4)
    ]
    assert [one.name for one in made.graph.output] == ["probabilities"]
    assert {one.domain for one in made.opset_import} == {""}
    content = Path("made.onnx").read_bytes()
    assert not [
        word for word in (b"site-packages", str(home).encode(), b"/src/regraft") if word in content
    ]


def test_the_timm_folder_opens_with_timm_alone_and_its_own_transform_says_the_same_classes(
    finished: Path, home: Path
) -> None:
    done = load_run(finished)
    write_timm_folder(done, Path("made"))
    assert {path.name for path in Path("made").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    model = timm.create_model("local-dir:made", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), 1.0)
    assert json.loads(Path("made/config.json").read_text())["label_names"] == list(done.classes)
    transform = timm.data.create_transform(**config, is_training=False)
    files = sorted((home / "photos").rglob("*.png"))
    images = {file: decode_image(file.read_bytes()) for file in files}
    files = [file for file in files if images[file].shape[0] == images[file].shape[1]]
    with torch.inference_mode():
        said = (
            model(torch.stack([transform(Image.fromarray(images[file])) for file in files]))
            .softmax(1)
            .numpy()
        )
    ours = load_classifier(finished).predict_proba(files)
    assert len(files) > 60
    assert np.abs(said - ours).max() < 0.05  # Pillow and PyTorch may round a grey level apart
    assert (said.argmax(1) == ours.argmax(1)).mean() > 0.95


def test_the_hub_folder_carries_its_evidence_and_no_path_of_this_machine(
    home: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "secret" / "mine.safetensors"
    weights.parent.mkdir()
    made = timm.create_model(LINEAR.backbone, num_classes=0)
    safetensors.torch.save_file(made.state_dict(), weights)
    fit_tiny(home / "photos", options(out="run"), Tiny(weights=str(weights)))
    evaluate("run", split="test")
    export("run", ExportRequest("hub-folder", "made"))
    done = load_run(Path("run"))
    assert {path.name for path in Path("made").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "plan.toml",
        "evidence.json",
    }
    card = Path("made/README.md").read_text()
    from huggingface_hub import ModelCard

    header = ModelCard(card).data
    assert (header.library_name, header.pipeline_tag) == ("timm", "image-classification")
    assert {result.dataset_split: result.metric_value for result in header.eval_results} == {
        "validation": done.scores["val"]["accuracy"],
        "test": done.test["test"]["accuracy"],  # type: ignore[index]
    }
    low, high = done.scores["val"]["ci95"]
    for words in (
        f"| validation | {done.scores['val']['accuracy']:.4f} | {low:.3f}–{high:.3f} |",
        done.plan.digest,
        done.scores["split_digest"],
        "opened once",
        "class0, class1, class2",
        "weights from mine.safetensors",
    ):
        assert words in card, words
    evidence = json.loads(Path("made/evidence.json").read_text())
    assert (evidence["plan_digest"], evidence["val"]) == (done.plan.digest, done.scores["val"])
    for file in Path("made").iterdir():
        assert b"secret" not in file.read_bytes(), file
        assert str(home).encode() not in file.read_bytes(), file


def test_int8_that_costs_too_much_is_refused() -> None:
    targets = np.arange(200) % 2
    exact = np.eye(2)[targets] * 5
    refused = 0
    for wrong, most in ((0, 0.0), (5, 3.0), (7, 3.0), (100, 3.0), (100, 50.0)):
        rounded = exact.copy()
        rounded[:wrong] = rounded[:wrong, ::-1]
        scores = compute_scores(exact, targets), compute_scores(rounded, targets)
        drop = AccuracyDrop(*scores, wrong)
        if wrong / 2 <= most:
            check_drop(drop, most)
            continue
        with pytest.raises(UserError, match=r"on 200 validation images, a drop of .* --max-drop"):
            check_drop(drop, most)
        refused += 1
    assert refused == 2


@pytest.mark.slow
def test_of_a_refused_int8_nothing_is_left(finished: Path) -> None:
    run = load_run(finished)
    images = synthetic_images(run.plan.resolution)
    targets = np.arange(len(images)) % len(run.classes)
    samples = ParitySamples(images, train=images, val=images, targets=targets)
    with pytest.raises(UserError, match=r"Expected at most -101; nothing was written"):
        write_export(run, ExportTarget("onnx", Path("a.onnx"), int8_drop=-101), samples)
    assert not list(Path().glob("*a.onnx*"))


@pytest.mark.slow
def test_int8_is_smaller_and_says_what_it_costs(finished: Path, home: Path, regraft) -> None:  # type: ignore[no-untyped-def]
    messages = Messages()
    chosen = options(home / "cache", reporter=messages)
    cost = export(finished, ExportRequest("onnx", int8=True), chosen).to_json()["quantised"]
    assert "Finding the ranges of int8 on" in messages.text
    done, small = load_run(finished), Path("exports/run.int8.onnx")
    write_onnx(done, Path("plain.onnx"))
    assert cost["n"] == done.scores["val"]["n"]
    assert cost["float32"]["accuracy"] == pytest.approx(done.scores["val"]["accuracy"], abs=0.1)
    assert cost["drop"] == cost["float32"]["accuracy"] - cost["int8"]["accuracy"]
    assert cost["int8"]["accuracy"] > 0.5
    weights = {
        path: sum(
            np.prod(one.dims)
            for one in onnx.load(path).graph.initializer
            if one.data_type == onnx.TensorProto.INT8
        )
        for path in (Path("plain.onnx"), small)
    }
    assert list(weights.values()) == [
        0,
        pytest.approx(done.scores["parameters"]["total"], rel=0.05),
    ]
    nodes = onnx.load(small).graph.node
    assert [node.op_type for node in nodes if "probabilities" in node.output] == ["Softmax"]
    exact = {name for node in nodes if node.name.startswith(RESIZE_PREFIX) for name in node.input}
    assert not [
        node.name for node in nodes if "Quantize" in node.op_type and exact & {*node.output}
    ]
    props = {one.key: one.value for one in onnx.load(small).metadata_props}
    assert (props["arithmetic"], props["plan_digest"]) == ("int8", done.plan.digest)
    words = ("--to", "onnx", "--int8", "--out", "again.onnx", "--cache", home / "cache", "-q")
    shown = regraft("export", finished, *words)
    assert f"int8: accuracy {cost['int8']['accuracy']:.4f}" in shown.out


def test_without_its_data_a_run_is_compared_on_synthetic_images_and_int8_is_refused(
    finished: Path, home: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    scores = json.loads((run / SCORES).read_text())
    request = ExportRequest("safetensors", "made")
    for origin, says in (
        (None, "does not know where its images came from"),
        (str(tmp_path / "gone"), "neither a known dataset nor an existing"),
    ):
        scores["origin"]["data"] = origin
        (run / SCORES).write_text(json.dumps(scores))
        messages = Messages()
        report = export(run, request, options(overwrite=True, reporter=messages))
        assert (report.images, report.parity.n) == ("made-up", 64)
        assert says in messages.text
        with pytest.raises(UserError, match=says):
            export(run, ExportRequest("onnx", int8=True))
    named = ExportRequest("safetensors", "made", data=home / "photos")
    assert export(run, named, options(overwrite=True)).images == "validation"
    other = write_folder(tmp_path / "other", toy(30))
    foreign = ExportRequest("safetensors", "made", data=other)
    with pytest.raises(UserError, match="of the images that the run"):
        export(run, foreign, options(overwrite=True))


class Unsteady(Run):
    """A run whose head has another bias when its weights are read for the first time."""

    reads = 0

    def weights(self) -> dict[str, torch.Tensor]:
        tensors = super().weights()
        if not Unsteady.reads:
            tensors["head.0.bias"] = tensors["head.0.bias"] + torch.tensor([1.0, 0.0, 0.0])
        Unsteady.reads += 1
        return tensors


@pytest.mark.parametrize("kind", ["torchscript", "timm"])
def test_an_export_that_answers_differently_is_not_left_behind(finished: Path, kind: str) -> None:
    done = load_run(finished)
    unsteady = Unsteady(done.path, done.plan, done.classes, done.scores)
    Unsteady.reads = 0
    Path("made").mkdir() if kind == "timm" else Path("made").write_text("an older one")
    target = ExportTarget(kind, Path("made"), overwrite=True)
    samples = ParitySamples(synthetic_images(32))
    reason = f"The {kind} export answers differently from the run: probabilities differ by up to"
    with pytest.raises(UserError, match=reason):
        write_export(unsteady, target, samples)
    assert Unsteady.reads == 2  # written from one, compared with the other
    assert [path.name for path in Path().iterdir()] == ["made"]
    assert kind == "timm" or Path("made").read_text() == "an older one"
    report = export(finished, ExportRequest(kind, "made"), options(overwrite=True))
    assert report.path.exists()


def test_parity_counts_classes_and_the_largest_difference() -> None:
    ours = np.array([[0.7, 0.3], [0.5004, 0.4996], [0.2, 0.8]])
    same = compare_answers(ours + 1e-5, ours)
    assert (same.other_class, same.n) == (0, 3)
    check_parity(same, "onnx")
    tie = compare_answers(np.array([[0.7, 0.3], [0.4999, 0.5001], [0.2, 0.8]]), ours)
    assert tie.other_class == 0
    check_parity(tie, "onnx")
    assert (
        compare_answers(ours[:, ::-1], ours).other_class == 2
    )  # of the second image both are as likely
    lost = ours.copy()
    lost[0, 0] = np.nan
    assert compare_answers(lost, ours).other_class == 0
    for wrong in (lost, ours[:, ::-1], ours + np.array([0.0011, 0.0]), ours * np.nan):
        with pytest.raises(UserError, match="answers differently from the run"):
            check_parity(compare_answers(wrong, ours), "onnx")


@pytest.mark.parametrize("how", ["cut short", "missing", "shape", "head"])
def test_altered_weights_are_refused(finished: Path, tmp_path: Path, how: str) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    damaged(run, how)
    for kind in ("onnx", "safetensors", "timm"):
        with pytest.raises(UserError, match="do not belong to its plan"):
            export(run, ExportRequest(kind, "made"))
        assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "onx"), "No export format is called 'onx'. Did you mean 'onnx'?"),
        (("--to", "timm", "--int8"), "--int8 was given with --to timm. Expected --to onnx"),
        (
            ("--to", "onnx", "--out", "there"),
            "there exists already. Expected a new name. Pass --overwrite",
        ),
        (("--to", "timm", "--out", "mine"), "mine exists already"),
        (
            ("--to", "timm", "--out", "mine", "--overwrite"),
            "mine holds thesis.txt, which no export wrote, so --overwrite does not touch it",
        ),
        (
            ("--to", "timm", "--out", "there", "--overwrite"),
            "there is a file, which --to timm does not write",
        ),
        (
            ("--to", "onnx", "--out", "empty", "--overwrite"),
            "empty is a folder, which --to onnx does not write",
        ),
        (("--to", "safetensors", "--out", "there/made"), "cannot be written"),
        (
            ("--to", "onnx", "--data", "nothing"),
            "is neither a known dataset nor an existing file or folder",
        ),
        ((), "Missing option '--to'"),
    ],
)
def test_every_mistake_is_one_sentence_and_exit_2(
    regraft, finished: Path, words: tuple[str, ...], says: str
) -> None:  # type: ignore[no-untyped-def]
    Path("there").write_text("mine")
    Path("empty").mkdir()
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("do not lose me")
    result = regraft("export", finished, *words, "-q")
    assert result.code == 2, result.out
    assert says in " ".join(result.err.split()), result.err
    assert "Traceback" not in result.err
    assert Path("there").read_text() == "mine"
    assert {path.name for path in Path().iterdir()} == {"there", "empty", "mine"}
    assert Path("mine/thesis.txt").read_text() == "do not lose me"


def test_a_missing_extra_is_one_sentence(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("onnx", "onnxscript") else find(name, *rest),
    )
    with pytest.raises(UserError) as caught:
        export(finished, ExportRequest("onnx"))
    message = str(caught.value)
    assert "--to onnx needs onnx, onnxscript, which cannot be imported" in message
    assert "pip install 'regraft[export]'" in message
    assert export(finished, ExportRequest("torchscript")).path.is_file()

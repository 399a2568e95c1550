"""A finished run for other programs: a format answers as the run does or is not left behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import safetensors
import timm
import torch
from PIL import Image

import regraft as api
from conftest import TINY, toy, write_folder
from regraft.data.decode import decode_image
from regraft.errors import UserError
from regraft.exporting.export import EXPORT_FORMATS, ExportTarget, ParitySamples, write_export
from regraft.exporting.onnx import OPSET, onnx_answers, write_onnx
from regraft.exporting.onnx_resize import RESIZE_PREFIX, resize_graph
from regraft.exporting.parity import check_parity, compare_answers, run_answers, synthetic_images
from regraft.exporting.safetensors_file import safetensors_answers
from regraft.exporting.timm_folder import timm_folder_answers, write_timm_folder
from regraft.exporting.torchscript import torchscript_answers
from regraft.models import transforms
from regraft.models.transforms import resize_center_crop, storage_size
from regraft.plans.schema import InputRules
from regraft.runs.folder import Run, load_run
from test_predict import damaged

ANSWERS = {
    "onnx": onnx_answers,
    "torchscript": torchscript_answers,
    "safetensors": safetensors_answers,
    "timm": timm_folder_answers,
    "hub-folder": timm_folder_answers,
}


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
    return fitted(home, "run")


def fitted(
    home: Path,
    name: str,
    technique: str = "linear-probe",
    network: str = TINY,
    changes: tuple[str, ...] = (),
    resolution: int = 32,
) -> Path:
    return api.fit(
        home / "photos",
        technique,
        network,
        out=home / name,
        weights="random",
        resolution=resolution,
        home=home / "cache",
        changes=changes,
    ).path


@pytest.mark.parametrize("kind", list(EXPORT_FORMATS))
def test_every_format_answers_as_the_run_and_is_where_it_was_asked_for(
    regraft, finished: Path, home: Path, kind: str
) -> None:  # type: ignore[no-untyped-def]
    told = json.loads(
        regraft(
            "export",
            finished,
            "--to",
            kind,
            "--out",
            "made",
            "--json",
            "-q",
            "--cache",
            home / "cache",
        ).out
    )
    assert (told["parity"]["images"], told["parity"]["other_class"]) == ("validation", 0)
    assert told["parity"]["n"] == len(load_run(finished).predictions()["keys"]) > 10
    assert told["parity"]["difference"] < 1e-5
    assert told["bytes"] > 1000
    assert ("as_fitted" in told) == (load_run(finished).plan.precision == "bfloat16")
    assert told.get("as_fitted", {"difference": 1})["difference"] > told["parity"]["difference"]
    assert {file.stat().st_mode & 0o444 for file in [Path("made"), *Path("made").glob("*")]} == {
        0o444
    }
    files = sorted((home / "photos").rglob("*.png"))[::5]
    ours = api.load(finished)
    ours.precision = "float32"
    images = [decode_image(file.read_bytes()) for file in files]
    theirs = run_answers(ANSWERS[kind](Path("made")), images)
    assert len(images) == 30
    assert np.ptp(theirs, axis=0).max() > 0.3
    assert np.abs(theirs - ours.predict_proba(files)).max() < 1e-5
    assert [path.name for path in Path().iterdir()] == ["made"]
    if kind != "onnx":
        shown = regraft("export", finished, "--to", kind, "-q")
        assert "probabilities differ by at most" in shown.out
        assert Path("exports", f"run{EXPORT_FORMATS[kind].suffix}").exists()


@pytest.mark.parametrize("network", ["test_vit", "test_efficientnet"])
def test_other_families_too_with_any_batch(home: Path, network: str) -> None:
    done = load_run(fitted(home, network, network=network, resolution=64))
    images = synthetic_images(64)
    for kind in ("onnx", "timm"):
        target = ExportTarget(kind, Path(f"made-{kind}"))
        report = write_export(done, target, ParitySamples(images, made_up=True))
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
    regraft, home: Path, name: str
) -> None:  # type: ignore[no-untyped-def]
    technique, changes, says = PLANS[name]
    path = fitted(home, name, technique, changes=changes)
    for kind in ("timm", "hub-folder"):
        refused = regraft("export", path, "--to", kind, "--out", "made", "-q")
        assert (refused.code, says in refused.err) == (2, True), refused.err
        assert "Export it to onnx, torchscript or safetensors, which can." in refused.err
        assert not list(Path().iterdir())
    samples = ParitySamples(synthetic_images(32, 9))
    for kind in ("onnx", "torchscript", "safetensors") if name == "several" else ("torchscript",):
        target = ExportTarget(kind, Path(kind))
        report = write_export(load_run(path), target, samples)
        assert report.parity.difference < 1e-5


def test_a_head_with_dropout_only_and_tuned_weights_fit_a_plain_timm_model(home: Path) -> None:
    path = fitted(
        home,
        "tuned",
        "fine-tune",
        changes=("phases.0.epochs=2", "head=dropout 0.3", "phases.0.batch_norm=adapt"),
    )
    samples = ParitySamples(synthetic_images(32))
    target = ExportTarget("timm", Path("made"))
    report = write_export(load_run(path), target, samples)
    assert report.parity.difference < 1e-4


def test_the_graph_makes_pixels_ready_to_the_last_bit() -> None:
    import onnxruntime

    chance, cases = np.random.default_rng(0), 0
    for side, kind in ((32, "bicubic"), (96, "bilinear"), (33, "bicubic")):
        rules = InputRules((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), kind)
        model = SimpleNamespace(resolution=side, rules=rules)
        made = resize_graph(model, 10, OPSET)  # type: ignore[arg-type]
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
            ready = np.stack(
                [
                    resize_center_crop(image, storage_size(image.shape[:2], side), kind)
                    for image in images
                ]
            )
            wanted = transforms.transform(
                torch.from_numpy(ready), torch.zeros(2, dtype=torch.int64), rules, side
            ).numpy()
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
    ours = api.load(finished).predict_proba(files)
    assert len(files) > 60
    assert np.abs(said - ours).max() < 0.05  # Pillow and PyTorch may round a grey level apart
    assert (said.argmax(1) == ours.argmax(1)).mean() > 0.95


def test_the_hub_folder_carries_its_evidence_and_no_path_of_this_machine(
    regraft, home: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    weights = tmp_path / "secret" / "mine.safetensors"
    weights.parent.mkdir()
    made = timm.create_model(TINY, num_classes=0)
    safetensors.torch.save_file(made.state_dict(), weights)
    api.fit(home / "photos", "linear-probe", TINY, weights=str(weights), resolution=32, out="run")
    assert regraft("evaluate", "run", "--split", "test", "-q").code == 0
    assert regraft("export", "run", "--to", "hub-folder", "--out", "made", "-q").code == 0
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


def test_int8_is_smaller_and_says_what_it_costs(
    regraft, finished: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    result = regraft(
        "export", finished, "--to", "onnx", "--int8", "--json", "-q", "--cache", home / "cache"
    )
    assert result.code == 0, result.err
    cost = json.loads(result.out)["quantised"]
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
    from regraft.cli.show_runs import exported

    exported(json.loads(result.out))
    assert f"int8: accuracy {cost['int8']['accuracy']:.4f}" in capfd.readouterr().out


def test_without_its_data_a_run_is_compared_on_made_up_images_and_int8_is_refused(
    regraft, finished: Path, home: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    run = shutil.copytree(finished, tmp_path / "run")
    scores = json.loads((run / "scores.json").read_text())
    for origin, says in (
        (None, "does not know where its images came from"),
        (str(tmp_path / "gone"), "neither a known dataset nor an existing"),
    ):
        scores["origin"]["data"] = origin
        (run / "scores.json").write_text(json.dumps(scores))
        shown = regraft("export", run, "--to", "safetensors", "--overwrite")
        assert "64 made-up images" in shown.out
        assert says in " ".join(shown.err.split())
        refused = regraft("export", run, "--to", "onnx", "--int8", "-q")
        assert (refused.code, says in " ".join(refused.err.split())) == (2, True), refused.err
    named = regraft(
        "export", run, "--to", "safetensors", "--data", home / "photos", "--overwrite", "-q"
    )
    assert "validation images" in named.out
    other = write_folder(tmp_path / "other", toy(30))
    refused = regraft("export", run, "--to", "safetensors", "--data", other, "--overwrite", "-q")
    assert (refused.code, "of the images that the run" in refused.err) == (2, True), refused.err


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
def test_an_export_that_answers_differently_is_not_left_behind(
    regraft, finished: Path, kind: str
) -> None:  # type: ignore[no-untyped-def]
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
    words = ("export", finished, "--to", kind, "--out", "made", "--overwrite", "-q")
    assert regraft(*words).code == 0


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
def test_altered_weights_are_refused(  # type: ignore[no-untyped-def]
    regraft, finished: Path, tmp_path: Path, how: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    damaged(run, how)
    for kind in ("onnx", "safetensors", "timm"):
        refused = regraft("export", run, "--to", kind, "--out", "made", "-q")
        assert (refused.code, "do not belong to its plan" in refused.err) == (2, True), refused.err
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


def test_a_missing_extra_is_one_sentence(
    regraft, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("onnx", "onnxscript") else find(name, *rest),
    )
    refused = regraft("export", finished, "--to", "onnx", "-q")
    assert (
        refused.code,
        "--to onnx needs onnx, onnxscript, which cannot be imported" in refused.err,
        "pip install 'regraft[export]'" in refused.err,
    ) == (2, True, True)
    assert regraft("export", finished, "--to", "torchscript", "-q").code == 0

"""Many images through a finished run: their containers, their faults, and interrupted jobs."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from conftest import toy, unsealed, write_folder
from fitting import Messages, Tiny, fit_tiny, options
from regraft.commands.options import PredictionTarget, PredictOptions
from regraft.commands.predict import predict, predict_to
from regraft.data.stream import StreamItem
from regraft.errors import UserError
from regraft.evaluation.calibration import fit_temperature
from regraft.evaluation.scores import log_softmax
from regraft.inference.classifier import Classifier, Prediction, load_classifier
from regraft.inference.writers import PredictionJob, ResultWriter
from regraft.options import Runtime
from regraft.runs.folder import load_run
from regraft.runs.layout import PREDICTIONS, WEIGHTS
from regraft.runs.writer import Judged, write_predictions
from regraft.system.hardware import has_bfloat16


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear probe of a tiny network, in the arithmetic that this machine has."""
    home = tmp_path_factory.mktemp("finished")
    return fit_tiny(toy(150), options(home / "cache", home / "run")).path


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


PLAIN = PredictOptions()


def rows_of(
    run: Path, *paths: str | Path, asked: PredictOptions = PLAIN
) -> dict[str, dict[str, Any]]:
    """Return the predictions of images by their names, as plain data."""
    rows = [prediction.to_json(asked.top) for prediction in predict(run, paths, asked)]
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def test_whatever_the_images_come_in_the_answers_are_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_folder(tmp_path / "photos", toy(30, seed=5))
    files = sorted(photos.rglob("*.png"))
    (photos / "notes.txt").write_text("no image, and no image's name")
    with zipfile.ZipFile("p.zip", "w") as packed:
        for file in files:
            packed.write(file, file.relative_to(photos))
    for kind in ("w", "w:gz"):
        with tarfile.open("p.tar" if kind == "w" else "p.tgz", kind) as tar:
            tar.add(photos, "photos")
    contents = [file.read_bytes() for file in files]
    pq.write_table(
        pa.table(
            {"image": [{"bytes": content, "path": None} for content in contents], "label": [0] * 30}
        ),
        "p.parquet",
        row_group_size=7,
    )
    Path("hub/data").mkdir(parents=True)
    pq.write_table(pa.table({"jpeg": contents}), "hub/data/p.parquet")
    Path("list.txt").write_text(
        "\n".join(map(str, [*files[:-1], "", photos / "absent.png"])) + "\n"
    )
    wanted = [row["label"] for row in rows_of(finished, *files).values()]
    assert len(set(wanted)) == 3
    for way in (
        photos,
        f"{photos}/**/*.png",
        f"{photos}/class?",
        "p.zip",
        "p.tar",
        "p.tgz",
        "p.parquet",
        "hub",
    ):
        assert [row["label"] for row in rows_of(finished, way).values()] == wanted, way
    with Path("list.txt").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        listed = list(rows_of(finished, "-").values())
    assert [row["label"] for row in listed] == [*wanted[:-1], None]
    assert listed[-1]["error"] == "there is nothing at this path"


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "the file is empty"),
    "text.jpg": (lambda: b"dear diary", "not an image"),
    "drawing.png": (
        lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "not an image but an SVG drawing",
    ),
    "page.jpg": (
        lambda: b"<!DOCTYPE html><html><body>404</body></html>",
        "not an image but a web page",
    ),
    "paper.png": (lambda: b"%PDF-1.7 ...", "not an image but a PDF"),
    "cut.png": (
        lambda: png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))[:900],
        "",
    ),
    "bomb.png": (lambda: bomb(30_000, 30_000), "more pixels than the 178,956,970 allowed"),
    "huge.png": (lambda: bomb(10_000, 10_000), ""),
}


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than it has bytes for."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_what_cannot_be_read_is_a_row_with_its_error_and_the_rest_goes_on(
    regraft, finished: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, (content, _) in BAD.items():
        (photos / name).write_bytes(content())
    for row, image in enumerate(toy(9).images.read(np.arange(9))):
        (photos / f"good{row}.png").write_bytes(png(image))
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as packed:
        for file in sorted(photos.iterdir()):
            packed.write(file, file.name)
    for given, folder in ((photos, photos), (tmp_path / "p.zip", tmp_path / "p.zip")):
        rows = rows_of(finished, given)
        assert len(rows) == len(BAD) + 9
        for name, (_, says) in BAD.items():
            row = rows[f"{folder}/{name}"]
            assert row["label"] is None
            assert row["error"]
            assert says in str(row["error"]), row
        assert all((row["error"] is None) == ("good" in path) for path, row in rows.items())
    shown = regraft("predict", finished, photos, "-q")
    assert f"{photos}/page.jpg  cannot be read: not an image but a web page\n" in shown.out


def test_damaged_containers_are_rows_with_their_errors(finished: Path, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", toy(30))
    with tarfile.open("whole.tgz", "w:gz") as tar:
        tar.add(photos, "photos")
    Path("cut.tgz").write_bytes(Path("whole.tgz").read_bytes()[:-4000])
    for name in ("a.zip", "b.tar", "c.parquet"):
        Path(name).write_bytes(b"nothing of that kind")
    pq.write_table(pa.table({"label": [1, 2]}), "d.parquet")
    rows = rows_of(finished, "a.zip", "b.tar", "c.parquet", "d.parquet", "cut.tgz", photos)
    errors = {path: str(row["error"]) for path, row in rows.items() if row["error"]}
    assert set(errors) == {"a.zip", "b.tar", "c.parquet", "d.parquet", "cut.tgz"}
    says = {
        "a.zip": "cannot be unpacked",
        "b.tar": "cannot be unpacked",
        "c.parquet": "no readable Parquet",
        "d.parquet": "no column of images",
        "cut.tgz": "any further",
    }
    assert all(says[path] in error for path, error in errors.items()), errors
    assert sum(path.startswith("cut.tgz/") for path in rows) > 0
    assert sum(path.startswith(str(photos)) for path in rows) == 30


def test_links_that_lead_out_of_the_folder_are_not_followed(finished: Path, tmp_path: Path) -> None:
    outside = write_folder(tmp_path / "outside", toy(9))
    photos = write_folder(tmp_path / "photos", toy(9))
    secret = next(outside.rglob("*.png"))
    (photos / "link.png").symlink_to(secret)
    (photos / "folder").symlink_to(outside)
    (photos / "inside.png").symlink_to(next(photos.rglob("0*.png")))
    (photos / "again").symlink_to(photos)
    (photos / "circle.png").symlink_to(photos / "circle.png")
    with tarfile.open("p.tar", "w") as tar:
        tar.add(photos / "link.png", "link.png")
        tar.add(secret, "real.png")
    for given in (photos, f"{photos}/*"):
        rows = rows_of(finished, given)
        out = {path for path, row in rows.items() if "leads out of" in str(row["error"])}
        assert out >= {f"{photos}/link.png", f"{photos}/folder"}
        assert rows[f"{photos}/circle.png"]["error"]
        assert rows[f"{photos}/inside.png"]["label"]
        assert not any(
            str(outside) in path or path.startswith(f"{photos}/folder/") for path in rows
        )
    rows = rows_of(finished, "p.tar")
    assert "not followed" in str(rows["p.tar/link.png"]["error"])
    assert rows["p.tar/real.png"]["label"]
    assert rows_of(finished, photos / "link.png")[f"{photos}/link.png"][
        "label"
    ]  # named by the user himself


def many(count: int) -> Iterator[StreamItem]:
    images = [png(image) for image in toy(12).images.read(np.arange(12))]
    for number in range(count):
        yield StreamItem(
            f"{number}", lambda number=number: b"" if number % 7 == 3 else images[number % 12]
        )  # type: ignore[misc]


def test_order_is_kept_and_few_images_are_held_whatever_their_number(finished: Path) -> None:
    classifier = Classifier(load_run(finished), batch_size=8)
    alone = [prediction.label for prediction in classifier.stream(many(12))]
    asked = 0
    predictions: list[Prediction] = []

    def counted() -> Iterator[StreamItem]:
        nonlocal asked
        for image in many(1000):
            asked += 1
            yield image

    most = 0
    for prediction in classifier.stream(counted()):
        predictions.append(prediction)
        most = max(most, asked - len(predictions))
    assert [prediction.path for prediction in predictions] == list(map(str, range(1000)))
    failed = [number for number, prediction in enumerate(predictions) if prediction.error]
    assert failed == list(range(3, 1000, 7))
    checked = [
        (number, prediction.label)
        for number, prediction in enumerate(predictions)
        if number >= 12 and number % 7 != 3 and number % 12 % 7 != 3
    ]
    assert len(checked) > 500
    assert all(label == alone[number % 12] for number, label in checked)
    threads = max(2, min(16, os.cpu_count() or 1))
    assert most <= 16 * (threads + 3) + 8  # pieces in flight, and a batch


def test_images_of_many_sizes_share_batches_and_answer_as_alone(finished: Path) -> None:
    rng = np.random.default_rng(0)
    classifier = Classifier(load_run(finished), precision="float32", batch_size=16)
    shapes = [(16, 16), (48, 48), (200, 90), (33, 50), (20, 20)]
    images = [
        rng.integers(0, 255, (*shapes[number % 5], 3), dtype=np.uint8) for number in range(40)
    ]
    together = classifier.logits(images)
    alone = np.concatenate([classifier.logits([image]) for image in images])
    assert np.abs(together - alone).max() < 1e-4
    assert np.ptp(alone, axis=0).min() > 1e-2


def test_short_memory_halves_the_batch_and_loses_nothing(finished: Path) -> None:
    images = toy(40).images.read(np.arange(40))
    expected = Classifier(load_run(finished), batch_size=32).logits(images)
    sizes: list[int] = []

    def refuse_large_batches(network: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    classifier = Classifier(load_run(finished), batch_size=32)
    classifier.inference.register_forward_pre_hook(refuse_large_batches)
    logits = classifier.logits(images)
    assert sizes[:3] == [32, 16, 8]
    assert max(sizes[2:]) == 8
    assert (logits.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("technique", ["linear-probe", "fine-tune-top", "multi-layer-probe"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_are_those_that_the_run_was_scored_by(
    technique: str, precision: str, tmp_path: Path
) -> None:
    data = toy(90)
    changes = [f"precision={precision}"]
    if technique != "linear-probe":
        changes.append("phases.0.epochs=1")
    done = fit_tiny(data, options(out="out"), Tiny(technique, overrides=tuple(changes)))
    kept = done.predictions()
    place = {key: row for row, key in enumerate(data.keys)}
    images = data.images.read(np.array([place[key] for key in kept["keys"]]))
    classifier = load_classifier("out")
    here = has_bfloat16("cpu")
    said = classifier.predict_proba(np.stack(images))
    wanted = np.exp(log_softmax(kept["logits"]))
    assert len(said) > 5
    assert np.abs(said - wanted).max() < (2e-3 if precision == "float32" or here else 5e-2)
    assert classifier.inference.precision == (precision if here else "float32")


class OpenedFiles:
    """Notes every file of a folder that is opened; one of them is answered by Ctrl-C, once."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.interrupt_at = ""
        original = open

        def noted(file: object, *args: object, **options: object) -> object:
            name = str(file)
            if name.startswith(str(folder)):
                self.names.append(name)
                if name == self.interrupt_at:
                    self.interrupt_at = ""
                    raise KeyboardInterrupt
            return original(file, *args, **options)  # type: ignore[call-overload]

        monkeypatch.setattr("builtins.open", noted)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_broken_job_goes_on_and_equals_one_that_was_never_broken(
    finished: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_folder(tmp_path / "photos", toy(60))
    odd = photos / 'class0/a "quoted", line\nbreak é.png'
    shutil.copy(next(photos.rglob("*.png")), odd)
    (photos / "class1" / "bad.png").write_bytes(b"")
    asked = PredictOptions(top=2, batch_size=6)
    whole = predict_to(finished, [photos], PredictionTarget(Path(f"whole.{kind}")), asked)
    assert (whole.rows, whole.new, whole.unreadable) == (62, 62, 1)
    path = Path(f"parts.{kind}")
    opened = OpenedFiles(photos, monkeypatch)
    opened.interrupt_at = sorted(map(str, photos.rglob("*.png")))[40]
    fresh = PredictionTarget(path)
    with pytest.raises(KeyboardInterrupt):
        predict_to(finished, [photos], fresh, asked)
    assert not opened.interrupt_at
    if kind != "parquet":
        with path.open("ab") as file:
            file.write(b'"half a row')
    with pytest.raises(UserError, match=f"{path} exists already"):
        predict_to(finished, [photos], fresh, asked)
    resumed = PredictionTarget(path, resume=True)
    with pytest.raises(UserError, match="was started by another job: top differ"):
        predict_to(finished, [photos], resumed)
    opened.names.clear()
    summary = predict_to(finished, [photos], resumed, asked)
    assert (summary.rows, summary.new, len(opened.names)) == (62, 32, 32)
    names = [row["path"] for row in table_of(path, kind)]
    assert len(set(names)) == len(names) == 62
    assert str(odd) in names
    assert table_of(path, kind) == table_of(Path(f"whole.{kind}"), kind)
    assert not Path("parts.parquet.parts").exists()
    Image.fromarray(toy(9).images.read(np.array([0]))[0]).save(photos / "class0" / "new.png")
    more = predict_to(finished, [photos], resumed, asked)
    assert (more.rows, more.new, len(table_of(path, kind))) == (63, 1, 63)
    again = predict_to(finished, [photos], PredictionTarget(path, overwrite=True), asked)
    assert (again.rows, again.new) == (63, 63)
    assert list(again.to_json()) == [
        "out",
        "format",
        "rows",
        "new",
        "unreadable",
        "abstained",
        "seconds",
    ]


def table_of(path: Path, kind: str) -> list[dict[str, object]]:
    if kind == "csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    elif kind == "json":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        rows = pq.read_table(path).to_pylist()
    for row in rows:  # a batch of other neighbours may round otherwise
        for name in [name for name in row if name and name.startswith("probability")]:
            row[name] = round(float(row[name]), 3) if row[name] not in ("", None) else None
        if isinstance(row.get("ranked"), list):
            row["ranked"] = [
                list(pair.values()) if isinstance(pair, dict) else pair for pair in row["ranked"]
            ]
            row["ranked"] = [[name, round(chance, 3)] for name, chance in row["ranked"]]
    return sorted(rows, key=lambda row: str(row["path"]))


KILLED_JOB = """
import json, os, sys
from itertools import islice
from pathlib import Path
from regraft.data.stream import iterate_images
from regraft.inference.classifier import Classifier
from regraft.inference.writers import PredictionJob, ResultWriter
from regraft.runs.folder import load_run

job = PredictionJob(**json.loads(sys.argv[3]))
results = ResultWriter(Path("p.parquet"), job, overwrite=True, part_rows=10)
classifier = Classifier(load_run(Path(sys.argv[1])), batch_size=8)
predictions = classifier.stream(iterate_images([sys.argv[2]]))
for _ in range(3):
    results.add([prediction.to_json(1) for prediction in islice(predictions, 8)])
os._exit(9)
"""


def test_a_killed_job_leaves_what_was_written_whole(finished: Path, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", toy(60))
    predict_to(finished, [photos], PredictionTarget(Path("p.parquet")))
    job = json.dumps(json.loads(Path("p.parquet.job.json").read_text())["job"])
    words = [sys.executable, "-c", KILLED_JOB, finished, photos, job]
    assert subprocess.run(words, check=False).returncode == 9
    assert not Path("p.parquet").exists()
    summary = predict_to(finished, [photos], PredictionTarget(Path("p.parquet"), resume=True))
    assert (summary.rows, summary.new) == (60, 44)  # a part of 16 was whole
    assert pq.read_metadata("p.parquet").num_rows == 60


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_file_written_in_parts_equals_one_written_at_once(kind: str) -> None:
    job = PredictionJob("run", "plan", "weights", kind, top=2)
    ranked = (("=a", 0.75), ("b", 0.25))
    rows = [Prediction(f"-{row}", "=a", 0.75, ranked).to_json(2) for row in range(37)]
    whole = ResultWriter(Path(f"whole.{kind}"), job)
    whole.add(rows)
    whole.finish()
    path, done = Path(f"parts.{kind}"), 0
    for stop in (5, 12, 24, 37):
        results = ResultWriter(path, job, resume=True, part_rows=6)
        assert results.rows == results.before == done
        stored = [row["path"] in results for row in rows]
        assert stored == [True] * done + [False] * (37 - done)
        for start in range(done, stop, 4):
            results.add(rows[start : min(stop, start + 4)])
        done = stop
        results.close()
    if kind == "parquet":
        assert len(list(Path("parts.parquet.parts").iterdir())) > 4
    results = ResultWriter(path, job, resume=True)
    results.finish()
    again = ResultWriter(path, job, resume=True)
    assert again.before == 37
    again.finish()
    assert table_of(path, kind) == table_of(Path(f"whole.{kind}"), kind)


def test_below_the_least_confidence_it_abstains_by_calibrated_probabilities(
    regraft, finished: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    photos = write_folder(tmp_path / "photos", toy(40, seed=9))
    run = shutil.copytree(finished, tmp_path / "run")
    kept = load_run(run).predictions()
    unsealed(run)
    rng = np.random.default_rng(0)
    wrong = kept["logits"].copy()
    wrong[::3] = rng.normal(size=wrong[::3].shape) * 20  # sure of itself, and often wrong
    write_predictions(run / PREDICTIONS, Judged(kept["keys"], kept["targets"], wrong))
    temperature = fit_temperature(wrong, kept["targets"])
    assert temperature > 1.5
    plain = rows_of(run, photos, asked=PredictOptions(top=3))
    calibrated = rows_of(run, photos, asked=PredictOptions(min_confidence=0.01)).values()
    least = round(sorted(row["probability"] for row in calibrated)[20], 4)
    messages = Messages()
    asked = PredictOptions(3, min_confidence=least, runtime=Runtime(reporter=messages))
    confident = rows_of(run, photos, asked=asked)
    assert f"logits divided by {temperature:.3f}" in messages.text
    abstained = 0
    for path, row in plain.items():
        other = confident[path]
        logits = np.log([probability for _, probability in row["ranked"]])
        expected = np.exp(log_softmax(logits[None] / temperature))[0]
        probabilities = [probability for _, probability in other["ranked"]]
        assert probabilities == pytest.approx(list(expected), abs=2e-3)
        assert row["label"] == row["ranked"][0][0] == other["ranked"][0][0]
        assert other["abstained"] == (other["probability"] < least) == (other["label"] is None)
        abstained += bool(other["abstained"])
    assert 0 < abstained < 40
    summary = predict_to(run, [photos], PredictionTarget(Path("p.csv")), asked)
    assert (summary.rows, summary.abstained) == (40, abstained)
    shown = regraft("predict", run, photos, "--min-confidence", least, "-q", "--out", "q.csv")
    assert f"40 images; {abstained} abstained" in shown.out
    assert "not sure: class" in regraft("predict", run, photos, "--min-confidence", least, "-q").out
    always_right = Classifier(load_run(run))
    right = np.eye(3)[kept["targets"]] * 5
    write_predictions(run / PREDICTIONS, Judged(kept["keys"], kept["targets"], right))
    assert always_right.temperature == 1.0
    (run / PREDICTIONS).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be calibrated"):
        predict(run, [photos], PredictOptions(min_confidence=least))


def test_a_reader_that_has_gone_is_no_fault(finished: Path, photos: Path) -> None:
    many = " ".join([str(photos)] * 20)  # more than a pipe holds
    command = f"{sys.executable} -m regraft predict {finished} {many} --top 3 -q"
    script = f"{command} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert "Error" not in done.stderr


def test_names_on_standard_input_may_be_bytes_that_are_no_text(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    name = b"caf\xe9.png"
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_bytes(next(photos.rglob("*.png")).read_bytes())
    utf8 = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [sys.executable, "-m", "regraft", "predict", finished, "-", "--json", "-q"],
        input=path + b"\n",
        capture_output=True,
        env=utf8,
    )
    assert done.returncode == 0, done.stderr.decode()
    row = json.loads(done.stdout)["predictions"][0]
    assert (row["path"], row["error"]) == (f"{tmp_path}/caf\\xe9.png", None)


def test_the_formats_that_are_printed(  # type: ignore[no-untyped-def]
    regraft, finished: Path, photos: Path
) -> None:
    words = ("predict", finished, photos / "class0", "--top", 2, "-q")
    lines = list(csv.DictReader(io.StringIO(regraft(*words, "--format", "csv").out)))
    assert len(lines) == 40
    assert list(lines[0]) == [
        "path",
        "label",
        "probability",
        "abstained",
        "error",
        "label_1",
        "probability_1",
        "label_2",
        "probability_2",
    ]
    assert all(row["label"] == row["label_1"] for row in lines)
    rows = [json.loads(line) for line in regraft(*words, "--format", "json").out.splitlines()]
    paths = [row["path"] for row in lines]
    assert [row["path"] for row in rows] == paths
    assert [len(row["ranked"]) for row in rows] == [2] * 40
    assert len(regraft(*words).out.splitlines()) == 40


def damaged(run: Path, how: str) -> None:
    path = unsealed(run) / WEIGHTS
    tensors = safetensors.torch.load_file(path)
    name = next(
        name for name in tensors if name.startswith("backbone.") and name.endswith("conv2.weight")
    )
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-1000])
        return
    if how == "missing":
        tensors.pop(name)
    elif how == "unknown":
        tensors["backbone.layer9.weight"] = torch.zeros(1)
    elif how == "shape":
        tensors[name] = torch.zeros(2, 2)
    else:
        tensors["head.0.weight"] = torch.zeros(7, 7)
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize("how", ["cut short", "missing", "unknown", "shape", "head"])
def test_altered_weights_are_refused(
    finished: Path, photos: Path, tmp_path: Path, how: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    damaged(run, how)
    with pytest.raises(UserError, match="do not belong to its plan"):
        predict_to(run, [photos], PredictionTarget(Path("p.csv")))
    assert not Path("p.csv").exists()


def test_nothing_is_read_before_the_arguments_are_known_to_be_good(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    for asked, says in (
        (PredictOptions(min_confidence=90), "--min-confidence 90 was given. Expected a probab"),
        (PredictOptions(min_confidence=0), "--min-confidence 0 was given"),
        (PredictOptions(batch_size=-1), "--batch-size -1 was given"),
    ):
        with pytest.raises(UserError, match=says):
            predict(finished, [photos], asked)
    with pytest.raises(UserError, match="There is nothing at absent.png"):
        predict(finished, ["absent.png", photos])
    with pytest.raises(UserError, match="is no run"):
        predict(tmp_path, [photos])
    Path("empty").mkdir()
    with pytest.raises(UserError, match="No image was found in empty"):
        list(predict(finished, ["empty"]))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("absent.png",), "There is nothing at absent.png. Expected image files"),
        (("*.jpg",), "There is nothing at *.jpg"),
        (("PHOTOS", "--format", "xml"), "No format is called 'xml'"),
        (("PHOTOS", "--format", "parquet"), "--format parquet was given without a file"),
        (("PHOTOS", "--out", "p.txt"), "does not say in which format to write"),
        (
            ("PHOTOS", "--format", "table", "--out", "p.csv"),
            "does not say in which format to write",
        ),
        (("PHOTOS", "--json", "--format", "csv"), "--json and --format csv were both given"),
        (("PHOTOS", "--resume"), "--resume and --overwrite were given without a file"),
        (
            ("PHOTOS", "--min-confidence", "90"),
            "--min-confidence 90 was given. Expected a probability",
        ),
        (("PHOTOS", "--min-confidence", "0"), "--min-confidence 0 was given"),
        (("PHOTOS", "--batch-size", "-1"), "--batch-size -1 was given"),
        (("PHOTOS", "--top", "0"), "Invalid value for '--top'"),
        (("PHOTOS", "--out", "there.csv"), "there.csv exists already. Expected a new file."),
        (("PHOTOS", "--out", "there.csv", "--resume"), "has no there.csv.job.json beside it"),
        (("PHOTOS", "--out", "folder.csv"), "folder.csv is a folder"),
        (("PHOTOS", "--out", "there.csv/p.csv"), "cannot be written"),
        (("EMPTY", "--out", "p.csv"), "No image was found in"),
    ],
)
def test_every_mistake_is_one_sentence_and_exit_2(
    regraft, finished: Path, photos: Path, words: tuple[str, ...], says: str
) -> None:  # type: ignore[no-untyped-def]
    Path("there.csv").write_text("mine\n")
    Path("folder.csv").mkdir()
    Path("empty").mkdir()
    named = {"PHOTOS": str(photos), "EMPTY": "empty"}
    result = regraft("predict", finished, *(named.get(word, word) for word in words), "-q")
    assert result.code == 2, result.out
    assert says in " ".join(result.err.split()), result.err
    assert "Traceback" not in result.err
    assert Path("there.csv").read_text() == "mine\n"
    assert {path.name for path in Path().iterdir()} == {"there.csv", "folder.csv", "empty"}


def test_the_python_interface_takes_paths_and_arrays_and_names_what_it_cannot_read(
    finished: Path, photos: Path
) -> None:
    classifier = load_classifier(finished)
    files = sorted(photos.rglob("*.png"))[:5]
    chances = classifier.predict_proba(files)
    assert chances.shape == (5, 3)
    assert np.abs(chances.sum(axis=1) - 1).max() < 1e-9
    assert classifier.predict(
        np.stack([np.asarray(Image.open(file)) for file in files])
    ) == classifier.predict(files)
    predictions = list(classifier.files(files))
    assert [prediction.label for prediction in predictions] == classifier.predict(files)
    for prediction in predictions:
        row = prediction.to_json(2)
        assert list(row) == ["path", "label", "probability", "ranked", "abstained", "error"]
        assert row["ranked"] == [list(pair) for pair in prediction.ranked[:2]]
        assert len(prediction.to_json()["ranked"]) == 3
    assert classifier.predict([]) == []
    pixels = np.asarray(Image.open(files[0]))
    mistakes = {
        "1 image cannot be decoded": [photos],
        r"/dev/null \(not a regular file": ["/dev/null"],
        "images is the single path": str(files[0]),
        "the type float64. Expected images .* uint8, or paths": pixels[None] / 255,
        "has the shape .* single image into a batch": pixels,
        "grey channel": pixels[None, :, :, 0],
        "images holds ndarray": [pixels],
    }
    for says, given in mistakes.items():
        with pytest.raises(UserError, match=says):
            classifier.predict(given)

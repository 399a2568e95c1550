"""Prints what using a finished run costs and whether its exports say the same: predict against extraction, latency of one image, parity.

    python benchmarks/using.py --cifar FOLDER [--images 10000] [--resolution 96] [--trials 5] [--run FOLDER] [--int8] [--out using.json]

A linear probe is fitted on 3,000 images unless a run is given. Rates, in turns: `predict` from encoded images to rows; and extraction, the same network
over pixels that are decoded already, into the cache. Latency: one decoded 32 px image to probabilities, in turns, medians. Parity with the run in float32:
the test images through ONNX, the timm folder with the run's pixels and with timm's own transform, and the run in its own arithmetic.
Aims: predict at least 0.8 of extraction; ONNX at most 0.6 of eager PyTorch; the same class on 99.9 %, probabilities within 1e-3.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from measure import interleaved, write
from regraft.commands.export import export
from regraft.commands.fit import fit
from regraft.commands.options import ExportRequest, PredictionTarget
from regraft.commands.predict import predict_to
from regraft.data.dataset import make_dataset
from regraft.data.decode import decode_image
from regraft.data.images import ArrayImages
from regraft.data.stream import count_images, iterate_images
from regraft.evaluation.scores import log_softmax
from regraft.exporting.parity import run_answers
from regraft.exporting.timm_folder import timm_folder_answers
from regraft.features.parts import PartImages
from regraft.inference.classifier import Classifier
from regraft.options import CacheOptions, DataOptions, Options, PlanOverrides, RunDir, Runtime
from regraft.runs.folder import Run, load_run
from regraft.system.hardware import tune_allocator

_LATENCIES = 50  # single images a trial


def rates(
    finished: Run, given: list[str], count: int, trials: int, home: Path
) -> dict[str, dict[str, float]]:
    """Return images a second of `predict` from encoded images, and of the frozen part over decoded ones."""
    classifier = Classifier(finished)
    pixels = np.stack([decode_image(one.read()) for one in islice(iterate_images(given), count)])
    data = make_dataset(
        "pixels",
        np.arange(count) % 2,
        ["a", "b"],
        ArrayImages(pixels),
        keys=[f"{row:07}" for row in range(count)],
    )
    cut = classifier.network.features_cut()
    turns = iter(range(1_000_000))

    def part() -> PartImages:
        cache = CacheOptions(home / f"turn-{next(turns)}")
        return PartImages("train", data, cache, Runtime(compile="off"))

    def extraction() -> float:
        images = part()
        images.pixels(cut.preprocess)  # decoded before
        started = time.perf_counter()
        images.extract([cut])
        return count / (time.perf_counter() - started)

    def predicting() -> float:
        started = time.perf_counter()
        done = sum(1 for _ in classifier.stream(islice(iterate_images(given), count)))
        return done / (time.perf_counter() - started)

    def written() -> float:
        started = time.perf_counter()
        target = PredictionTarget(home / "rows.parquet", overwrite=True)
        summary = predict_to(finished.path, given, target)
        return float(summary.rows) / (time.perf_counter() - started)

    ways: dict[str, Callable[[], float]] = {
        "extraction, decoded before": extraction,
        "predict, from encoded images": predicting,
    }
    if count >= count_images(given):
        ways["predict --out, network put together anew"] = written
    return interleaved(ways, trials)


def latencies(
    finished: Run, made: Path, image: NDArray[np.uint8], trials: int
) -> dict[str, dict[str, float]]:
    """Return milliseconds from one decoded image to probabilities: medians of each turn."""
    exact, usual = (
        Classifier(finished, "cpu", "float32"),
        Classifier(finished, "cpu"),
    )
    preprocess = exact.preprocess
    eager = timm.create_model(f"local-dir:{made / 'timm'}", pretrained=True).eval()
    one = image[None]

    def plainly() -> Any:
        with torch.inference_mode():
            return eager(preprocess(torch.from_numpy(one))).softmax(dim=1)

    ways: dict[str, Callable[[], Any]] = {
        "eager PyTorch (timm, float32)": plainly,
        "run, float32": lambda: exact.predict_proba(one),
    }
    ways["run, as fitted"] = lambda: usual.predict_proba(one)
    for name, file in (("ONNX", "run.onnx"), ("ONNX int8", "run.int8.onnx")):
        if (made / file).is_file():
            session = _session(made / file)
            ways[name] = lambda session=session: session.run(None, {"images": one})  # type: ignore[misc]
    found: dict[str, dict[str, float]] = interleaved(
        {name: _median_ms(way) for name, way in ways.items()}, trials
    )
    return found


def parities(
    finished: Run, made: Path, pixels: list[NDArray[np.uint8]]
) -> dict[str, dict[str, Any]]:
    """Return for each artefact the share of images with the run's class, and the largest difference of a probability."""
    ours = np.exp(log_softmax(Classifier(finished, "cpu", "float32").logits(pixels)))
    session = _session(made / "run.onnx")
    said = {
        "ONNX": run_answers(lambda images: session.run(None, {"images": images})[0], pixels),
        "timm folder, the run's pixels": run_answers(timm_folder_answers(made / "timm"), pixels),
        "timm folder, timm's transform": run_answers(_transformed(made / "timm"), pixels),
        "run as fitted": np.exp(log_softmax(Classifier(finished, "cpu").logits(pixels))),
    }
    return {
        name: {
            "same_class": float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean()),
            "difference": float(np.abs(theirs - ours).max()),
            "mean_difference": float(np.abs(theirs - ours).max(axis=1).mean()),
            "n": len(ours),
        }
        for name, theirs in said.items()
    }


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _median_ms(way: Callable[[], Any]) -> Callable[[], float]:
    def once() -> float:
        times = []
        for _ in range(_LATENCIES):
            started = time.perf_counter()
            way()
            times.append(time.perf_counter() - started)
        return float(np.median(times) * 1000)

    return once


def _transformed(path: Path) -> Any:
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model), is_training=False
    )

    def answers(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = (
                model(torch.stack([transform(Image.fromarray(image)) for image in images]))
                .softmax(dim=1)
                .numpy()
            )
        return found

    return answers


def main() -> None:
    """Fit or take a run, export it, measure, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar", type=Path, required=True, help="a folder with CIFAR-10 as Parquet"
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--train", type=int, default=3000, help="training images")
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--run", type=Path, help="a finished linear probe of these images")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory() as home:
        measure(options, Path(home))


def fitted(options: argparse.Namespace, home: Path) -> Run:
    """Return a linear probe on some of the images."""
    chosen = Options(
        data=DataOptions(train_images=options.train, val_images=1000),
        run_dir=RunDir(out=home / "run"),
    )
    return fit(
        options.cifar, overrides=PlanOverrides(resolution=options.resolution), options=chosen
    )


def measure(options: argparse.Namespace, home: Path) -> None:
    """Measure everything, with `home` for what is left by the way."""
    os.environ.setdefault("REGRAFT_CACHE", str(home / "cache"))
    finished = load_run(options.run) if options.run else fitted(options, home)
    test = [str(path) for path in sorted(options.cifar.glob("test*.parquet"))]
    told = {}
    for kind, name in (("onnx", "run.onnx"), ("timm", "timm")):
        told[kind] = export(finished, ExportRequest(kind, home / name)).to_json()
    if options.int8:
        request = ExportRequest("onnx", home / "run.int8.onnx", int8=True)
        told["int8"] = export(finished, request).to_json()
    found = rates(finished, test, options.images, options.trials, home)
    base = found["extraction, decoded before"]["median"]
    for name, rate in found.items():
        print(
            f"{name:44} {rate['median']:9,.0f} images/s   {rate['smallest']:,.0f} – {rate['largest']:,.0f}   {rate['median'] / base:5.2f} of extraction"
        )
    pixels = [decode_image(one.read()) for one in islice(iterate_images(test), options.images)]
    late = latencies(finished, home, pixels[0], options.trials)
    slow = late["eager PyTorch (timm, float32)"]["median"]
    for name, ms in late.items():
        print(
            f"{name:44} {ms['median']:9.2f} ms         {ms['smallest']:.2f} – {ms['largest']:.2f}   {ms['median'] / slow:5.2f} of eager"
        )
    same = parities(finished, home, pixels)
    for name, one in same.items():
        apart = f"probabilities differ by up to {one['difference']:.1e}, {one['mean_difference']:.1e} in the mean"
        print(f"{name:44} {one['same_class']:9.2%} same class of {one['n']:,}; {apart}")
    if options.int8:
        cost = told["int8"]["quantised"]
        print(
            f"int8: accuracy {cost['int8']['accuracy']:.4f} instead of {cost['float32']['accuracy']:.4f} on {cost['n']:,} validation images"
        )
    write(
        options.out,
        rates=found,
        latencies=late,
        parity=same,
        exports=told,
        resolution=options.resolution,
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()

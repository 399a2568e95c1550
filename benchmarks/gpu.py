"""Prints what a CUDA GPU takes for the two things that people wait for: all images through a frozen network, and tuning the whole of it.

    python benchmarks/gpu.py [--cifar FOLDER] [--images 50000] [--resolution 224] [--trials 3] [--small-on-cpu] [--out gpu.json]

Extraction: random pixels of 32 px, resized on the device, through EfficientNet-Lite0 and ResNet50, warm. With --cifar also `regraft fit
--technique fine-tune` on all of it and its accuracy on the test part. Without a GPU it says so and ends; --small-on-cpu runs 200 images at
64 px instead, to show that the script works.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measure import spread, timed, write
from regraft.data.dataset import make_dataset
from regraft.data.images import ArrayImages
from regraft.features.extract import ModelInputs, extract_features, store_pixels
from regraft.models.network import TransferNetwork
from regraft.models.pool import BackbonePool
from regraft.options import CacheOptions, Runtime
from regraft.plans.techniques import make_technique_plan
from regraft.system.hardware import has_bfloat16, tune_allocator

_NETWORKS = ("tf_efficientnet_lite0", "resnet50")


def extraction(
    name: str, images: int, resolution: int, trials: int, device: str
) -> dict[str, float]:
    """Return the spread of seconds that all images take through one frozen network, pixels to entry, after a pass that warms up."""
    rng = np.random.default_rng(0)
    data = make_dataset(
        "random",
        np.arange(images) % 10,
        [str(n) for n in range(10)],
        ArrayImages(rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)),
    )
    pool = BackbonePool(device)
    values = {
        "weights": "random",
        "resolution": resolution,
        "precision": "bfloat16" if has_bfloat16(device) else "float32",
    }
    plan = make_technique_plan("linear-probe", pool.info(name), data.facts)
    plan = plan.model_copy(update=values)
    network = TransferNetwork(pool.load(plan), plan, data.classes)
    cut = network.features_cut()
    times = []
    with tempfile.TemporaryDirectory() as folder:
        home = CacheOptions(Path(folder))
        pixels = store_pixels(data, network.preprocess, home, Runtime())
        inputs = ModelInputs(pixels, np.arange(images), data.hashes, network.preprocess)
        for trial in range(trials + 1):
            empty = CacheOptions(Path(folder) / f"trial-{trial}")
            started = time.perf_counter()
            extract_features([cut], inputs, empty, Runtime())
            times.append(time.perf_counter() - started)
    return spread(times[1:])


def tuning(cifar: Path, trials: int, more: list[str]) -> dict[str, Any]:
    """Return wall seconds and test accuracy of tuning everything on all images."""
    walls, accuracy = [], 0.0
    for trial in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            words = [
                "fit",
                str(cifar),
                "--technique",
                "fine-tune",
                "--out",
                "run",
                "-q",
                "--seed",
                str(trial),
                *more,
            ]
            walls.append(timed(words, Path(folder))[0])
            accuracy = json.loads(
                timed(["evaluate", "run", "--split", "test", "--json", "-q"], Path(folder))[1]
            )["test"]["accuracy"]
    return {**spread(walls), "test_accuracy": accuracy}


def main() -> None:
    """Measure what the machine allows and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--small-on-cpu", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.small_on_cpu:
        print(
            "PyTorch finds no CUDA GPU here, so there is nothing to measure. --small-on-cpu shows that the script works."
        )
        return
    tune_allocator()
    device, more = "cuda", list[str]()
    if not torch.cuda.is_available():
        device, options.images, options.resolution, options.trials = "cpu", 200, 64, 1
        more = ["--train-images", "200", "--resolution", "64", "--set", "phases.0.epochs=1"]
    found: dict[str, Any] = {}
    for name in _NETWORKS:
        found[name] = extraction(name, options.images, options.resolution, options.trials, device)
        print(
            f"{name:24} {options.images:,} images at {options.resolution} px: {found[name]['median']:.2f} s "
            f"({found[name]['smallest']:.2f} – {found[name]['largest']:.2f})"
        )
    if options.cifar:
        found["fine-tune"] = tuning(options.cifar.resolve(), options.trials, more)
        print(
            f"fine-tune on CIFAR-10: {found['fine-tune']['median']:.1f} s, test accuracy {found['fine-tune']['test_accuracy']:.4f}"
        )
    write(options.out, device=device, images=options.images, resolution=options.resolution, **found)


if __name__ == "__main__":
    main()

"""Prints how near the frozen part runs to the machine's limit: images a second, and the share of the measured peak of a matrix product.

    python benchmarks/limits.py [--resolution 96] [--trials 7] [--backbones a,b] [--compile] [--out limits.json]

Each network runs plainly (timm's model in eval mode, float32, with and without glibc's memory kept), and as regraft runs it: BatchNorm
folded, channels-last, in float32 and bfloat16; with --compile also compiled by inductor. The ways take turns, the median counts.
Weights are random where none are at hand; they do not change the time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from measure import interleaved, spread, write
from regraft.models.backbone import load_backbone
from regraft.models.compile import compile_prefix, count_multiply_adds
from regraft.models.cut import cut_backbone
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn
from regraft.models.parts import Prefix
from regraft.system.hardware import tune_allocator

BACKBONES = "tf_efficientnet_lite0,resnet50,densenet121,vgg16"
_SIDE = 4096  # of the matrices
_BATCH = 100


def peaks(trials: int) -> dict[str, float]:
    """Return the operations a second of a matrix product, by arithmetic: the best of the trials."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = torch.randn(_SIDE, _SIDE).to(dtype), torch.randn(_SIDE, _SIDE).to(dtype)
        times = []
        for _ in range(trials + 1):
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
        found[name] = 2 * _SIDE**3 / min(times)
    return found


def plain(name: str, resolution: int, batch: int) -> Callable[[], float]:
    """Return a function that gives images a second of timm's own model, as tutorials run it."""
    model = timm.create_model(name, num_classes=0).eval()
    images = torch.randn(batch, 3, resolution, resolution)

    def run() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            model(images)
        return batch / (time.perf_counter() - started)

    return run


def ours(quick: Prefix, run: Any, resolution: int, precision: str) -> Callable[[], float]:
    """Return a function that gives images a second of a frozen part."""
    images = torch.randn(_BATCH, 3, resolution, resolution).to(memory_format=torch.channels_last)

    def once() -> float:
        started = time.perf_counter()
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            run(images)
        return _BATCH / (time.perf_counter() - started)

    return once


def network(name: str, resolution: int, trials: int, compiling: bool) -> dict[str, Any]:
    """Return the rates of one network and its multiply-adds an image."""
    source = load_backbone(name, "random", resolution)
    prefix, _ = cut_backbone(source, "head")
    quick, half = fuse_conv_bn(prefix), cast_bfloat16(fuse_conv_bn(prefix))
    ways = {"plain float32": plain(name, resolution, _BATCH)}
    ways |= {
        "regraft float32": ours(quick, quick, resolution, "float32"),
        "regraft bfloat16": ours(half, half, resolution, "bfloat16"),
    }
    took = 0.0
    if compiling:
        images = torch.randn(_BATCH, 3, resolution, resolution).to(
            memory_format=torch.channels_last
        )
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            run = compile_prefix(half, images)
        took = time.perf_counter() - started
        if run is not None:
            ways["regraft bfloat16, compiled"] = ours(half, run, resolution, "bfloat16")
    rates = interleaved(ways, trials)
    alone = [float(line) for line in _child(name, resolution, trials).split()]
    rates["plain float32, memory not kept"] = spread(alone)
    return {
        "multiply_adds": count_multiply_adds(quick, torch.zeros(1, 3, resolution, resolution)),
        "compile_seconds": took,
        "rates": rates,
    }


def _child(name: str, resolution: int, trials: int) -> str:
    """Run the plain network in a process in which the allocator is left as it comes."""
    words = [
        sys.executable,
        __file__,
        "--plain",
        name,
        "--resolution",
        str(resolution),
        "--trials",
        str(trials),
    ]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--backbones", default=BACKBONES)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.plain:
        run = plain(options.plain, options.resolution, _BATCH)
        run()
        print("\n".join(str(run()) for _ in range(options.trials)))
        return
    tune_allocator()
    peak = peaks(options.trials)
    print(
        f"matrix product: float32 {peak['float32'] / 1e9:,.0f}, bfloat16 {peak['bfloat16'] / 1e9:,.0f} thousand million operations a second\n"
    )
    print(
        f"{'network':24} {'way':32} {'images/s':>9} {'smallest':>9} {'largest':>9} {'of plain':>9} {'of peak':>8}"
    )
    found = {}
    for name in options.backbones.split(","):
        found[name] = network(name, options.resolution, options.trials, options.compile)
        base = found[name]["rates"]["plain float32"]["median"]
        for way, rate in found[name]["rates"].items():
            share = (
                2
                * found[name]["multiply_adds"]
                * rate["median"]
                / peak["bfloat16" if "bfloat16" in way else "float32"]
            )
            figures = f"{rate['median']:9,.0f} {rate['smallest']:9,.0f} {rate['largest']:9,.0f} {rate['median'] / base:8.2f}× {share:8.0%}"
            print(f"{name:24} {way:32} {figures}")
        if options.compile:
            print(f"{name:24} {'compiling, s':32} {found[name]['compile_seconds']:9.1f}")
    peak = {
        name: max(value, again)
        for (name, value), again in zip(peak.items(), peaks(options.trials).values(), strict=True)
    }
    write(options.out, peak=peak, networks=found, resolution=options.resolution, batch=_BATCH)


if __name__ == "__main__":
    main()

"""Prints what the probe costs, what it finds on CIFAR-10, how its solver compares with scikit-learn's, and whether its plans keep their promise.

    python benchmarks/probe.py --cifar FOLDER [--parts matrix,passes,solver,promise] [--images 5000,2000] [--data digits …] [--trials 5] [--out probe.json]

The matrix is one command in a process of its own with an empty cache, imports included. A pass for all places and one for the last only take turns.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from measure import interleaved, timed, write
from regraft.commands.resolve import resolve_plan
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.features.extract import extract_features
from regraft.features.parts import PartImages
from regraft.models.network import Cut
from regraft.models.pool import BackbonePool
from regraft.options import CacheOptions, PlanOverrides, Runtime
from regraft.plans.schema import Plan
from regraft.probing.networks import ProbeNetworks
from regraft.system.hardware import tune_allocator
from regraft.training.linear import CrossEntropy, LabelledFeatures, fit_logistic

RESOLUTIONS = (32, 64, 96, 128)
L2 = tuple(float(value) for value in np.geomspace(1e-4, 1.0, 10))


def subset(cifar: str, home: Path, train: int, val: int) -> Path:
    """Write so many training and test images of CIFAR-10 as a Parquet folder with the parts train, val and test; returns it."""
    data = load_dataset(cifar, home)
    split = data.split()
    folder = home / f"cifar-{train}-{val}"
    folder.mkdir()
    chosen = {
        "train": data.subset(split.train, train),
        "validation": data.subset(split.test, val),
        "test": np.setdiff1d(split.test, data.subset(split.test, val))[:100],
    }
    for part, rows in chosen.items():
        images = []
        for image in data.images.read(rows):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "png")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"image": images, "label": data.labels[rows]})
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return folder


def matrix(cifar: str, home: Path, images: tuple[int, int]) -> dict[str, Any]:
    """The whole probe of EfficientNet-Lite0, in a process of its own."""
    folder = subset(cifar, home, *images)
    words = [
        "probe",
        str(folder),
        "--resolutions",
        ",".join(map(str, RESOLUTIONS)),
        "--out",
        "matrix",
        "-q",
        "--json",
    ]
    seconds, printed, memory = timed(words, home)
    told = json.loads(printed)
    print(
        f"\nprobe of {told['images']['train']:,} + {told['images']['val']:,} images: {seconds:.1f} s ({told['seconds']:.1f} s of work), {memory:,} MB at most\n"
    )
    print(
        "| px | best place alone | val | the end alone | k-NN at the end | a few places | all places |\n|---|---|---|---|---|---|---|"
    )
    for side in RESOLUTIONS:
        mine = [row for row in told["places"] if row["resolution"] == side]
        alone = [row for row in mine if row["kind"] == "single"]
        best = max(alone, key=lambda row: row["accuracy"])
        joined = {row["kind"]: row for row in mine}
        few = joined.get("greedy")
        shown = f"{few['accuracy']:.4f} ({len(few['places'])})" if few else "–"
        print(
            f"| {side} | {best['places'][0]} ({len(alone) - alone.index(best)} from the end) | {best['accuracy']:.4f} | {alone[-1]['accuracy']:.4f} | "
            f"{alone[-1]['knn']:.4f} | {shown} | {joined['all']['accuracy']:.4f} |"
        )
    for choice in told["recommendations"]:
        print(f"{choice['budget']}: {choice['name']}, {choice['accuracy']:.4f}; {choice['why']}")
    print(f"learning curve: {json.dumps(told['learning_curve'])}\n")
    again, _, _ = timed([*words[:5], "again", *words[6:]], home)
    print(f"the same again with everything kept: {again:.1f} s")
    return {"seconds": seconds, "again": again, "memory_mb": memory, "told": told}


def plan_at(data: Dataset, resolution: int, pool: BackbonePool) -> Plan:
    """Return the linear probe's plan at a resolution."""
    overrides = PlanOverrides(resolution=resolution)
    return resolve_plan("linear-probe", data, data.split(), overrides, pool)


def passes(cifar: str, home: Path, trials: int) -> dict[str, Any]:
    """One pass that takes all layers beside one that takes the last only: 5,000 images each."""
    data = load_dataset(cifar, home)
    rows = data.subset(data.split().train, min(5000, len(data.split().train)))
    networks = ProbeNetworks(BackbonePool("cpu"))
    measured: dict[str, Any] = {}
    print("\n| px | last place only, s | all places, s | times |\n|---|---|---|---|")
    for side in RESOLUTIONS:
        plan = plan_at(data, side, networks.pool)
        names = [*list(networks.load(plan).blocks)[:-1], "end"]
        every = [networks.cut(plan, name) for name in names]
        warm = PartImages("train", data.take(rows), CacheOptions(home), Runtime(compile="off"))
        warm.pixels(every[-1].preprocess)

        def once(cuts: list[Cut], part: PartImages = warm) -> float:
            with tempfile.TemporaryDirectory(dir=home) as empty:
                inputs = part.inputs(cuts[0].preprocess)
                started = time.perf_counter()
                extract_features(cuts, inputs, CacheOptions(empty), part.runtime)
                return time.perf_counter() - started

        ways = {"last": lambda: once(every[-1:]), "all": lambda: once(every)}  # noqa: B023
        spreads = interleaved(ways, trials)
        last = spreads["last"]["median"]
        took = spreads["all"]["median"]
        measured[side] = {**spreads, "times": took / last, "places": len(names)}
        print(
            f"| {side} | {last:.3f} | {took:.3f} ({len(names)} places) | {took / last:.2f} |",
            flush=True,
        )
    return measured


def solver(cifar: str, home: Path, count: int) -> dict[str, Any]:
    """The solved probe beside scikit-learn's LogisticRegression on the same features and L2 values."""
    from sklearn.linear_model import LogisticRegression

    data: Dataset = load_dataset(cifar, home)
    rows = np.sort(np.concatenate([data.split().train, data.split().val]))
    if count < len(rows):
        rows = data.subset(rows, count)
    test = data.split().test
    networks = ProbeNetworks(BackbonePool("cpu"))
    cut = networks.cut(plan_at(data, 96, networks.pool), "end")
    parts = []
    for name, taken in (("train", rows), ("val", data.subset(test, min(5000, len(test))))):
        part = PartImages(name, data.take(taken), CacheOptions(home), Runtime())
        features = np.asarray(part.extract([cut])[0].arrays[0], np.float32)
        parts.append((features, part.labels))
    (x, y), (x_val, y_val) = parts
    tensors = [LabelledFeatures(torch.from_numpy(a), torch.from_numpy(b)) for a, b in parts]
    started = time.perf_counter()
    loss = CrossEntropy(len(data.classes))
    ours = fit_logistic(*tensors, loss, L2, "val_accuracy")
    took = time.perf_counter() - started
    rows = {row.l2: row.val_accuracy for row in ours.history}
    print(
        f"\nours: {took:.1f} s for {len(rows)} of {len(L2)} values of L2 on {len(x):,} × {x.shape[1]:,} (it ends early where two in a row do worse)\n"
    )
    mean, std = x.mean(axis=0), x.std(axis=0).clip(min=1e-6)
    z, z_val, found = (x - mean) / std, (x_val - mean) / std, []
    warm = LogisticRegression(max_iter=1000, warm_start=True, tol=1e-4)
    print(
        "| L2 | ours, val accuracy | scikit-learn | its seconds, from the solution before | iterations |\n|---|---|---|---|---|"
    )
    for l2 in sorted(L2, reverse=True):
        warm.set_params(C=1 / (len(z) * l2))
        begun = time.perf_counter()
        warm.fit(z, y)
        seconds, accuracy = time.perf_counter() - begun, float(warm.score(z_val, y_val))
        found.append(
            {
                "l2": l2,
                "seconds": seconds,
                "accuracy": accuracy,
                "ours": rows.get(l2),
                "iterations": int(warm.n_iter_[0]),
            }
        )
        ours_said = f"{rows[l2]:.4f}" if l2 in rows else "–"
        print(
            f"| {l2:.1e} | {ours_said} | {accuracy:.4f} | {seconds:.1f} | {found[-1]['iterations']} |",
            flush=True,
        )
    theirs = sum(one["seconds"] for one in found)
    same = [one for one in found if one["ours"] is not None]
    fair = sum(one["seconds"] for one in same)
    worst = max(abs(one["ours"] - one["accuracy"]) for one in same)
    print(
        f"\nscikit-learn {theirs:.1f} s for all values ({theirs / took:.1f} times ours), {fair:.1f} s for those that ours solved ({fair / took:.1f} times); "
    )
    print(f"largest difference in accuracy {worst * 100:.2f} points")
    return {
        "ours_seconds": took,
        "theirs_seconds": theirs,
        "theirs_same_values": fair,
        "largest_difference": worst,
        "rows": found,
    }


def promise(datasets: list[str], home: Path) -> list[dict[str, Any]]:
    """Probe, fit the plan that is called best, open the test part: does it reach what was promised?"""
    found = []
    print(
        "\n| data | best | promised, val | fitted, val | test | within the promised interval |\n|---|---|---|---|---|---|"
    )
    for number, given in enumerate(datasets):
        name, _, few = given.partition("=")
        where = str(Path(name).resolve()) if Path(name).exists() else name
        count = ["--train-images", few] if few else []
        told = json.loads(
            timed(["probe", where, *count, "--out", f"promise-{number}", "-q", "--json"], home)[1]
        )
        best = told["recommendations"][-1]
        words = [
            "fit",
            where,
            *count,
            "--plan",
            f"promise-{number}/plan-best.toml",
            "--out",
            f"fitted-{number}",
            "-q",
            "--json",
        ]
        val = json.loads(timed(words, home)[1])["val"]
        test = json.loads(
            timed(["evaluate", f"fitted-{number}", "--split", "test", "-q", "--json"], home)[1]
        )["test"]
        low, high = best["ci95"]
        kept = "yes" if test["accuracy"] >= low else "no"
        row = {
            "data": Path(name).name,
            "best": best["name"],
            "promised": best["accuracy"],
            "ci95": best["ci95"],
            "val": val,
            "test": test,
            "kept": kept,
        }
        found.append(row)
        print(
            f"| {row['data']} ({told['images']['train']:,} + {told['images']['val']:,}) | {best['name']} | {best['accuracy']:.4f} ({low:.3f}–{high:.3f}) | "
            f"{val['accuracy']:.4f} | {test['accuracy']:.4f} of {test['n']:,} | {kept} |",
            flush=True,
        )
    return found


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True, help="a folder with CIFAR-10 as Parquet")
    parser.add_argument("--parts", default="matrix,passes,solver,promise")
    parser.add_argument(
        "--images", default="5000,2000", help="training and validation images of the matrix"
    )
    parser.add_argument("--solver-images", type=int, default=50_000)
    parser.add_argument(
        "--data",
        nargs="*",
        default=["digits"],
        help="what else to fit the best plan on, NAME or NAME=TRAINING_IMAGES",
    )
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tune_allocator()
    cifar, found = str(Path(options.cifar).resolve()), dict[str, Any]()
    train, val = map(int, options.images.split(","))
    ways = {
        "matrix": lambda: matrix(cifar, home, (train, val)),
        "passes": lambda: passes(cifar, home, options.trials),
        "solver": lambda: solver(cifar, home, options.solver_images),
        "promise": lambda: promise([*options.data, f"{cifar}=5000"], home),
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        for part in options.parts.split(","):
            found[part] = ways[part]()
    write(options.out, **found)


if __name__ == "__main__":
    main()

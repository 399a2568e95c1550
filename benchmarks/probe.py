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
from regraft.workflow.parts import Part
from regraft.workflow.planning import Wish, make
from regraft.workflow.settings import Settings

from measure import interleaved, timed, write
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.features.extract import ModelInputs, extract_features
from regraft.models.backbone import load_backbone
from regraft.models.cut import cut_backbone
from regraft.models.parts import Prefix
from regraft.models.weights import DEFAULT_BACKBONE
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


def passes(cifar: str, home: Path, trials: int) -> dict[str, Any]:
    """One pass that takes all places beside one that takes the last only: 5,000 images at each resolution."""
    data, found = load_dataset(cifar, home), {}
    part = Part("train", data.take(data.subset(data.split().train, 5000)), Settings(home=home))
    print("\n| px | last place only, s | all places, s | times |\n|---|---|---|---|")
    for side in RESOLUTIONS:
        model = load_backbone(DEFAULT_BACKBONE, resolution=side)
        plan = make(data, data.split(), Wish(resolution=side))
        look = part.look(model, plan)
        places = [*list(model.blocks)[:-1], "end"]
        frozen = {
            "last": [cut_backbone(model, "head")[0]],
            "all": [cut_backbone(model, "head", (place,))[0] for place in places],
        }

        def once(prefixes: list[Prefix], look: ModelInputs = look) -> float:
            with tempfile.TemporaryDirectory(dir=home) as empty:
                named = [(prefix, prefix.digest()) for prefix in prefixes]
                started = time.perf_counter()
                extract_features(named, look, Path(empty), compiling="off")
                return time.perf_counter() - started

        seen = interleaved(
            {name: lambda prefixes=prefixes: once(prefixes) for name, prefixes in frozen.items()},
            trials,
        )
        times = seen["all"]["median"] / seen["last"]["median"]
        found[side] = {**seen, "times": times, "places": len(places)}
        print(
            f"| {side} | {seen['last']['median']:.3f} | {seen['all']['median']:.3f} ({len(places)} places) | {times:.2f} |",
            flush=True,
        )
    return found


def solver(cifar: str, home: Path, count: int) -> dict[str, Any]:
    """The solved probe beside scikit-learn's LogisticRegression on the same features and L2 values."""
    from sklearn.linear_model import LogisticRegression

    data: Dataset = load_dataset(cifar, home)
    pool = np.sort(np.concatenate([data.split().train, data.split().val]))
    settings, parts = Settings(home=home), []
    model = load_backbone(DEFAULT_BACKBONE, resolution=96)
    prefix, _ = cut_backbone(model, "head")
    plan = make(data, data.split(), Wish(resolution=96))
    for name, rows in (
        ("train", pool if count >= len(pool) else data.subset(pool, count)),
        ("val", data.subset(data.split().test, 5000)),
    ):
        part = Part(name, data.take(rows), settings)
        parts.append(
            (
                np.asarray(
                    part.kept(model, [(prefix, prefix.digest())], plan)[0].arrays[0], np.float32
                ),
                part.labels,
            )
        )
    (x, y), (x_val, y_val) = parts
    tensors = [LabelledFeatures(torch.from_numpy(a), torch.from_numpy(b)) for a, b in parts]
    started = time.perf_counter()
    ours = fit_logistic(*tensors, CrossEntropy(len(data.classes)), L2)
    took = time.perf_counter() - started
    rows = {point.l2: point.val_accuracy for point in ours.history}
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

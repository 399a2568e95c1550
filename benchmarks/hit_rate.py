"""Prints how well the probe's scores rank what fine-tuning then really reached: several resolutions and places of EfficientNet-Lite0 on several datasets.

    python benchmarks/hit_rate.py DATA[=TRAINING_IMAGES] … [--resolutions 32,48,64,96] [--until blocks.3.2,blocks.5.3,end] [--epochs 2] [--out hit_rate.json]

Every cell is `regraft fit --technique fine-tune` with the network cut off at the place; then `regraft probe --runs` on the same split ranks them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from measure import timed, write


def ranked(data: str, count: list[str], options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Fine-tune every cell, probe, and return what the probe says of itself."""
    runs = home / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    reached = {}
    for side in options.resolutions.split(","):
        for place in options.until.split(","):
            changes = [
                f"until={'' if place == 'end' else place}",
                f"phases.0.epochs={options.epochs}",
            ]
            words = [
                "fit",
                data,
                *count,
                "--technique",
                "fine-tune",
                "--resolution",
                side,
                "--out",
                f"runs/{side}-{place}",
                "-q",
                "--json",
            ]
            scores = json.loads(
                timed([*words, *(word for change in changes for word in ("--set", change))], home)[
                    1
                ]
            )
            reached[f"{side} {place}"] = scores["val"]["accuracy"]
    told = json.loads(
        timed(
            [
                "probe",
                data,
                *count,
                "--resolutions",
                options.resolutions,
                "--runs",
                str(runs),
                "--out",
                "probed",
                "--overwrite",
                "-q",
                "--json",
            ],
            home,
        )[1]
    )
    scores = {
        f"{row['resolution']} {row['places'][0]}": row
        for row in told["places"]
        if row["kind"] == "single"
    }
    print(
        f"\n{told['data']}, {told['images']['train']:,} training and {told['images']['val']:,} validation images\n"
    )
    print(
        "| px | place | fine-tuned | linear probe | k-NN | LogME | H-score | LEEP |\n|---|---|---|---|---|---|---|---|"
    )
    for cell, value in sorted(reached.items(), key=lambda item: -item[1]):
        row = scores[cell]
        leep = f"{row['leep']:.3f}" if row["leep"] is not None else "–"
        print(
            f"| {cell.replace(' ', ' | ')} | {value:.4f} | {row['accuracy']:.4f} | {row['knn']:.4f} | {row['logme']:.3f} | {row['h_score']:.3f} | {leep} |"
        )
    print("\n| score | cells | Kendall | p | Spearman |\n|---|---|---|---|---|")
    for row in told["hit_rate"]:
        print(
            f"| {row['score']} | {row['runs']} | {row['kendall']:+.2f} | {row['p']:.3f} | {row['spearman']:+.2f} |",
            flush=True,
        )
    return {"reached": reached, "hit_rate": told["hit_rate"]}


def main() -> None:
    """Rank the cells of every dataset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="NAME or NAME=TRAINING_IMAGES")
    parser.add_argument("--resolutions", default="32,48,64,96")
    parser.add_argument("--until", default="blocks.3.2,blocks.5.3,end")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = dict[str, Any]()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        for given in options.data:
            name, _, few = given.partition("=")
            where = str(Path(name).resolve()) if Path(name).exists() else name
            found[Path(name).name] = ranked(
                where, ["--train-images", few] if few else [], options, home
            )
    write(options.out, **found)


if __name__ == "__main__":
    main()

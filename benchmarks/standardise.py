"""How a solved head's features are standardised: accuracy and log-loss with few and many images.

    python benchmarks/standardise.py digits images.npz --images 40,160,1000 --splits 5

Each variance is shrunk towards the mean variance of all features, with the weight of a number of
images; with 0 it is the feature's own, as in 0.2.0. Training images are drawn at random, at least
one of a class; L2 is chosen on a quarter as many others; the rest is for testing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from measure import machine_line
from regraft.commands.api import embed
from regraft.training import linear
from regraft.training.linear import CrossEntropy, LabelledFeatures, fit_logistic

L2 = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
MOST_TEST_IMAGES = 1500


@dataclass(frozen=True)
class Parts:
    """Features and labels of three disjoint parts."""

    train: LabelledFeatures
    val: LabelledFeatures
    test: LabelledFeatures


def draw_parts(features: torch.Tensor, labels: torch.Tensor, images: int, seed: int) -> Parts:
    """Return a random split with so many training images, at least one of each class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels.numpy()[order], return_index=True)
    order = np.concatenate([order[first], np.delete(order, first)])
    held_out = max(20, min(184, images // 4))
    ends = (0, images, images + held_out, images + held_out + MOST_TEST_IMAGES)
    parts = []
    for start, end in pairwise(ends):
        rows = torch.from_numpy(order[start:end])
        parts.append(LabelledFeatures(features[rows], labels[rows]))
    return Parts(*parts)


def score(parts: Parts, classes: int) -> tuple[float, float]:
    """Return accuracy and log-loss on the test part."""
    layer = fit_logistic(parts.train, parts.val, CrossEntropy(classes), L2).layer
    with torch.no_grad():
        logits = layer(parts.test.features)
    labels = parts.test.labels
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    return float(accuracy), float(functional.cross_entropy(logits, labels))


def number_classes(names: NDArray[np.str_]) -> torch.Tensor:
    """Return the number of each label's class, in the order of names."""
    return torch.from_numpy(np.unique(names, return_inverse=True)[1])


def main() -> None:
    """Print a row for each data set and number of images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="as for `regraft fit`")
    parser.add_argument("--backbone", help="any timm name; EfficientNet-Lite0 if not given")
    parser.add_argument("--weights", help="a file of weights for it")
    parser.add_argument("--layers", default="end", help="where features are taken, by commas")
    parser.add_argument("--images", default="40,160,640,1000", help="numbers of training images")
    parser.add_argument("--priors", default="0,3,10,30", help="weights to compare, in images")
    parser.add_argument("--splits", type=int, default=5, help="random splits")
    options = parser.parse_args()
    priors = [int(word) for word in options.priors.split(",")]
    weights = {"weights": options.weights} if options.weights else {}
    print(machine_line())
    print("| data | images |" + "".join(f" {prior} |" for prior in priors))
    print("|---|---|" + "---|" * len(priors))
    for data in options.data:
        layers = options.layers.split(",")
        embedding = embed(data, options.backbone, layers=layers, **weights)
        features = torch.from_numpy(embedding.features)
        labels = number_classes(embedding.labels)
        for images in map(int, options.images.split(",")):
            cells = []
            for prior in priors:
                linear.PRIOR_IMAGES = prior
                scores = []
                for seed in range(options.splits):
                    parts = draw_parts(features, labels, images, seed)
                    scores.append(score(parts, int(labels.max()) + 1))
                accuracy, loss = (mean(column) for column in zip(*scores, strict=True))
                cells.append(f"{accuracy:.4f} / {loss:.3f}")
            print(f"| {data} | {images:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

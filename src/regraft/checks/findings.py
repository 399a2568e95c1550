"""What a check found, as typed records, and its verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.checks.duplicates import NearDuplicate
from regraft.checks.labels import SuspectLabels
from regraft.checks.outliers import UNEVEN_RATIO, ClassBalance, Outlier
from regraft.data.dataset import Dataset
from regraft.data.split import PARTS, Split
from regraft.system.json_object import JsonObject

MAX_LISTED = 200  # findings of each kind that are written; all are counted


@dataclass(frozen=True)
class ImageRef:
    """An image: its row in the table, its key, its part and the name of its label."""

    row: int
    key: str
    part: str
    label: str


@dataclass(frozen=True)
class ImageIndex:
    """From rows of a dataset to references; `part_of` has the part of each row, or ""."""

    data: Dataset
    part_of: NDArray[np.str_]

    @classmethod
    def of(cls, data: Dataset, split: Split) -> ImageIndex:
        """Return the index of a dataset and its split."""
        part_of = np.full(len(data), "", dtype="<U5")
        for part in PARTS:
            part_of[split[part]] = part
        return cls(data, part_of)

    def at(self, row: int) -> ImageRef:
        """Return the reference of one row."""
        label = self.data.classes[self.data.labels[row]]
        return ImageRef(int(row), str(self.data.keys[row]), str(self.part_of[row]), label)

    def group(self, rows: Iterable[int]) -> tuple[ImageRef, ...]:
        """Return the references of several rows."""
        return tuple(self.at(row) for row in rows)


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are equal byte for byte."""

    images: tuple[ImageRef, ...]

    @property
    def crosses(self) -> bool:
        """Whether they lie in more than one part."""
        return len({image.part for image in self.images}) > 1

    def to_json(self) -> dict[str, Any]:
        """Return the group as it is written to JSON."""
        keys = [image.key for image in self.images]
        parts = [image.part for image in self.images]
        labels = [image.label for image in self.images]
        rows = [image.row for image in self.images]
        return {"keys": keys, "parts": parts, "labels": labels, "rows": rows}


@dataclass(frozen=True)
class NearPair(DuplicateGroup):
    """Two images that look the same, by "pixels", "mirrored" pixels or "features"."""

    cosine: float
    by: str

    def to_json(self) -> dict[str, Any]:
        """Return the pair as it is written to JSON."""
        return {**super().to_json(), "cosine": self.cosine, "by": self.by}


@dataclass(frozen=True)
class Suspect:
    """An image whose label is doubtful.

    Args:
        image: Which one.
        predicted: Name of the class that the probe predicts.
        label_probability: Out-of-sample probability of the label.
        predicted_probability: The same of the predicted class.
    """

    image: ImageRef
    predicted: str
    label_probability: float
    predicted_probability: float

    @property
    def doubt(self) -> str:
        """What is wrong with the label, in words."""
        return describe_doubt(self.image.label, self.predicted, self.predicted_probability)

    def to_json(self) -> dict[str, Any]:
        """Return the suspect as it is written to JSON."""
        return {
            "row": self.image.row,
            "key": self.image.key,
            "part": self.image.part,
            "label": self.image.label,
            "said": self.predicted,
            "chance_label": self.label_probability,
            "chance_said": self.predicted_probability,
        }


@dataclass(frozen=True)
class OddFile:
    """An image that is unlike the rest in form, and why."""

    image: ImageRef
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return the file as it is written to JSON."""
        return {"key": self.image.key, "row": self.image.row, "why": self.why}


@dataclass(frozen=True)
class CheckedWith:
    """The network whose features were used: its timm name, side in pixels, and weights."""

    backbone: str
    resolution: int
    weights: str


@dataclass(frozen=True)
class Findings(JsonObject):
    """What a check found.

    Args:
        data: Name of the dataset.
        images: Number of images by part.
        split_digest: Of the split.
        network: The network whose features were used.
        balance: Images of each class.
        exact: Groups of equal images.
        near: Pairs of images that look the same.
        suspects: Doubtful labels, the most suspicious first; at most 200 of `suspect_count`.
        suspect_count: Number of doubtful labels.
        odd: Files that are unlike the rest in form.
    """

    data: str
    images: dict[str, int]
    split_digest: str
    network: CheckedWith
    balance: ClassBalance
    exact: list[DuplicateGroup] = field(default_factory=list)
    near: list[NearPair] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    suspect_count: int = 0
    odd: list[OddFile] = field(default_factory=list)

    @property
    def exact_across(self) -> int:
        """Number of groups of equal images in more than one part."""
        return sum(group.crosses for group in self.exact)

    @property
    def near_across(self) -> int:
        """Number of near duplicates in two parts."""
        return sum(pair.crosses for pair in self.near)

    @property
    def verdict(self) -> str:
        """What was found, in a sentence or two."""
        return describe_findings(self)

    def to_json(self) -> dict[str, Any]:
        """Return the findings as they are written to JSON; at most 200 of each kind are listed."""
        counts = {
            "exact": len(self.exact),
            "near": len(self.near),
            "suspects": self.suspect_count,
            "odd": len(self.odd),
        }
        suspects = [suspect.to_json() for suspect in self.suspects]
        odd = [file.to_json() for file in self.odd[:MAX_LISTED]]
        return {
            "data": self.data,
            "classes": len(self.balance.classes),
            "images": self.images,
            "split_digest": self.split_digest,
            "backbone": self.network.backbone,
            "resolution": self.network.resolution,
            "weights": self.network.weights,
            "counts": counts,
            "across": {"exact": self.exact_across, "near": self.near_across},
            "exact": _list_across_first(self.exact),
            "near": _list_across_first(self.near),
            "suspects": suspects,
            "balance": self.balance.to_json(),
            "odd": odd,
            "verdict": self.verdict,
        }


def describe_findings(findings: Findings) -> str:
    """Return what a check found in a sentence or two."""
    clauses = [*_duplicate_clauses(findings), *_label_clauses(findings)]
    if findings.odd:
        clauses.append(f"{len(findings.odd):,} files are odd or cannot be read")
    if not clauses:
        return (
            "Nothing stands out: no duplicates, no doubtful labels, no odd files, "
            "classes of like size."
        )
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def describe_doubt(label: str, predicted: str, probability: float) -> str:
    """Return in words what is wrong with a label.

    Args:
        label: Name of the class of the label.
        predicted: Name of the class that is predicted.
        probability: Of the predicted class, 0 … 1.
    """
    # a label may be doubtful although it is the most probable one
    reason = "is not clearly that" if predicted == label else f"looks like {predicted}"
    return f"{reason} ({probability:.0%})"


def to_exact_groups(
    groups: Sequence[Sequence[int]], rows: NDArray[np.int64], index: ImageIndex
) -> list[DuplicateGroup]:
    """Return groups of positions among `rows` (as `exact` returns them) as groups of images."""
    return [DuplicateGroup(index.group(rows[list(group)])) for group in groups]


def to_near_pairs(
    matches: Sequence[NearDuplicate], rows: NDArray[np.int64], index: ImageIndex
) -> list[NearPair]:
    """Return matches of positions among `rows` (as `find_near_duplicates` has them) as images."""
    return [
        NearPair(index.group(rows[list(match.rows)]), match.cosine, match.by) for match in matches
    ]


def to_suspects(
    suspects: SuspectLabels, rows: NDArray[np.int64], index: ImageIndex
) -> list[Suspect]:
    """Return the most suspicious images of `rows`, at most 200."""
    listed = []
    for number in suspects.ranking[: min(suspects.count, MAX_LISTED)]:
        row = int(rows[number])
        predicted = int(suspects.predicted[number])
        probabilities = suspects.probabilities[number]
        label = int(index.data.labels[row])
        listed.append(
            Suspect(
                image=index.at(row),
                predicted=index.data.classes[predicted],
                label_probability=float(probabilities[label]),
                predicted_probability=float(probabilities[predicted]),
            )
        )
    return listed


def to_odd_files(outliers: Sequence[Outlier], index: ImageIndex) -> list[OddFile]:
    """Return outliers, whose rows are those of the table, as files."""
    return [OddFile(index.at(outlier.row), outlier.why) for outlier in outliers]


def _list_across_first(groups: Sequence[DuplicateGroup]) -> list[dict[str, Any]]:
    """Return at most 200 groups as JSON, those that lie in more than one part first."""
    ordered = sorted(groups, key=lambda group: not group.crosses)
    return [group.to_json() for group in ordered[:MAX_LISTED]]


def _duplicate_clauses(findings: Findings) -> list[str]:
    clauses = []
    if findings.exact_across:
        clauses.append(
            f"{findings.exact_across:,} images occur byte for byte in more than one part: "
            "what is measured on val and test is flattered"
        )
    if findings.near_across:
        clauses.append(f"{findings.near_across:,} pairs across parts look nearly the same")
    within = len(findings.exact) - findings.exact_across
    if within:
        clauses.append(f"{within:,} images occur twice or more within a part")
    return clauses


def _label_clauses(findings: Findings) -> list[str]:
    clauses = []
    if findings.suspect_count:
        share = findings.suspect_count / max(1, sum(findings.images.values()))
        clauses.append(f"{findings.suspect_count:,} labels ({share:.1%}) look wrong or doubtful")
    balance = findings.balance
    if balance.ratio >= UNEVEN_RATIO:
        clauses.append(
            f"the largest class has {balance.ratio:.1f} times the images of the smallest"
        )
    if balance.few:
        clauses.append(f"{len(balance.few)} classes have fewer than ten training images")
    return clauses

"""What `scores.json` and `test.json` of a run say, with types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from regraft.evaluation.scores import Scores
from regraft.system.json_object import JsonObject

Record = TypeVar("Record")

NOT_SCORED = Scores(math.nan, math.nan, 0, (0.0, 1.0))


@dataclass(frozen=True)
class Origin:
    """Where the images of a run came from, and which of them were used.

    Args:
        data: The images in the user's words; None where a dataset was given.
        train_images: Size of the subset of the training images; None for all.
        val_images: The same of the validation images.
        split_seed: Seed of the split.
        skip_bad: Whether images that cannot be decoded were left out.
    """

    data: str | None = None
    train_images: int | None = None
    val_images: int | None = None
    split_seed: int = 0
    skip_bad: bool = False


@dataclass(frozen=True)
class Seconds:
    """Where the seconds of a run went.

    Args:
        load: Reading data and weights.
        extract: Computing the frozen part.
        train: Training the rest.
        evaluate: Scoring train and val.
        total: All of it.
    """

    load: float = 0.0
    extract: float = 0.0
    train: float = 0.0
    evaluate: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Args:
        total: All.
        trainable: Those that some phase trained.
        frozen: The others.
        buffers: Numbers that are no parameters, such as BatchNorm statistics.
    """

    total: int = 0
    trainable: int = 0
    frozen: int = 0
    buffers: int = 0


@dataclass(frozen=True)
class PhaseExecution:
    """How the trained part of a phase ran.

    Args:
        phase: Number of the phase, from 0.
        precision: "float32" or "bfloat16".
        compiled: Whether it was compiled.
        why: The measured times, for people.
    """

    phase: int = 0
    precision: str = "float32"
    compiled: bool = False
    why: str = ""


@dataclass(frozen=True)
class CacheUse:
    """What the cache did for a run.

    Args:
        hit: Whether all features were there already.
        bytes: Size of the features that were read.
    """

    hit: bool = False
    bytes: int = 0


@dataclass(frozen=True)
class RunScores(JsonObject):
    """What `scores.json` says.

    Args:
        backbone: timm name of the network.
        technique: The technique, or the name that the plan gives itself.
        resolution: Side of the images in pixels.
        data: Name of the dataset.
        plan_digest: Digest of the plan.
        split_digest: Digest of the split.
        val: Scores on the validation images.
        train: Scores on the training images, in eval mode and without augmentation; without
            images in a run that was packed into one file.
        seed: Seed of weights, order, augmentation and dropout.
        seconds: Where the seconds went.
        parameters: Numbers of parameters.
        weights: The weights that it began with.
        origin: Where the images came from.
        contract: The freeze check: "kept", or "broken" where frozen tensors changed.
        leaks: Val and test images that are exact copies of images in an earlier part.
        skipped: Images that cannot be decoded and were left out.
        paces: How the trained part of each phase ran.
        shared_seconds: Seconds of features that an earlier run had computed.
        peak_memory_mb: Most memory of the process, in MB of 2**20 bytes.
        cache: What the cache did.
        files: A digest of each file that must not change.
        format: Version of the run folder's format; 0 for folders of version 0.1.
        written: The object as it stands in the file, also with keys of other versions.
    """

    backbone: str
    technique: str
    resolution: int
    data: str
    plan_digest: str
    split_digest: str
    val: Scores
    train: Scores = NOT_SCORED
    seed: int = 0
    seconds: Seconds = Seconds()
    parameters: ParameterCounts = ParameterCounts()
    weights: str = ""
    origin: Origin = Origin()
    contract: str = "kept"
    leaks: int = 0
    skipped: int = 0
    paces: tuple[PhaseExecution, ...] = ()
    shared_seconds: float = 0.0
    peak_memory_mb: int | None = None
    cache: CacheUse = CacheUse()
    files: dict[str, str] = field(default_factory=dict)
    format: int = 0
    written: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    @property
    def work_seconds(self) -> float:
        """Seconds of work, with those of features that an earlier run had computed."""
        return self.seconds.total + self.shared_seconds

    def to_json(self) -> dict[str, Any]:
        """Return the object as it stands in `scores.json`."""
        return dict(self.written)


@dataclass(frozen=True)
class OpenedTest(JsonObject):
    """What `test.json` says.

    Args:
        test: Scores on the test part.
        opened: When the part was opened, each time.
        predictions: Digest of the file with the logits.
        skipped: Reason by key of test images that cannot be decoded and were left out.
        written: The object as it stands in the file, also with keys of other versions.
    """

    test: Scores
    opened: tuple[str, ...]
    predictions: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    written: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the object as it stands in `test.json`."""
        return dict(self.written)


def parse_record(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Return the object in a JSON file of a run, with types; unknown keys are kept as written.

    Args:
        kind: `RunScores` or `OpenedTest`.
        values: The object in the file.

    Raises:
        ValueError: When a key is missing, or has a value of another type; names the first one.
    """
    try:
        record = TypeAdapter(kind).validate_python({**values, "written": dict(values)})
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"]))
        raise ValueError(f"{place}: {detail['msg']}") from error
    return record

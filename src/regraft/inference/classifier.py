"""A finished run, ready to be used: paths or pixels in, classes and probabilities out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from regraft.data.inputs import images_from_input
from regraft.data.stream import StreamItem
from regraft.errors import UserError
from regraft.evaluation.calibration import fit_temperature
from regraft.evaluation.scores import log_softmax
from regraft.inference.network import InferenceNetwork, load_network
from regraft.inference.prefetch import decode_batches
from regraft.models.backbone import Backbone
from regraft.models.transforms import resize_center_crop, storage_size, transform
from regraft.runs.folder import Run, load_run
from regraft.system.hardware import extraction_batch_size, is_out_of_memory, resolve_device

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """The class of one image with its probability, all classes by falling probability, or why it could not be read.

    Where the probability is below the least that was asked for, the classifier abstains: `label` is None, and the rest says what it would have been.
    """

    path: str
    label: str | None
    probability: float | None
    ranked: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    abstained: bool = False


class Classifier:
    """A finished run, ready to be used; `regraft.load` makes one.

    Args:
        finished: The run.
        device: "auto", "cpu" or "cuda".
        precision: Arithmetic of the frozen part, "float32" or "bfloat16"; the plan's when None, so that answers are those that the run was scored by.
        batch_size: Images that go through the network at once; what suits the machine when 0.
    """

    def __init__(
        self,
        finished: Run,
        device: str = "auto",
        precision: str | None = None,
        batch_size: int = 0,
    ) -> None:
        self.run, self.device, self.precision = finished, resolve_device(device), precision
        self.batch_size = batch_size or extraction_batch_size(self.device, finished.plan.resolution)

    def __repr__(self) -> str:
        return f"Classifier({self.run!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the columns of `predict_proba`."""
        return self.run.classes

    @cached_property
    def network(self) -> tuple[Backbone, InferenceNetwork]:
        """The whole network in eval mode: pixels made ready in, logits out."""
        return load_network(self.run, self.device, self.precision)

    @cached_property
    def temperature(self) -> float:
        """The number by which logits are divided to calibrate probabilities, fitted on the run's validation images (`evaluate.temperature`)."""
        try:
            kept = self.run.predictions("val")
            logits, targets = kept["logits"], kept["targets"]
        except UserError as error:
            raise UserError(
                f"The validation answers of the run in {self.run.path} cannot be read ({error}), so its probabilities cannot be calibrated. "
                "Leave out --min-confidence, or fit the run again with --overwrite."
            ) from error
        return fit_temperature(logits, targets)

    def predict(self, images: Iterable[str | Path] | Pixels) -> list[str]:
        """Return the class of each image: paths, or an array `(n, h, w, 3)` uint8.

        Raises:
            UserError: When it is something else, or a file is missing or no image.
        """
        return [self.classes[number] for number in self.predict_proba(images).argmax(axis=1)]

    def predict_proba(self, images: Iterable[str | Path] | Pixels) -> NDArray[np.float64]:
        """Return probabilities `(n, classes)`, rows summing to 1, not calibrated; takes and raises what `predict` does."""
        checked = images_from_input(images, "images")
        starts = range(0, len(checked), self.batch_size)
        pixels = (
            image
            for start in starts
            for image in checked.read(np.arange(start, min(len(checked), start + self.batch_size)))
        )
        return np.exp(log_softmax(self.logits(pixels)))

    def logits(self, images: Iterable[Pixels]) -> NDArray[np.float32]:
        """Return logits `(n, classes)` of decoded images of any sizes."""
        model, _ = self.network
        found = [np.zeros((0, len(self.classes)), np.float32)]
        rest = iter(images)
        while taken := list(itertools.islice(rest, self.batch_size)):
            size, kind = model.resolution, model.rules.interpolation
            found.append(
                self._said(
                    [
                        resize_center_crop(image, storage_size(image.shape[:2], size), kind)
                        for image in taken
                    ]
                )
            )
        return np.concatenate(found)

    def files(
        self, paths: Iterable[str | Path], min_confidence: float | None = None
    ) -> Iterator[Prediction]:
        """Yield a prediction for each file; one that cannot be read yields its error, and the rest goes on. See `stream`."""
        return self.stream(
            (StreamItem(str(path), Path(path).read_bytes) for path in paths), min_confidence
        )

    def stream(
        self, found: Iterable[StreamItem], min_confidence: float | None = None
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image in their order, in memory that does not grow; threads decode while the network works.

        Args:
            found: Names and readers, as `sources.streams.found` yields them.
            min_confidence: Abstain below this probability, 0 … 1. Probabilities are then calibrated ones (see `temperature`); without it they are those of
                the network as it is.
        """
        model, _ = self.network
        heat = 1.0 if min_confidence is None else self.temperature
        for batch in decode_batches(
            found, self.batch_size, model.resolution, model.rules.interpolation
        ):
            seen = [one.pixels for one in batch if one.pixels is not None]
            chances = iter(np.exp(log_softmax(self._said(seen) / heat)) if seen else ())
            for one in batch:
                yield (
                    Prediction(one.name, None, None, error=one.error)
                    if one.pixels is None
                    else self._prediction(one.name, next(chances), min_confidence)
                )

    def _prediction(
        self, name: str, chances: NDArray[np.float64], least: float | None
    ) -> Prediction:
        ranked = tuple(
            (self.classes[number], float(chances[number]))
            for number in np.argsort(-chances, kind="stable")
        )
        label, probability = ranked[0]
        abstained = least is not None and probability < least
        return Prediction(
            name, None if abstained else label, probability, ranked, abstained=abstained
        )

    def _said(self, ready: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return the logits of images made ready; a batch that does not fit into memory is halved, and so are those after it."""
        found: list[NDArray[np.float32]] = []
        done = 0
        while done < len(ready):
            batch = ready[done : done + self.batch_size]
            try:
                found.append(self._once(batch))
                done += len(batch)
            except (RuntimeError, MemoryError) as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                self.batch_size = (len(batch) + 1) // 2
        return np.concatenate(found)

    def _once(self, ready: Sequence[Pixels]) -> NDArray[np.float32]:
        model, whole = self.network
        shapes = [image.shape for image in ready]
        order = sorted(range(len(ready)), key=shapes.__getitem__)
        seen = []
        with torch.inference_mode():
            for _, rows in itertools.groupby(
                order, key=shapes.__getitem__
            ):  # images of one size are resized together
                batch = torch.from_numpy(np.stack([ready[row] for row in rows])).to(self.device)
                ids = torch.zeros(len(batch), dtype=torch.int64, device=self.device)
                seen.append(transform(batch, ids, model.rules, model.resolution))
            together = (
                seen[0]
                if len(seen) == 1
                else torch.cat(seen).contiguous(memory_format=torch.channels_last)
            )
            said: NDArray[np.float32] = whole(together).float().cpu().numpy()
        return said[np.argsort(order)]


def load_classifier(path: str | Path, device: str = "auto") -> Classifier:
    """Return a finished run as a classifier; raises `UserError` when there is none."""
    return Classifier(load_run(Path(path)), device)

"""A finished run that answers: paths or pixels in, classes and probabilities out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.data.inputs import images_from_input
from regraft.data.stream import StreamItem
from regraft.errors import UserError
from regraft.evaluation.calibration import fit_temperature
from regraft.evaluation.scores import log_softmax
from regraft.features.extract import extraction_batch_size
from regraft.inference.network import InferenceNetwork, make_inference_network
from regraft.inference.prefetch import decode_batches
from regraft.inference.restore import restore_network
from regraft.models.network import TransferNetwork
from regraft.models.transforms import Preprocess
from regraft.runs.folder import Run, load_run
from regraft.system.hardware import is_out_of_memory, resolve_device

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """The class of one image with its probability, or why the image could not be read.

    Args:
        path: What the image is called.
        label: The most probable class; None where the classifier abstains or has no image.
        probability: Its probability, 0 … 1, also where the classifier abstains.
        ranked: All classes with their probabilities, the most probable first.
        error: Why the image could not be read, or None.
        abstained: Whether the probability is below the least that was asked for.
    """

    path: str
    label: str | None
    probability: float | None
    ranked: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    abstained: bool = False

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Return the prediction as plain data, with the `top` most probable classes, or all."""
        ranked = [[label, probability] for label, probability in self.ranked[:top]]
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "ranked": ranked,
            "abstained": self.abstained,
            "error": self.error,
        }


class Classifier:
    """A finished run that answers; `regraft.load` makes one.

    Args:
        finished: The run.
        device: "auto", "cpu" or "cuda".
        precision: Arithmetic of the frozen part, "float32" or "bfloat16"; the plan's when None,
            so that the answers are those that the run was scored by.
        batch_size: Images that go through the network at once; chosen for the machine when 0.
            It is halved where a batch does not fit into memory.
    """

    def __init__(
        self,
        finished: Run,
        device: str = "auto",
        precision: str | None = None,
        batch_size: int = 0,
    ) -> None:
        self.run = finished
        self.device = resolve_device(device)
        self.precision = precision
        self.batch_size = batch_size or extraction_batch_size(self.device, finished.plan.resolution)

    def __repr__(self) -> str:
        return f"Classifier({self.run!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the columns of `predict_proba`."""
        return self.run.classes

    @cached_property
    def network(self) -> TransferNetwork:
        """The network with its trained weights, in eval mode."""
        return restore_network(self.run, self.device)

    @cached_property
    def inference(self) -> InferenceNetwork:
        """The same network made fast: preprocessed images in, logits out."""
        return make_inference_network(self.network, self.precision)

    @property
    def preprocess(self) -> Preprocess:
        """How images enter the network."""
        return self.network.preprocess

    @cached_property
    def temperature(self) -> float:
        """The number that logits are divided by to calibrate probabilities.

        It is fitted on the run's validation images, see `fit_temperature`.
        """
        try:
            predictions = self.run.predictions("val")
            logits = predictions["logits"]
            targets = predictions["targets"]
        except UserError as error:
            raise UserError(
                f"The validation predictions of the run in {self.run.path} cannot be read "
                f"({error}), so its probabilities cannot be calibrated. "
                "Leave out --min-confidence, or fit the run again with --overwrite."
            ) from error
        return fit_temperature(logits, targets)

    def predict(self, images: Iterable[str | Path] | Pixels) -> list[str]:
        """Return the class of each image.

        Args:
            images: Paths, or an array `(n, h, w, 3)` uint8.

        Raises:
            UserError: When it is something else, or a file is missing or no image.
        """
        numbers = self.predict_proba(images).argmax(axis=1)
        return [self.classes[number] for number in numbers]

    def predict_proba(self, images: Iterable[str | Path] | Pixels) -> NDArray[np.float64]:
        """Return probabilities `(n, classes)`, not calibrated; each row sums to 1.

        Args:
            images: Paths, or an array `(n, h, w, 3)` uint8.

        Raises:
            UserError: When it is something else, or a file is missing or no image.
        """
        checked = images_from_input(images, "images")

        def read() -> Iterator[Pixels]:
            for start in range(0, len(checked), self.batch_size):
                stop = min(len(checked), start + self.batch_size)
                yield from checked.read(np.arange(start, stop))

        return np.exp(log_softmax(self.logits(read())))

    def logits(self, images: Iterable[Pixels]) -> NDArray[np.float32]:
        """Return logits `(n, classes)` of decoded images `(h, w, 3)` uint8 of any sizes."""
        logits = [np.zeros((0, len(self.classes)), np.float32)]
        rest = iter(images)
        while batch := list(itertools.islice(rest, self.batch_size)):
            stored = [self.preprocess.store(image) for image in batch]
            logits.append(self._stored_logits(stored))
        return np.concatenate(logits)

    def files(
        self, paths: Iterable[str | Path], min_confidence: float | None = None
    ) -> Iterator[Prediction]:
        """Yield a prediction for each file, also for one that cannot be read; see `stream`."""
        images = (StreamItem(str(path), Path(path).read_bytes) for path in paths)
        return self.stream(images, min_confidence)

    def stream(
        self, images: Iterable[StreamItem], min_confidence: float | None = None
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image in order, in memory that does not grow.

        Threads decode images while the network works on the ones before them. An image that
        cannot be read gets a prediction with the error, and the rest goes on.

        Args:
            images: Names and readers, as `iterate_images` yields them.
            min_confidence: Abstain below this probability, 0 … 1. The probabilities are then
                calibrated (see `temperature`); without it they are the network's own.
        """
        _ = self.inference  # weights that do not fit are reported before any image is read
        temperature = 1.0 if min_confidence is None else self.temperature
        for batch in decode_batches(images, self.batch_size, self.preprocess.store):
            pixels = [image.pixels for image in batch if image.pixels is not None]
            probabilities = iter(self._probabilities(pixels, temperature))
            for image in batch:
                if image.pixels is None:
                    yield Prediction(image.name, None, None, error=image.error)
                else:
                    yield self._prediction(image.name, next(probabilities), min_confidence)

    def _prediction(
        self, name: str, probabilities: NDArray[np.float64], min_confidence: float | None
    ) -> Prediction:
        """Return the prediction of one image from its probabilities `(classes,)`."""
        order = np.argsort(-probabilities, kind="stable")
        ranked = tuple((self.classes[number], float(probabilities[number])) for number in order)
        label, probability = ranked[0]
        if min_confidence is not None and probability < min_confidence:
            return Prediction(name, None, probability, ranked, abstained=True)
        return Prediction(name, label, probability, ranked)

    def _preprocess(self, images: Sequence[Pixels]) -> Tensor:
        """Return what the network sees, float32 `(n, 3, s, s)`, of stored images of one size."""
        batch = torch.from_numpy(np.stack(images))
        return self.preprocess(batch.to(self.device))

    def _probabilities(
        self, stored: Sequence[Pixels], temperature: float
    ) -> Iterable[NDArray[np.float64]]:
        """Return a row of probabilities `(classes,)` for each stored image."""
        if not stored:
            return ()
        logits = self._stored_logits(stored)
        return np.exp(log_softmax(logits / temperature))

    def _stored_logits(self, stored: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return logits `(n, classes)`; where memory is short, batches are halved for good."""
        logits: list[NDArray[np.float32]] = []
        done = 0
        while done < len(stored):
            batch = stored[done : done + self.batch_size]
            try:
                logits.append(self._batch_logits(batch))
                done += len(batch)
            except (RuntimeError, MemoryError) as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                self.batch_size = (len(batch) + 1) // 2
        return np.concatenate(logits)

    def _batch_logits(self, stored: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return logits `(n, classes)` of one batch; images of one size are resized together."""
        shapes = [image.shape for image in stored]
        order = sorted(range(len(stored)), key=shapes.__getitem__)
        inputs = []
        with torch.inference_mode():
            for _, rows in itertools.groupby(order, key=shapes.__getitem__):
                inputs.append(self._preprocess([stored[row] for row in rows]))
            if len(inputs) == 1:
                batch = inputs[0]
            else:
                batch = torch.cat(inputs).contiguous(memory_format=torch.channels_last)
            logits: NDArray[np.float32] = self.inference(batch).float().cpu().numpy()
        return logits[np.argsort(order)]


def load_classifier(path: str | Path, device: str = "auto") -> Classifier:
    """Return a finished run as a classifier.

    Raises:
        UserError: When there is no finished run at this path.
    """
    return Classifier(load_run(Path(path)), device)

"""A run folder as a function from images to classes.

Refuses to need anything but the folder: what made the run is gone by now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import nn

from regraft import backbone, evaluate, machine, run, views
from regraft.backbone import Backbone
from regraft.errors import UserError
from regraft.sources.decode import decoded
from regraft.train import head

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """The class of one image with its probability, all classes by falling probability, or why it could not be read."""

    path: str
    label: str | None
    probability: float | None
    ranked: tuple[tuple[str, float], ...] = ()
    error: str | None = None


class Classifier:
    """A finished run, ready to be used; `regraft.load` makes one."""

    def __init__(self, finished: run.Run, device: str = "auto") -> None:
        self.run, self.device = finished, machine.device(device)

    def __repr__(self) -> str:
        return f"Classifier({self.run!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the columns of `predict_proba`."""
        return self.run.classes

    @cached_property
    def network(self) -> tuple[Backbone, nn.Module]:
        """The whole network in eval mode: pixels made ready in, logits out."""
        model, top = restored(self.run, self.device)
        body, _ = backbone.cut(model, "head", self.run.plan.stages_taken, self.run.plan.flattens)
        return model, nn.Sequential(_First(body), top).eval()

    def predict(self, images: Iterable[str | Path] | NDArray[np.uint8]) -> list[str]:
        """Return the class of each image: paths, or an array `(n, h, w, 3)` uint8.

        Raises:
            UserError: When a file is missing or no image.
        """
        return [self.classes[number] for number in self.predict_proba(images).argmax(axis=1)]

    def predict_proba(self, images: Iterable[str | Path] | NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return probabilities `(n, classes)`, rows summing to 1; takes and raises what `predict` does."""
        pixels = list(images) if isinstance(images, np.ndarray) else [_read(Path(path)) for path in images]
        return np.exp(evaluate.log_softmax(self.logits(pixels)))

    def logits(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return logits `(n, classes)` of decoded images of any sizes."""
        model, network = self.network
        found = [np.zeros((0, len(self.classes)), np.float32)]
        ready = [views.fitted(image, views.kept_size(image.shape[:2], model.resolution), model.rules.interpolation) for image in images]
        order = sorted(range(len(ready)), key=lambda row: ready[row].shape)  # images of one size share a batch
        places: list[int] = []
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            for size in sorted({ready[row].shape for row in chosen}):
                rows = [row for row in chosen if ready[row].shape == size]
                batch = torch.from_numpy(np.stack([ready[row] for row in rows])).to(self.device)
                with torch.inference_mode():
                    seen = views.see(batch, torch.zeros(len(rows), dtype=torch.int64, device=self.device), model.rules, model.resolution)
                    found.append(network(seen).float().cpu().numpy())
                places += rows
        return np.concatenate(found)[np.argsort(places)] if places else found[0]

    def files(self, paths: Iterable[Path]) -> Iterable[Prediction]:
        """Yield a prediction for each file; one that cannot be read yields its error, and the rest goes on."""
        waiting: list[tuple[Path, NDArray[np.uint8] | str]] = []
        for path in paths:
            try:
                waiting.append((path, decoded(path.read_bytes())))
            except (OSError, ValueError, SyntaxError) as error:
                waiting.append((path, str(error).splitlines()[0] if str(error) else type(error).__name__))
            if len(waiting) == _BATCH:
                yield from self._answers(waiting)
                waiting = []
        yield from self._answers(waiting)

    def _answers(self, waiting: list[tuple[Path, NDArray[np.uint8] | str]]) -> Iterable[Prediction]:
        probabilities = iter(np.exp(evaluate.log_softmax(self.logits([image for _, image in waiting if not isinstance(image, str)]))))
        for path, image in waiting:
            if isinstance(image, str):
                yield Prediction(str(path), None, None, error=image)
                continue
            row = next(probabilities)
            ranked = tuple((self.classes[number], float(row[number])) for number in np.argsort(-row, kind="stable"))
            yield Prediction(str(path), *ranked[0], ranked)


def load(path: str | Path, device: str = "auto") -> Classifier:
    """Return a finished run as a classifier; raises `UserError` when there is none."""
    return Classifier(run.load(Path(path)), device)


def restored(finished: run.Run, device: str) -> tuple[Backbone, nn.Sequential]:
    """Return backbone and head of a run with their trained weights, in eval mode on a device.

    Raises:
        UserError: When the run was altered, or the weights do not belong to the plan.
    """
    run.verify(finished)
    plan = finished.plan
    model = backbone.load(plan.backbone, "random", plan.resolution)
    features = int(np.prod(backbone.cut(model, "head", plan.stages_taken, plan.flattens)[0].shapes[0]))
    top = head.make(plan.head, features, len(finished.classes), plan.seed)
    try:
        tensors = finished.weights()
        backbone.restore(model, {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")})
        top.load_state_dict({name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")})
    except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
        raise UserError(f"The weights in {finished.path} do not belong to its plan ({str(error).splitlines()[0]}). Fit it again with --overwrite.") from error
    model.model.to(device).eval()
    return model, top.to(device).eval()


class _First(nn.Module):
    """The single tensor that a network frozen throughout hands over."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> Any:
        return self.body(images)[0]


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return decoded(path.read_bytes())
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{path} cannot be read as an image ({error}). Expected a whole JPEG, PNG, WebP, BMP, TIFF or GIF file. Check the path and the file."
        ) from error

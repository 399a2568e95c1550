"""A transferred network as a scikit-learn classifier: images and labels in, classes and probabilities out.

Refuses to hold a run open: the bytes of the run folder are the fitted state, so a pickle carries safetensors, JSON, TOML and CSV, and no network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from regraft.data.dataset import Dataset, make_dataset
from regraft.data.inputs import images_from_input
from regraft.errors import UserError
from regraft.runs.directory import prepare_dir
from regraft.runs.folder import load_run

if TYPE_CHECKING:
    from regraft.plans.schema import Plan

_LEFT_OUT = ("checkpoints", "state.json")  # what only an unfinished run needs
_WORTH_KEEPING = 64  # images from which on what the frozen part says of them goes into the shared cache when predicting

Given = NDArray[Any] | Sequence[str | Path]


class TransferClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A pretrained network carried over to labelled images.

    `fit` sets validation images aside by the package's own split and no test images: scikit-learn's user keeps those. What the frozen part says of an
    image is kept in the cache, so candidates of a search that share it (heads, rates, seeds) compute it once for each fold.

    Args:
        backbone: Any timm name; EfficientNet-Lite0, whose weights are installed, or the plan's, when None.
        technique: A name that `regraft techniques` lists, or `module:function`; ignored when a plan is given.
        resolution: Side in pixels; what suits images and backbone when None.
        plan: A plan, or the path of its TOML file.
        seed: Of weights, order, augmentation and dropout; None keeps the plan's.
        head: Layers before the class layer, such as "dense 256 relu, dropout 0.5"; the technique's or the plan's own when None.
        changes: Changes to the plan, such as `("phases.0.epochs=5",)`.
        weights: "pretrained", "random", or a file; None as the technique or the plan says.
        split_seed: Of the split into train and val.
        device: "auto", "cpu" or "cuda".
        keep: Whether the frozen part's output is kept: "auto" (by measured cost), "always", "never".
        cache: The cache folder; `REGRAFT_CACHE` or the platform's when None.

    Attributes:
        classes_: The labels, sorted; columns of `predict_proba`.
        plan_: The plan that was carried out.
        scores_: What `scores.json` of the run says: accuracy on train and val with intervals, seconds, parameters, whether the cache was hit.
        files_: The run folder's files by name, as bytes.
    """

    def __init__(
        self,
        backbone: str | None = None,
        technique: str = "linear-probe",
        resolution: int | None = None,
        plan: str | Path | Plan | None = None,
        seed: int | None = 0,
        *,
        head: str | None = None,
        changes: Sequence[str] = (),
        weights: str | None = None,
        split_seed: int = 0,
        device: str = "auto",
        keep: str = "auto",
        cache: str | Path | None = None,
    ) -> None:
        self.backbone, self.technique, self.resolution, self.plan, self.seed = (
            backbone,
            technique,
            resolution,
            plan,
            seed,
        )
        self.head, self.changes, self.weights, self.split_seed = head, changes, weights, split_seed
        self.device, self.keep, self.cache = device, keep, cache

    def fit(self, X: Given, y: Sequence[Any] | NDArray[Any]) -> TransferClassifier:
        """Return self, fitted.

        Args:
            X: Images `(n, h, w, 3)` uint8, or the paths of n image files.
            y: A label of each image: strings or whole numbers.

        Raises:
            UserError: When images, labels and plan do not go together; nothing is changed then.
        """
        from regraft.workflow.planning import make
        from regraft.workflow.story import fit

        images = images_from_input(X, "X")
        check_classification_targets(y)
        labels = column_or_1d(y, warn=True)
        if len(labels) != len(images):
            raise UserError(
                f"X holds {len(images):,} images, y {len(labels):,} labels. Expected one label an image. Give both in the same order."
            )
        classes, numbers = np.unique(labels, return_inverse=True)
        table = make_dataset("X", numbers, [str(one) for one in classes], images, tested=False)
        settings = self._settings()
        made = make(table, settings.split(table), self._wish(), settings.device)
        with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
            done = fit(table, made, Path(scratch) / "run", settings)
            files = {
                path.name: path.read_bytes()
                for path in sorted(done.path.iterdir())
                if path.name not in _LEFT_OUT
            }
        self.classes_, self.plan_, self.scores_, self.files_ = (
            classes,
            done.plan,
            done.scores,
            files,
        )
        self.__dict__.pop("_ready", None)
        return self

    def predict(self, X: Given) -> NDArray[Any]:
        """Return the label of each image `(n,)`; takes what `fit` takes."""
        chances = self.predict_proba(X)
        found: NDArray[Any] = self.classes_[chances.argmax(axis=1)]
        return found

    def predict_proba(self, X: Given) -> NDArray[np.float64]:
        """Return probabilities `(n, classes)`, rows summing to 1, columns as in `classes_`; takes what `fit` takes.

        Raises:
            UserError: When a file is missing or no image.
            sklearn.exceptions.NotFittedError: Before `fit`.
        """
        from regraft.evaluation.scores import log_softmax
        from regraft.workflow.parts import Part, logits
        from regraft.workflow.story import final_cut

        check_is_fitted(self, "files_")
        images = images_from_input(X, "X")
        if not len(images):
            return np.zeros((0, len(self.classes_)))
        hashes = images.hashes()
        table = Dataset(
            "X", hashes, np.zeros(len(images), np.int64), tuple(map(str, self.classes_)), images
        )
        table.__dict__["hashes"] = hashes
        model, top = self._network
        prefix, suffix = final_cut(model, self.plan_)
        with self._home(len(images)) as home:
            part = Part("X", table, replace(self._settings(), home=home))
            said = logits(part, model, prefix, suffix, top, self.plan_, keep=self.keep != "never")
        return np.exp(log_softmax(said))

    def save(self, path: str | Path) -> Path:
        """Return the folder, now holding the run: `regraft predict`, `regraft serve` and `regraft.load` take it.

        Raises:
            UserError: When there is something in it already, or it cannot be written.
        """
        check_is_fitted(self, "files_")
        folder = Path(path).expanduser()
        prepare_dir(folder, "run", None, False)
        try:
            self._write(folder)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}). Expected a folder to put the run in. Give another one."
            ) from error
        return folder

    def __getstate__(self) -> dict[str, Any]:
        """Return parameters and the bytes of the run: no network."""
        state = dict(super().__getstate__())
        state.pop("_ready", None)
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "files_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        tags.classifier_tags.poor_score = (
            True  # of the tables of numbers that scikit-learn's own checks hand out
        )
        return tags

    @property
    def _network(self) -> Any:
        """Backbone and head with the fitted weights, made once from the bytes."""
        if "_ready" not in self.__dict__:
            from regraft.inference.network import restore_network
            from regraft.system.hardware import resolve_device

            with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
                self._write(Path(scratch))
                self._ready = restore_network(load_run(Path(scratch)), resolve_device(self.device))
        return self._ready

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files_.items():
            (folder / name).write_bytes(content)

    def _wish(self) -> Any:
        from regraft.workflow.planning import Wish

        changes = [*([] if self.head is None else [f"head={self.head}"]), *self.changes]
        return Wish(
            self.technique,
            self.plan,
            self.backbone,
            self.weights,
            self.resolution,
            self.seed,
            changes,
        )

    def _settings(self) -> Any:
        from regraft.workflow.named import asked

        return asked(
            {
                "home": self.cache,
                "split_seed": self.split_seed,
                "device": self.device,
                "keep": self.keep,
            }
        )

    @contextmanager
    def _home(self, count: int) -> Iterator[Path]:
        """Give the shared cache, or for a few images a folder of their own that goes away: entries of one image would be litter."""
        if count >= _WORTH_KEEPING:
            yield self._settings().home
            return
        with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
            yield Path(scratch)

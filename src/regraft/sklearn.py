"""A transferred network as a scikit-learn classifier: images and labels in, classes out.

The bytes of the run folder are the fitted state: a pickle carries safetensors, JSON, TOML and CSV,
and no network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from regraft.options import CacheOptions, DataOptions, Options, PlanOverrides, RunDir, Runtime
from regraft.runs import layout
from regraft.runs.directory import prepare_dir
from regraft.runs.folder import load_run

if TYPE_CHECKING:
    from regraft.models.network import TransferNetwork
    from regraft.plans.schema import Plan

__all__ = ["TransferClassifier"]

_WORTH_CACHING = 64  # images from which on features go into the shared cache when predicting

Images = NDArray[Any] | Sequence[str | Path]


class TransferClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A pretrained network carried over to labelled images.

    `fit` sets validation images aside by the package's own split, and no test images: those are
    scikit-learn's user's to keep. The frozen part's output is cached, so candidates of a search
    that share it (heads, rates, seeds) compute it once for each fold.

    Args:
        technique: A name that `regraft techniques` lists, or `module:function`; ignored when a
            plan is given.
        backbone: Any timm name; EfficientNet-Lite0, whose weights are installed, or the plan's,
            when None.
        resolution: Side in pixels; what suits images and backbone when None.
        plan: A plan, or the path of its TOML file.
        seed: Of weights, order, augmentation and dropout; None keeps the plan's.
        head: Layers before the class layer, such as "linear 256 relu, dropout 0.5"; the
            technique's or the plan's own when None.
        overrides: Changes to the plan, such as `("phases.0.epochs=5",)`.
        weights: "pretrained", "random", or a file; None as the technique or the plan says.
        split_seed: Of the split into train and val.
        device: "auto", "cpu" or "cuda".
        keep: Whether the frozen part's output is cached: "auto" (by measured cost), "always",
            "never".
        cache_dir: The cache folder; `REGRAFT_CACHE` or the platform's when None.

    Attributes:
        classes_: The labels, sorted; columns of `predict_proba`.
        plan_: The plan that was carried out.
        scores_: What `scores.json` of the run says, see `regraft.runs.scores.RunScores`: accuracy
            on train and val with intervals, seconds, parameters, whether the cache was hit.
        files_: The run folder's files by name, as bytes.
    """

    def __init__(  # noqa: PLR0913  scikit-learn wants every parameter by name
        self,
        technique: str = "linear-probe",
        backbone: str | None = None,
        resolution: int | None = None,
        plan: str | Path | Plan | None = None,
        seed: int | None = 0,
        *,
        head: str | None = None,
        overrides: Sequence[str] = (),
        weights: str | None = None,
        split_seed: int = 0,
        device: str = "auto",
        keep: str = "auto",
        cache_dir: str | Path | None = None,
    ) -> None:
        self.technique = technique
        self.backbone = backbone
        self.resolution = resolution
        self.plan = plan
        self.seed = seed
        self.head = head
        self.overrides = overrides
        self.weights = weights
        self.split_seed = split_seed
        self.device = device
        self.keep = keep
        self.cache_dir = cache_dir

    def fit(self, X: Images, y: Sequence[Any] | NDArray[Any]) -> TransferClassifier:
        """Return self, fitted.

        Args:
            X: Images `(n, h, w, 3)` uint8, or the paths of n image files.
            y: A label of each image: strings or whole numbers.

        Raises:
            UserError: When images, labels and plan do not go together; nothing is changed then.
        """
        from regraft.commands.fit import fit

        images = images_from_input(X, "X")
        check_classification_targets(y)
        labels = column_or_1d(y, warn=True)
        if len(labels) != len(images):
            raise UserError(
                f"X holds {len(images):,} images, y {len(labels):,} labels. Expected one label an "
                "image. Give both in the same order."
            )
        classes, numbers = np.unique(labels, return_inverse=True)
        names = [str(name) for name in classes]
        dataset = make_dataset("X", numbers, names, images, tested=False)
        with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
            options = self._options(RunDir(Path(scratch) / "run"))
            run = fit(dataset, self.technique, self._plan_overrides(), options)
            files = _read_files(run.path)
        self.classes_ = classes
        self.plan_ = run.plan
        self.scores_ = run.scores
        self.files_ = files
        self.__dict__.pop("_restored", None)
        return self

    def predict(self, X: Images) -> NDArray[Any]:
        """Return the label of each image `(n,)`; takes what `fit` takes."""
        probabilities = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def predict_proba(self, X: Images) -> NDArray[np.float64]:
        """Return probabilities `(n, classes)`, rows summing to 1; takes what `fit` takes.

        Columns are in the order of `classes_`.

        Raises:
            UserError: When a file is missing or no image.
            sklearn.exceptions.NotFittedError: Before `fit`.
        """
        from regraft.evaluation.scores import log_softmax
        from regraft.features.parts import PartImages
        from regraft.features.policy import CachePolicy
        from regraft.features.scoring import compute_logits

        check_is_fitted(self, "files_")
        images = images_from_input(X, "X")
        if not len(images):
            return np.zeros((0, len(self.classes_)))
        hashes = images.hashes()
        unknown = np.zeros(len(images), np.int64)
        names = tuple(map(str, self.classes_))
        dataset = Dataset("X", hashes, unknown, names, images, known_hashes=hashes)
        network = self._network
        with self._cache(len(images)) as cache:
            part = PartImages("X", dataset, cache, self._options().runtime)
            logits = compute_logits(network, network.final_cut(), part, CachePolicy(cache))
        return np.exp(log_softmax(logits))

    def save(self, path: str | Path) -> Path:
        """Return the folder, which now holds the run.

        `regraft predict`, `regraft serve` and `regraft.load` take it.

        Raises:
            UserError: When there is something in it already, or it cannot be written.
        """
        check_is_fitted(self, "files_")
        folder = Path(path).expanduser()
        prepare_dir(folder, "run", RunDir(), can_resume=False)
        try:
            self._write(folder)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}). Expected a folder to put the run "
                "in. Give another one."
            ) from error
        return folder

    def __getstate__(self) -> dict[str, Any]:
        """Return parameters and the bytes of the run: no network."""
        state = dict(super().__getstate__())
        state.pop("_restored", None)
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "files_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        # of the tables of numbers that scikit-learn's own checks hand out
        tags.classifier_tags.poor_score = True
        return tags

    @property
    def _network(self) -> TransferNetwork:
        """The network with the fitted weights, made once from the bytes."""
        if "_restored" not in self.__dict__:
            from regraft.inference.restore import restore_network
            from regraft.system.hardware import resolve_device

            with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
                self._write(Path(scratch))
                run = load_run(Path(scratch))
                self._restored = restore_network(run, resolve_device(self.device))
        return self._restored

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files_.items():
            (folder / name).write_bytes(content)

    def _plan_overrides(self) -> PlanOverrides:
        changes = list(self.overrides)
        if self.head is not None:
            changes.insert(0, f"head={self.head}")
        return PlanOverrides(
            self.plan, self.backbone, self.weights, self.resolution, self.seed, changes
        )

    def _options(self, run_dir: RunDir = RunDir()) -> Options:
        return Options(
            DataOptions(split_seed=self.split_seed),
            CacheOptions(self.cache_dir, self.keep),
            Runtime(self.device),
            run_dir,
        )

    @contextmanager
    def _cache(self, images: int) -> Iterator[CacheOptions]:
        """Give the shared cache, or for a few images a folder that goes away.

        Entries of one image would be litter.
        """
        if images >= _WORTH_CACHING:
            yield self._options().cache
            return
        with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
            yield CacheOptions(scratch, self.keep)


def _read_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a run, without what only an unfinished run needs."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name not in layout.UNFINISHED:
            files[path.name] = path.read_bytes()
    return files

"""A linear head on frozen features, fitted by L-BFGS along a path of L2 values.

The best value is chosen on validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.system.progress import SILENT, ProgressReporter
from regraft.training.selection import rank_validation

_PATIENCE = 2
_COARSE = 1e-5  # change of the loss at which L-BFGS ends along the path
_FINE = 1e-9  # the same for the chosen value
_MAX_ITERATIONS = 150  # for each L2 value, from the solution of the one before
PRIOR_IMAGES = 10  # images' worth of the mean variance in each feature's variance
_MIN_STD = 1e-6
_RANK_TOLERANCE = 1e-6  # eigenvalues below this share of the largest count as zero


@dataclass(frozen=True)
class LabelledFeatures:
    """Features `(n, d)` float32 and class numbers `(n,)` of the same images."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy over a number of classes, with a weight for each and label smoothing."""

    classes: int
    class_weights: Tensor | None = None
    smoothing: float = 0.0

    def coefficients(self, labels: Tensor) -> Tensor:
        """Return `(n, classes)` so that the loss is minus the sum of these times log p."""
        weights = self.class_weights
        if weights is None:
            weights = torch.ones(self.classes, device=labels.device)
        hard = functional.one_hot(labels, self.classes) * weights
        soft = (1 - self.smoothing) * hard + self.smoothing / self.classes * weights
        return soft / hard.sum()


@dataclass(frozen=True)
class PathPoint:
    """Loss (cross-entropy in nats) and accuracy at one L2 value."""

    l2: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float

    def to_json(self) -> dict[str, float]:
        """Return the point as it is written to JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LinearProbe:
    """The layer at the chosen L2 value, and a point for each value that was tried."""

    layer: nn.Linear
    l2: float
    history: list[PathPoint]

    @property
    def chosen(self) -> PathPoint:
        """The point of the chosen L2 value."""
        return next(point for point in self.history if point.l2 == self.l2)


def fit_logistic(
    train: LabelledFeatures,
    val: LabelledFeatures,
    loss: CrossEntropy,
    l2_path: Sequence[float],
    monitor: str = "val_accuracy",
    reporter: ProgressReporter = SILENT,
) -> LinearProbe:
    """Return the linear layer that minimises `loss + l2 / 2 · ‖W‖²`.

    L2 is the value that does best on `val`. Along the path L-BFGS stops early; for the chosen
    value it goes on. Features are standardised by the training part, and this is folded into the
    layer, which takes raw features. The bias is not penalised. In scikit-learn `C` is
    `1 / (n · l2)`.

    Args:
        train: Training features and labels.
        val: The same of the validation part.
        loss: Number of classes, their weights and label smoothing.
        l2_path: L2 values to try, the largest first. Ends early when two in a row are worse in
            accuracy and in loss.
        monitor: "val_accuracy" (ties by loss) or "val_loss".
        reporter: Is told the progress.
    """
    scale = _Standardisation.of(train.features)
    problem = _Problem.of(scale.apply(train), scale.apply(val), loss)
    number, solution, history = _follow_path(problem, l2_path, monitor, reporter)
    l2 = history[number].l2
    solution = problem.minimise(solution, l2, _FINE)
    history[number] = problem.evaluate(solution, l2)
    layer = scale.fold(problem.leave_span(solution.weight), solution.bias)
    return LinearProbe(layer, l2, history)


@dataclass(frozen=True)
class _Standardisation:
    """Mean and standard deviation of each feature, `(d,)`.

    Each variance is shrunk towards the mean variance of all features. A feature that is zero in
    all but one image would have a tiny spread of its own, and be huge in the next image where it
    is not zero. `benchmarks/standardise.py` compares weights of that mean.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> _Standardisation:
        variance = features.var(dim=0, correction=0)
        images = len(features)
        prior = PRIOR_IMAGES * variance.mean()
        shrunk = (images * variance + prior) / (images + PRIOR_IMAGES)
        return cls(features.mean(dim=0), shrunk.sqrt().clamp(min=_MIN_STD))

    def apply(self, part: LabelledFeatures) -> LabelledFeatures:
        return LabelledFeatures((part.features - self.mean) / self.std, part.labels)

    def fold(self, weight: Tensor, bias: Tensor) -> nn.Linear:
        """Return the layer on raw features that equals weight and bias on standardised ones."""
        classes, features = weight.shape
        layer = nn.Linear(features, classes)
        with torch.no_grad():
            layer.weight.copy_(weight / self.std)
            layer.bias.copy_(bias - (weight * (self.mean / self.std)).sum(dim=1))
        return layer


@dataclass(frozen=True)
class _Solution:
    """Weight `(classes, d)` and bias `(classes,)`."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Problem:
    """A loss on standardised features.

    Args:
        train: Training features `(n, r)` and labels.
        val: The same of the validation part.
        targets: By how much each log-probability counts, `(n, classes)`.
        eigenvalues: Of `xᵀx / n`, `(r,)`.
        eigenvectors: `(r, r)`; None where the features are coordinates along them already.
        span: `(d, r)`, the directions that fewer images than features span; None where there are
            no fewer.
    """

    train: LabelledFeatures
    val: LabelledFeatures
    targets: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None
    span: Tensor | None

    @classmethod
    def of(cls, train: LabelledFeatures, val: LabelledFeatures, loss: CrossEntropy) -> _Problem:
        x = train.features
        targets = loss.coefficients(train.labels)
        if len(x) >= x.shape[1]:
            eigenvalues, eigenvectors = _eigen(x.T @ x / len(x))
            return cls(train, val, targets, eigenvalues, eigenvectors, None)
        eigenvalues, span = _span(x)
        train = LabelledFeatures(x @ span, train.labels)
        val = LabelledFeatures(val.features @ span, val.labels)
        return cls(train, val, targets, eigenvalues, None, span)

    def start(self) -> _Solution:
        """Return zeros."""
        x = self.train.features
        classes = self.targets.shape[1]
        weight = torch.zeros(classes, x.shape[1], device=x.device)
        return _Solution(weight, torch.zeros(classes, device=x.device))

    def minimise(self, start: _Solution, l2: float, tolerance: float) -> _Solution:
        """Return the minimum by L-BFGS."""
        coordinates = _Coordinates.of(self, start, l2)
        weight, bias = coordinates.enter(start)
        mass = self.targets.sum(dim=1, keepdim=True)
        x = self.train.features
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=_MAX_ITERATIONS,
            history_size=10,
            tolerance_grad=tolerance,
            tolerance_change=tolerance,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def closure() -> Tensor:
            point = coordinates.leave(weight, bias)
            logits = functional.linear(x, point.weight, point.bias)
            log_p = functional.log_softmax(logits, dim=1)
            # in double precision, or the line search is blind near the end
            penalty = l2 / 2 * point.weight.square().sum(dtype=torch.float64)
            loss = penalty - (self.targets * log_p).sum(dtype=torch.float64)
            logit_gradient = log_p.exp_().mul_(mass).sub_(self.targets)
            weight_gradient = logit_gradient.T @ x + l2 * point.weight
            weight.grad, bias.grad = coordinates.pull_back(weight_gradient, logit_gradient)
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return coordinates.leave(weight, bias)

    def evaluate(self, solution: _Solution, l2: float) -> PathPoint:
        """Return loss and accuracy on both parts."""
        train_loss, train_accuracy = _loss_and_accuracy(self.train, solution)
        val_loss, val_accuracy = _loss_and_accuracy(self.val, solution)
        return PathPoint(l2, train_loss, train_accuracy, val_loss, val_accuracy)

    def leave_span(self, weight: Tensor) -> Tensor:
        """Return the weight on standardised features, `(classes, d)`."""
        return weight if self.span is None else weight @ self.span.T


@dataclass(frozen=True)
class _Coordinates:
    """Coordinates in which the curvature is about the same in every direction.

    The Hessian of the loss is close to `c · xᵀx / n + l2`, with `c` the mean of p (1 - p) over
    images and classes. Coordinates along its axes are stretched by the root of that
    (preconditioning as in Nocedal and Wright, 2006, chapter 5). L-BFGS needs an eighth of the
    iterations that it takes in raw coordinates.
    """

    axes: Tensor | None
    stretch: Tensor
    bias_stretch: float

    @classmethod
    def of(cls, problem: _Problem, start: _Solution, l2: float) -> _Coordinates:
        logits = functional.linear(problem.train.features, start.weight, start.bias)
        p = logits.softmax(dim=1)
        curvature = float((p * (1 - p)).mean())
        stretch = (curvature * problem.eigenvalues.clamp(min=0) + l2).sqrt()
        return cls(problem.eigenvectors, stretch, curvature**0.5)

    def enter(self, solution: _Solution) -> tuple[Tensor, Tensor]:
        weight = self._along_axes(solution.weight) * self.stretch
        return weight, solution.bias * self.bias_stretch

    def leave(self, weight: Tensor, bias: Tensor) -> _Solution:
        along = weight / self.stretch
        raw = along if self.axes is None else along @ self.axes.T
        return _Solution(raw, bias / self.bias_stretch)

    def pull_back(self, weight_gradient: Tensor, logit_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients along these coordinates, of weight and bias."""
        weight = self._along_axes(weight_gradient) / self.stretch
        return weight, logit_gradient.sum(dim=0) / self.bias_stretch

    def _along_axes(self, raw: Tensor) -> Tensor:
        return raw if self.axes is None else raw @ self.axes


def _follow_path(
    problem: _Problem, l2_path: Sequence[float], monitor: str, reporter: ProgressReporter
) -> tuple[int, _Solution, list[PathPoint]]:
    """Return the number of the best L2 value, its solution, and all points."""
    history: list[PathPoint] = []
    best_number = 0
    best_solution = solution = problem.start()
    for number, l2 in enumerate(sorted(l2_path, reverse=True)):
        solution = problem.minimise(solution, l2, _COARSE)
        history.append(problem.evaluate(solution, l2))
        best_rank = _rank(history[best_number], monitor)
        if number == 0 or _rank(history[-1], monitor) > best_rank:
            best_number = number
            best_solution = solution
        reporter.progress("solve", number + 1, len(l2_path))
        if _worsens(history):
            break
    return best_number, best_solution, history


def _rank(point: PathPoint, monitor: str) -> tuple[float, float]:
    return rank_validation(point.val_accuracy, point.val_loss, monitor)


def _worsens(history: list[PathPoint]) -> bool:
    """Whether the last two points are worse than the best before, in accuracy and in loss."""
    if len(history) <= _PATIENCE:
        return False
    accuracies = [point.val_accuracy for point in history]
    losses = [point.val_loss for point in history]
    less_accurate = max(accuracies[-_PATIENCE:]) < max(accuracies[:-_PATIENCE])
    more_loss = min(losses[-_PATIENCE:]) > min(losses[:-_PATIENCE])
    return less_accurate and more_loss


def _loss_and_accuracy(part: LabelledFeatures, solution: _Solution) -> tuple[float, float]:
    logits = functional.linear(part.features, solution.weight, solution.bias)
    accuracy = (logits.argmax(dim=1) == part.labels).float().mean()
    loss = functional.cross_entropy(logits, part.labels)
    return float(loss), float(accuracy)


def _span(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of `xᵀx / n` that are not zero, and their eigenvectors `(d, r)`.

    They come from the smaller matrix `xxᵀ / n`.
    """
    values, vectors = _eigen(x @ x.T / len(x))
    nonzero = values > values[-1] * _RANK_TOLERANCE
    values = values[nonzero]
    lengths = (values * len(x)).sqrt()
    return values, x.T @ (vectors[:, nonzero] / lengths)


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, the smallest first, and eigenvectors.

    In double precision where single precision does not converge.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = torch.linalg.eigh(matrix.double())
    return values.to(matrix.dtype), vectors.to(matrix.dtype)

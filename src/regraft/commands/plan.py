"""`regraft plan`: what a plan would do, and about how long it would take; nothing is trained."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regraft.commands.resolve import resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.data.split import PARTS, Split
from regraft.errors import UserError
from regraft.features.extract import entry_bytes
from regraft.features.policy import CachePolicy, FrozenWork
from regraft.models.network import Cut, TransferNetwork
from regraft.models.pool import BackbonePool
from regraft.options import CacheOptions, Options, PlanOverrides
from regraft.plans.schema import Phase, Plan
from regraft.plans.toml import write_plan
from regraft.system.disk import check_writable
from regraft.system.hardware import tune_allocator

_TIMED_IMAGES = 16  # of the pass that is timed for the estimate
_BACKWARD = 2.0  # a backward pass costs about two forward passes
_LBFGS_SECONDS = 4e-8  # for a feature, an image and an L2 value
_STEP_SECONDS = 5e-5  # of a head, for an image


@dataclass(frozen=True)
class PhaseForecast:
    """What one phase would do.

    Args:
        train: From where on it trains.
        optimizer: Its optimizer.
        epochs: Passes over the training images at most.
        frozen_parameters: Parameters of the frozen part.
        trained_parameters_of_backbone: Parameters of the trained part, without the head.
        cache_bytes: Bytes that the frozen part's output takes.
        kept: Whether it would be cached.
        decision: Why.
        seconds_without_cache: About how long it would take without the cache.
        seconds: About how long it would take.
    """

    train: str
    optimizer: str
    epochs: int
    frozen_parameters: int
    trained_parameters_of_backbone: int
    cache_bytes: int
    kept: bool
    decision: str
    seconds_without_cache: float
    seconds: float


@dataclass(frozen=True)
class PlanForecast:
    """What a plan would do with some images.

    Args:
        plan: The plan.
        data: Name of the images.
        images: Number of images in each part.
        classes: Number of classes.
        parameters: Parameters by what happens to them.
        phases: What each phase would do.
    """

    plan: Plan
    data: str
    images: dict[str, int]
    classes: int
    parameters: dict[str, int]
    phases: tuple[PhaseForecast, ...]

    @property
    def seconds(self) -> float:
        """About how long it would take, without start-up and compilation."""
        return round(sum(phase.seconds for phase in self.phases), 1)

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "plan": self.plan.model_dump(mode="json"),
            "plan_digest": self.plan.digest,
            "data": self.data,
            "images": self.images,
            "classes": self.classes,
            "parameters": self.parameters,
            "phases": [asdict(phase) for phase in self.phases],
            "seconds": self.seconds,
        }


def plan(
    data: str | Path | Dataset,
    technique: str = "linear-probe",
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
    save: str | Path | None = None,
) -> PlanForecast:
    """Return what a technique or a plan would do with these images; nothing is trained.

    Args:
        data: The images.
        technique: As for `fit`.
        overrides: What else is asked of the plan.
        options: `data`, `cache` and `runtime` count.
        save: A TOML file to write the plan to.

    Raises:
        UserError: When the file exists already, or names, plan and images do not go together.
    """
    tune_allocator()
    target = None if save is None else Path(save)
    if target is not None:
        _require_new(target)
    dataset = load_dataset(data, options.cache.dir)
    split = split_dataset(dataset, options.data)
    pool = BackbonePool(options.runtime.device)
    resolved = resolve_plan(technique, dataset, split, overrides, pool)
    forecast = forecast_plan(resolved, dataset, split, options.cache, pool)
    if target is not None:
        _save(resolved, target)
    return forecast


def _require_new(path: Path) -> None:
    if path.exists():
        raise UserError(
            f"{path} exists already. Expected a new file for the plan. Give another name with "
            "--save, or remove it."
        )
    check_writable(path.parent, path, "--save")


def _save(plan: Plan, path: Path) -> None:
    try:
        write_plan(plan, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Give a file in a folder that can with "
            "--save."
        ) from error


def forecast_plan(
    plan: Plan, dataset: Dataset, split: Split, cache: CacheOptions, pool: BackbonePool
) -> PlanForecast:
    """Return what a plan would do, from timing one pass of a few blank images."""
    network = TransferNetwork(pool.load(plan), plan, dataset.classes)
    plan.check(network.backbone.facts, dataset.classes)
    policy = CachePolicy(cache)
    phases = [_forecast_phase(network, phase, split, policy) for phase in plan.phases]
    return PlanForecast(
        plan,
        dataset.name,
        {name: len(split[name]) for name in PARTS},
        len(dataset.classes),
        network.count_parameters(),
        tuple(phases),
    )


def _forecast_phase(
    network: TransferNetwork, phase: Phase, split: Split, policy: CachePolicy
) -> PhaseForecast:
    cut = network.cut(phase)
    train = len(split.train)
    val = len(split.val)
    epochs = 1 if phase.optimizer == "lbfgs" else phase.epochs
    trained = sum(parameter.numel() for parameter in cut.trained.parameters())
    forward = _time_trained(cut) if trained else 0.0
    fitting = epochs * (train * forward * (1 + _BACKWARD) + val * forward)
    fitting += _head_seconds(phase, cut, epochs, train)
    cached = 0.0
    live = 0.0
    needed = 0
    is_cached = False
    reason = ""
    if not cut.is_empty:
        needed = entry_bytes(cut, train, phase.looks) + entry_bytes(cut, val)
        work = FrozenWork(cut, phase, train, val, needed)
        decision = policy.for_phase(work)
        costs = decision.costs or policy.costs(work)
        cached = costs.cached
        live = costs.live
        is_cached = decision.cached
        reason = decision.reason
    return PhaseForecast(
        train=phase.train,
        optimizer=phase.optimizer,
        epochs=epochs,
        frozen_parameters=sum(parameter.numel() for parameter in cut.frozen.parameters()),
        trained_parameters_of_backbone=trained,
        cache_bytes=needed,
        kept=is_cached,
        decision=reason,
        seconds_without_cache=round(fitting + live, 1),
        seconds=round(fitting + (cached if is_cached else live), 1),
    )


def _head_seconds(phase: Phase, cut: Cut, epochs: int, images: int) -> float:
    """Return about how long the head takes."""
    if phase.optimizer == "lbfgs":
        features = cut.frozen.shapes[0].numel()
        return len(phase.l2) * images * features * _LBFGS_SECONDS
    return epochs * images * _STEP_SECONDS


def _time_trained(cut: Cut) -> float:
    """Return the seconds of one image through the trained part, forwards."""
    blank = torch.zeros(_TIMED_IMAGES, 32, 32, 3, dtype=torch.uint8, device=cut.device)
    seconds = 0.0
    cut.trained.eval()
    with torch.inference_mode():
        features = cut.frozen(cut.preprocess(blank))
        for _ in range(2):  # the first pass warms up
            started = time.perf_counter()
            cut.trained(*features)
            seconds = time.perf_counter() - started
    return seconds / _TIMED_IMAGES

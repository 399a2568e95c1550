"""One phase of a plan: read frozen features, fit the rest, check that nothing frozen changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import UserError, join_truncated
from regraft.features.batches import Batches, Reader
from regraft.features.parts import PartImages
from regraft.features.policy import CachePolicy, open_readers
from regraft.features.reader import Augmentation, FrozenFeatures
from regraft.models.head import compute_class_weights
from regraft.models.layers import distance_to_head
from regraft.models.network import Cut, TransferNetwork
from regraft.models.optimize import use_channels_last
from regraft.options import Runtime
from regraft.plans.schema import Phase
from regraft.runs.layout import PhaseFiles
from regraft.system.hardware import is_out_of_memory
from regraft.system.timer import Timer
from regraft.training.freeze_check import NOT_OPTIMIZED, FreezeCheck, Optimized, count_batch_norms
from regraft.training.linear import CrossEntropy, LabelledFeatures, fit_logistic

_BATCH_ONLY = (
    "lr",
    "epochs",
    "batch_size",
    "schedule",
    "warmup",
    "momentum",
    "layer_decay",
    "min_delta",
    "batch_norm",
)  # fields of a phase that only training by batches uses
_READ_AT_ONCE = 500  # images for a linear probe; they may come through the network


@dataclass(frozen=True)
class PhaseInputs:
    """What a phase is fitted on.

    Args:
        train: Training images.
        val: Validation images.
        policy: Decides what is cached.
        runtime: How the machine is used.
        timer: Gets the seconds of "extract" and "train".
    """

    train: PartImages
    val: PartImages
    policy: CachePolicy
    runtime: Runtime
    timer: Timer


@dataclass(frozen=True)
class PhaseResult:
    """What a phase left.

    Args:
        history: A row for each epoch, or each L2 value of a linear probe.
        freeze_check: What `freeze.json` says of it.
        execution: How it ran, where that was measured.
    """

    history: list[dict[str, Any]]
    freeze_check: dict[str, Any]
    execution: dict[str, Any] | None


@dataclass(frozen=True)
class _Readers:
    train: Reader
    val: Reader


def train_phase(
    network: TransferNetwork, inputs: PhaseInputs, files: PhaseFiles, resume: bool
) -> PhaseResult:
    """Fit one phase of a network's plan; the network is left with the best weights.

    Args:
        network: The network.
        inputs: What it is fitted on.
        files: Where checkpoints go; their number is the phase's.
        resume: Go on from a checkpoint of this phase.

    Raises:
        UserError: When phase and images do not go together.
    """
    number = files.number
    phase = network.plan.phases[number]
    cut = network.cut(phase)
    check = FreezeCheck(number, phase, cut)
    augmentation = Augmentation.of(phase, network.plan.seed)
    with inputs.timer.time("extract"):
        train = FrozenFeatures(inputs.train, cut, augmentation)
        val = FrozenFeatures(inputs.val, cut)
        reporter = inputs.runtime.reporter
        readers = _Readers(*open_readers(train, val, phase, inputs.policy, reporter))
    with inputs.timer.time("train"):
        fitting = _Fitting(network, inputs, phase, readers)
        if phase.optimizer == "lbfgs":
            history = fitting.linear_probe()
            optimized = NOT_OPTIMIZED
            execution = None
        else:
            history, optimized, execution = fitting.by_batches(cut, files, resume)
    result = check.result(optimized)
    if not result["kept"]:
        reporter.log(
            f"Frozen tensors changed during training: {join_truncated(result['changed'])}. "
            "Do not trust this run."
        )
    rows = [{"phase": number, **row} for row in history]
    return PhaseResult(rows, result, execution)


@dataclass(frozen=True)
class _Fitting:
    network: TransferNetwork
    inputs: PhaseInputs
    phase: Phase
    readers: _Readers

    def _class_weights(self) -> Tensor | None:
        labels = torch.from_numpy(self.inputs.train.labels)
        return compute_class_weights(self.network.plan.class_weights, labels, self.network.classes)

    def linear_probe(self) -> list[dict[str, Any]]:
        """Fit the class layer by L-BFGS along the L2 path; returns the history."""
        phase = self.phase
        reporter = self.inputs.runtime.reporter
        self._warn_of_unused(phase)
        train = _collect(self.readers.train, self.inputs.train)
        val = _collect(self.readers.val, self.inputs.val)
        weights = self._class_weights()
        if weights is not None:
            weights = weights.to(train.features.device)
        loss = CrossEntropy(len(self.network.classes), weights, phase.label_smoothing)
        probe = fit_logistic(train, val, loss, phase.l2, phase.monitor, reporter)
        class_layer = self.network.head[-1]
        class_layer.load_state_dict(probe.layer.state_dict())
        history = [point.to_json() for point in probe.history]
        for row in history:
            reporter.metrics(row)
        reporter.log(
            f"Fitted the linear probe for {len(probe.history)} values of L2; {probe.l2:g} does "
            "best on validation."
        )
        return history

    def _warn_of_unused(self, phase: Phase) -> None:
        stated = phase.model_dump(exclude_defaults=True)
        unused = [f"{name} = {stated[name]}" for name in _BATCH_ONLY if name in stated]
        if unused:
            self.inputs.runtime.reporter.log(
                f"A linear probe has no use for {join_truncated(unused)}."
            )

    def by_batches(
        self, cut: Cut, files: PhaseFiles, resume: bool
    ) -> tuple[list[dict[str, Any]], Optimized, dict[str, Any]]:
        """Fit trained part and head with Lightning."""
        from regraft.training.autotune import Notes, autotune
        from regraft.training.module import TransferModule, describe_groups
        from regraft.training.trainer import FitSettings, fit_phase

        phase = self.phase
        plan = self.network.plan
        reporter = self.inputs.runtime.reporter
        self._require_batches(cut)
        seed = plan.seed * 1009 + files.number
        depth = distance_to_head(self.network.backbone)
        module = TransferModule(
            cut.trained, self.network.head, phase, seed, depth, self._class_weights()
        )
        module.to(self.network.device)
        use_channels_last(module)
        val = Batches(self.readers.val, self.inputs.val.labels, max(250, phase.batch_size), None)
        notes = Notes(files.execution, self.inputs.train.cache)
        for share in self._shares(module):
            size = max(1, phase.batch_size // share)
            train = Batches(self.readers.train, self.inputs.train.labels, size, seed)
            try:
                execution = autotune(module, train, plan, notes, self.inputs.runtime)
                settings = FitSettings(
                    files, execution.precision, resume and share == 1, share, reporter
                )
                result = fit_phase(module, train, val, settings)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size < 4:
                    raise
        self._report_best(result.history, result.best_epoch)
        optimized = Optimized(describe_groups(module), result.without_gradient)
        return result.history, optimized, {"phase": files.number, **execution.to_json()}

    def _require_batches(self, cut: Cut) -> None:
        """Raise `UserError` where BatchNorm would train on single images."""
        norms = count_batch_norms(self.network.head)
        if self.phase.batch_norm == "adapt":
            norms += count_batch_norms(cut.trained)
        if self.phase.batch_size == 1 and norms:
            raise UserError(
                "batch_size = 1 was given, but BatchNorm needs at least two images to train on. "
                "Give a larger batch_size."
            )

    def _shares(self, module: nn.Module) -> Iterator[int]:
        """Yield into how many batches a step is divided: 1, and twice as many after each failure.

        Before another try the module is put back as it was.
        """
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        share = 1
        while True:
            yield share
            share *= 2
            module.load_state_dict(before)
            module.zero_grad(set_to_none=True)
            self.inputs.runtime.reporter.log(
                "Memory is short; the phase starts again with batches of "
                f"{self.phase.batch_size // share}, {share} of which make a step."
            )

    def _report_best(self, history: list[dict[str, Any]], best_epoch: int) -> None:
        monitor = self.phase.monitor
        value = float("nan")
        for row in history:
            if row["epoch"] == best_epoch:
                value = row[monitor]
        self.inputs.runtime.reporter.log(
            f"Trained from {self.phase.train!r} on; the best epoch is {best_epoch + 1} of "
            f"{len(history)} ({monitor} {value:.4f})."
        )


def _collect(read: Reader, part: PartImages) -> LabelledFeatures:
    """Return features and labels of a whole part."""
    features = []
    for tensors, _ in Batches(read, part.labels, _READ_AT_ONCE, None):
        features.append(tensors[0])
    together = torch.cat(features)
    labels = torch.from_numpy(part.labels).to(together.device)
    return LabelledFeatures(together, labels)

"""What Lightning trains: the trained part of a backbone and a head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.plans.schema import Phase
from regraft.training.freeze_check import is_batch_norm
from regraft.training.mixing import mix

_OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
_WITH_MOMENTUM = ("sgd", "rmsprop")
_CAN_FUSE = ("sgd", "adam", "adamw")

Batch = tuple[tuple[Tensor, ...], Tensor]


class TransferModule(L.LightningModule):
    """The trained part and the head, with the optimizer that a phase asks for.

    Args:
        suffix: The trained part of the backbone.
        head: The head.
        phase: What is done.
        seed: Of dropout and mixing.
        depth: Gives how many stages lie between a parameter, by name, and the head.
        weights: A weight for each class, `(classes,)`.
    """

    def __init__(
        self,
        suffix: nn.Module,
        head: nn.Module,
        phase: Phase,
        seed: int,
        depth: Callable[[str], int],
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.suffix = suffix
        self.head = head
        self.phase = phase
        self.seed = seed
        self.depth = depth
        self.register_buffer("weights", weights, persistent=False)
        self.without_gradient: list[str] | None = None
        self.train_means = RunningMeans()
        self.val_means = RunningMeans()
        self._compiled = _CompiledForward(None, 0)

    def use_compiled(self, forward: Callable[..., Tensor], size: int) -> None:
        """Let training batches of exactly this many images run through a compiled `forward`."""
        self._compiled = _CompiledForward(forward, size)

    def train_mode(self) -> TransferModule:
        """Go into train mode, without BatchNorm statistics that the plan keeps; returns itself."""
        self.train()
        if self.phase.batch_norm == "keep":
            for module in self.suffix.modules():
                if is_batch_norm(module):
                    module.eval()
        return self

    def forward(self, *features: Tensor) -> Tensor:
        out: Tensor = self.head(self.suffix(*features))
        return out

    def on_train_epoch_start(self) -> None:
        # dropout and mixing: an epoch is the same after a resume
        torch.manual_seed(self.seed * 100_003 + self.current_epoch)
        self.train_mode()
        self.train_means = RunningMeans()

    def on_validation_epoch_start(self) -> None:
        self.val_means = RunningMeans()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        features, targets = batch
        mixed = mix(features, self.phase)
        logits = self._compiled.choose(self, len(targets))(*mixed.features)
        loss = self._loss(logits, targets)
        if mixed.share < 1:
            other = self._loss(logits, targets[mixed.partners])
            loss = mixed.share * loss + (1 - mixed.share) * other
        self.train_means.add(loss.detach(), logits.detach(), targets)
        return loss

    def on_after_backward(self) -> None:
        if self.without_gradient is None:
            named = self.named_parameters()
            self.without_gradient = [name for name, value in named if value.grad is None]

    def validation_step(self, batch: Batch, _: int) -> None:
        features, targets = batch
        logits = self(*features)
        self.val_means.add(functional.cross_entropy(logits, targets), logits, targets)

    def configure_optimizers(self) -> Any:
        phase = self.phase
        options: dict[str, Any] = {"lr": phase.lr}
        if phase.optimizer in _WITH_MOMENTUM:
            options["momentum"] = phase.momentum
        if phase.optimizer in _CAN_FUSE and not phase.gradient_clip:
            # Lightning clips no gradients of a fused optimizer under mixed precision
            options["fused"] = True
        optimizer = _OPTIMIZERS[phase.optimizer](parameter_groups(self), **options)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, phase)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = self.weights if isinstance(self.weights, Tensor) else None
        smoothing = self.phase.label_smoothing
        return functional.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)


class RunningMeans:
    """Loss and accuracy over an epoch, as sums that stay on the device.

    `self.log` at every step costs more than the step of a head.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean loss, logits `(n, classes)` and targets `(n,)`."""
        size = len(targets)
        correct = (logits.argmax(dim=1) == targets).sum().float()
        count = loss.new_tensor(size, dtype=torch.float32)
        sums = torch.stack([loss.float() * size, correct, count])
        self.sums = sums if self.sums is None else self.sums + sums

    def to_metrics(self, part: str) -> dict[str, float]:
        """Return the means under the names that a history has for a part."""
        if self.sums is None:
            return {}
        loss, correct, size = self.sums.tolist()
        return {f"{part}_loss": loss / size, f"{part}_accuracy": correct / size}


class _CompiledForward:
    """A compiled `forward` for one batch size; copies of the module, as EMA makes, do without."""

    def __init__(self, forward: Callable[..., Tensor] | None, size: int) -> None:
        self.forward = forward
        self.size = size

    def choose(self, module: Callable[..., Tensor], size: int) -> Callable[..., Tensor]:
        """Return what a batch of this size runs through."""
        if self.forward is not None and size == self.size:
            return self.forward
        return module

    def __deepcopy__(self, _: object) -> _CompiledForward:
        return _CompiledForward(None, 0)


def parameter_groups(module: TransferModule) -> list[dict[str, Any]]:
    """Return the optimizer's groups: each parameter in exactly one.

    Norms and biases have no weight decay; rates are smaller further from the head.
    """
    phase = module.phase
    parameters: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        depth = 0
        if not name.startswith("head."):
            depth = module.depth(name.removeprefix("suffix.body."))
        parameters.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    groups = []
    for depth, decays in sorted(parameters):
        groups.append(
            {
                "params": parameters[depth, decays],
                "lr": phase.lr * phase.layer_decay**depth,
                "weight_decay": phase.weight_decay if decays else 0.0,
            }
        )
    return groups


def describe_groups(module: TransferModule) -> list[dict[str, Any]]:
    """Return the groups as plain data: peak `lr`, `weight_decay`, `tensors`, `parameters`."""
    described = []
    for group in parameter_groups(module):
        parameters = group["params"]
        described.append(
            {
                "lr": group["lr"],
                "weight_decay": group["weight_decay"],
                "tensors": len(parameters),
                "parameters": sum(parameter.numel() for parameter in parameters),
            }
        )
    return described


def learning_rate_factor(step: int, steps: int, phase: Phase) -> float:
    """Return the factor on the learning rate at a step.

    A linear warm-up, then constant or falling as a half cosine. "warmup-cosine" warms up over a
    quarter of the steps where the phase names no share.
    """
    warm = phase.warmup * steps
    if phase.schedule == "warmup-cosine" and not phase.warmup:
        warm = 0.25 * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if phase.schedule == "constant":
        return 1.0
    progress = (step - warm) / max(1.0, steps - warm)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

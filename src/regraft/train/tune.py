"""Training by batches: Lightning fits the trained part of a backbone and a head; everything it is given is trained.

Refuses the frozen part: it never gets here, only what it said of the images does.
"""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn import functional

from regraft import files
from regraft.plan import Phase
from regraft.train.batches import Batches
from regraft.watch import SILENT, Watcher

for _name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(_name).setLevel(logging.ERROR)
_OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass(frozen=True)
class Tuned:
    """What a phase of training left: a row an epoch, which epoch was kept, and whether every parameter got a gradient."""

    history: list[dict[str, Any]]
    best_epoch: int
    without_gradient: list[str]


class Tuning(L.LightningModule):
    """The trained part and the head, with the optimizer that a phase asks for."""

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
        self.suffix, self.head, self.phase, self.seed, self.depth = suffix, head, phase, seed, depth
        self.register_buffer("weights", weights, persistent=False)
        self.without_gradient: list[str] | None = None
        self.seen, self.judged = _Means(), _Means()  # training and validation images of an epoch
        self._quick = _Quick(None, 0)

    def use(self, quick: Callable[..., Tensor], size: int) -> None:
        """Let training batches of exactly this many images run through a compiled form of `forward`."""
        self._quick = _Quick(quick, size)

    def ready(self) -> Tuning:
        """Go into train mode, without those BatchNorm statistics that the plan keeps; returns itself."""
        self.train()
        if self.phase.batch_norm == "keep":
            for module in self.suffix.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, *features: Tensor) -> Tensor:
        out: Tensor = self.head(self.suffix(*features))
        return out

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(
            self.seed * 100_003 + self.current_epoch
        )  # dropout and mixing: an epoch is the same after a resume
        self.ready()
        self.seen = _Means()

    def on_validation_epoch_start(self) -> None:
        self.judged = _Means()

    def training_step(self, batch: tuple[tuple[Tensor, ...], Tensor], _: int) -> Tensor:
        features, targets = batch
        features, other, share = _mixed(features, self.phase)
        run = (
            self._quick.run
            if self._quick.run is not None and len(targets) == self._quick.size
            else self
        )
        logits = run(*features)
        loss = self._loss(logits, targets)
        if share < 1:
            loss = share * loss + (1 - share) * self._loss(logits, targets[other])
        self.seen.add(loss.detach(), logits.detach(), targets)
        return loss

    def on_after_backward(self) -> None:
        if self.without_gradient is None:
            self.without_gradient = [
                name for name, parameter in self.named_parameters() if parameter.grad is None
            ]

    def validation_step(self, batch: tuple[tuple[Tensor, ...], Tensor], _: int) -> None:
        features, targets = batch
        logits = self(*features)
        self.judged.add(functional.cross_entropy(logits, targets), logits, targets)

    def configure_optimizers(self) -> Any:
        phase = self.phase
        options: dict[str, Any] = {"lr": phase.lr}
        if phase.optimizer in ("sgd", "rmsprop"):
            options["momentum"] = phase.momentum
        if phase.optimizer in ("sgd", "adam", "adamw") and not phase.gradient_clip:
            options["fused"] = (
                True  # Lightning clips no gradients of a fused optimizer under mixed precision
            )
        optimizer = _OPTIMIZERS[phase.optimizer](groups(self, phase), **options)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(step, steps, phase)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights = self.weights if isinstance(self.weights, Tensor) else None
        return functional.cross_entropy(
            logits, targets, weight=weights, label_smoothing=self.phase.label_smoothing
        )


class _Means:
    """Loss and accuracy over an epoch: sums that stay on the device, for `self.log` at every step costs more than the step of a head."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        size = len(targets)
        sums = torch.stack(
            [
                loss.float() * size,
                (logits.argmax(dim=1) == targets).sum().float(),
                loss.new_tensor(size, dtype=torch.float32),
            ]
        )
        self.sums = sums if self.sums is None else self.sums + sums

    def of(self, part: str) -> dict[str, float]:
        """Return the means by the names that a history has for them."""
        if self.sums is None:
            return {}
        loss, right, size = self.sums.tolist()
        return {f"{part}_loss": loss / size, f"{part}_accuracy": right / size}


class _Quick:
    """A compiled form of a module; copies of the module, as EMA makes them, do without."""

    def __init__(self, run: Callable[..., Tensor] | None, size: int) -> None:
        self.run, self.size = run, size

    def __deepcopy__(self, _: object) -> _Quick:
        return _Quick(None, 0)


def tune(
    module: Tuning,
    train: Batches,
    val: Batches,
    folder: Path,
    number: int,
    precision: str = "float32",
    watcher: Watcher = SILENT,
    resume: bool = False,
    accumulate: int = 1,
) -> Tuned:
    """Fit suffix and head for one phase and leave them with the weights of the best epoch.

    Args:
        module: What is trained.
        train: Training batches.
        val: Validation batches.
        folder: Where `last.ckpt` and `best.ckpt` go.
        number: Number of the phase, written into the checkpoints.
        precision: "float32", or "bfloat16" for autocast.
        watcher: Hears how far it is.
        resume: Go on from `last.ckpt` where it belongs to this phase.
        accumulate: Batches whose gradients make one step.

    Raises:
        KeyboardInterrupt: When the user stops it; `last.ckpt` then holds the last whole epoch.
    """
    phase = module.phase
    mode = "max" if phase.monitor == "val_accuracy" else "min"
    keep = ModelCheckpoint(
        folder, "best", monitor=phase.monitor, mode=mode, save_top_k=1, enable_version_counter=False
    )  # whole: the average of EMA is put in only then
    last = ModelCheckpoint(folder, "last", monitor=None, save_top_k=1, enable_version_counter=False)
    course = _Course(number, train, watcher)
    callbacks: list[Callback] = [course, keep, last]
    if phase.patience:
        callbacks.append(
            _Patience(phase.monitor, phase.min_delta, phase.patience, mode=mode, check_finite=False)
        )
    if phase.ema:
        callbacks.append(EMAWeightAveraging(decay=phase.ema))
    checkpoint = folder / "last.ckpt"
    if not (resume and _belongs(checkpoint, number)):
        checkpoint.unlink(missing_ok=True)
        (folder / "best.ckpt").unlink(missing_ok=True)
    interrupt, device = signal.getsignal(signal.SIGINT), next(module.parameters()).device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            strategy=_Stay(device),
            max_epochs=phase.epochs,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[_WholeFiles()],
            gradient_clip_val=phase.gradient_clip or None,
            accumulate_grad_batches=accumulate,
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
        )
        try:
            trainer.fit(
                module,
                train,
                val,
                ckpt_path=str(checkpoint) if checkpoint.exists() else None,
                weights_only=True,
            )
        except (
            SystemExit
        ) as error:  # Lightning's answer to Ctrl-C; it also leaves the signal ignored
            raise KeyboardInterrupt from error
        finally:
            if interrupt is not None:
                signal.signal(signal.SIGINT, interrupt)
    best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"])
    module.eval()
    return Tuned(course.history, int(best["epoch"]), course.without_gradient or [])


def groups(module: Tuning, phase: Phase) -> list[dict[str, Any]]:
    """Return the optimizer's groups: each parameter in exactly one; no decay for norms and biases; smaller rates further from the head."""
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        below = 0 if name.startswith("head.") else module.depth(name.removeprefix("suffix.body."))
        found.setdefault((below, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": phase.lr * phase.layer_decay**below,
            "weight_decay": phase.weight_decay if decays else 0.0,
        }
        for (below, decays), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def described(module: Tuning, phase: Phase) -> list[dict[str, Any]]:
    """Return the optimizer's groups as plain data: `lr` (peak), `weight_decay`, and how many `tensors` and `parameters` each has."""
    return [
        {
            "lr": one["lr"],
            "weight_decay": one["weight_decay"],
            "tensors": len(one["params"]),
            "parameters": sum(p.numel() for p in one["params"]),
        }
        for one in groups(module, phase)
    ]


def rate(step: int, steps: int, phase: Phase) -> float:
    """Return the factor on the learning rate at a step: linear warm-up, then constant or cosine."""
    warm = (
        phase.warmup * steps if phase.schedule != "warmup-cosine" or phase.warmup else 0.25 * steps
    )
    if step < warm:
        return (step + 1) / (warm + 1)
    if phase.schedule == "constant":
        return 1.0
    course = (step - warm) / max(1.0, steps - warm)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, course)))


def _mixed(features: tuple[Tensor, ...], phase: Phase) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """Return features blended with those of other images, which images these were, and the share of the first."""
    size = len(features[0])
    other = torch.arange(size, device=features[0].device)
    both = phase.mixup and phase.cutmix and features[0].ndim == 4
    if phase.cutmix and features[0].ndim == 4 and (not both or torch.rand(()) < 0.5):
        other = torch.randperm(size, device=features[0].device)
        cut = math.sqrt(1 - float(torch.distributions.Beta(phase.cutmix, phase.cutmix).sample()))
        at, share = torch.rand(2), 1.0
        pasted = []
        for tensor in features:
            height, width = tensor.shape[-2:]
            top, left = int(at[0] * (height - 1)), int(at[1] * (width - 1))
            bottom, right = (
                min(height, top + max(1, round(cut * height))),
                min(width, left + max(1, round(cut * width))),
            )
            tensor = tensor.clone()
            tensor[..., top:bottom, left:right] = tensor[other][..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
            pasted.append(tensor)
        return tuple(pasted), other, share
    if phase.mixup:
        other = torch.randperm(size, device=features[0].device)
        share = float(torch.distributions.Beta(phase.mixup, phase.mixup).sample())
        return (
            tuple(share * tensor + (1 - share) * tensor[other] for tensor in features),
            other,
            share,
        )
    return features, other, 1.0


class _Course(Callback):
    """Keeps the history, tells the watcher, and gives the batches their epoch."""

    def __init__(self, phase: int, batches: Batches, watcher: Watcher) -> None:
        self.phase, self.batches, self.watcher = phase, batches, watcher
        self.history: list[dict[str, Any]] = []
        self.without_gradient: list[str] | None = None
        self.started = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "history": self.history,
            "without_gradient": self.without_gradient,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.without_gradient = (
            list(state_dict["history"]),
            state_dict.get("without_gradient"),
        )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batches.epoch = trainer.current_epoch
        self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        done = trainer.current_epoch * len(self.batches) + batch_idx + 1
        self.watcher.step(
            f"phase {self.phase + 1}", done, (trainer.max_epochs or 1) * len(self.batches)
        )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Tuning)
        values = pl_module.judged.of("val")
        pl_module.log_dict(values)  # for the callbacks that keep the best epoch, or stop
        values["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.history.append(
            {
                "phase": self.phase,
                "epoch": trainer.current_epoch,
                **values,
                "seconds": time.perf_counter() - self.started,
            }
        )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Tuning)
        self.history[-1].update(pl_module.seen.of("train"))
        self.without_gradient = pl_module.without_gradient
        self.watcher.row(self.history[-1])


class _Stay(SingleDeviceStrategy):
    """A strategy that leaves the network where it is; Lightning would move it to the CPU in the end, away from its frozen part."""

    def teardown(self) -> None:
        module, self._lightning_module = self._lightning_module, None
        super().teardown()
        self._lightning_module = module


class _Patience(EarlyStopping):
    """Early stopping that stays stopped: gone on with from a checkpoint at which patience had run out, it trains no epoch more."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        with files.whole(Path(path)) as scratch:
            super().save_checkpoint(checkpoint, scratch, storage_options)


def _belongs(checkpoint: Path, number: int) -> bool:
    if not checkpoint.is_file():
        return False
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:  # a file that torch cannot read is no checkpoint
        return False
    return any(
        isinstance(one, dict) and one.get("phase") == number
        for one in state.get("callbacks", {}).values()
    )

"""Training by batches with Lightning, which gets the trained part and the head alone."""

from __future__ import annotations

import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from regraft.features.batches import Batches
from regraft.runs.layout import PhaseFiles
from regraft.system.files import atomic_write
from regraft.system.hardware import silence_loggers
from regraft.system.progress import SILENT, ProgressReporter
from regraft.training.module import TransferModule
from regraft.training.selection import count_improvements

_IMPROVEMENTS = "val_improvements"  # epochs so far that were better than all before them


@dataclass(frozen=True)
class FitResult:
    """What a phase of training left.

    Args:
        history: A row an epoch.
        best_epoch: The epoch whose weights were kept, from 0.
        without_gradient: Names of parameters that got no gradient.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    without_gradient: list[str]


@dataclass(frozen=True)
class FitSettings:
    """How a phase is trained, apart from what its plan says.

    Args:
        files: Where `last.ckpt` and `best.ckpt` go.
        precision: "float32", or "bfloat16" for autocast.
        resume: Go on from `last.ckpt` where it belongs to this phase.
        accumulate: Batches whose gradients make one step.
        reporter: Hears how far it is.
    """

    files: PhaseFiles
    precision: str = "float32"
    resume: bool = False
    accumulate: int = 1
    reporter: ProgressReporter = SILENT


def fit_phase(
    module: TransferModule, train: Batches, val: Batches, settings: FitSettings
) -> FitResult:
    """Fit a module for one phase, and leave it with the weights of the best epoch.

    Raises:
        KeyboardInterrupt: When the user stops it; `last.ckpt` then holds the last whole epoch.
    """
    silence_loggers(
        "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"
    )
    files = settings.files
    recorder = _HistoryCallback(files.number, train, settings.reporter)
    if not (settings.resume and _belongs_to(files.last, files.number)):
        files.last.unlink(missing_ok=True)
        files.best.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        trainer = _make_trainer(module, settings, _callbacks(module, files, recorder))
        checkpoint = str(files.last) if files.last.exists() else None
        _run(trainer, module, (train, val), checkpoint)
    best = torch.load(files.best, map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"])
    module.eval()
    return FitResult(recorder.history, int(best["epoch"]), recorder.without_gradient or [])


def _callbacks(
    module: TransferModule, files: PhaseFiles, recorder: _HistoryCallback
) -> list[Callback]:
    phase = module.phase
    # whole checkpoints: the average of EMA is put in only then
    best = _BestEpoch(
        recorder,
        files.folder,
        files.best.stem,
        monitor=phase.monitor,
        mode="max" if phase.monitor == "val_accuracy" else "min",
        save_top_k=1,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(
        files.folder, files.last.stem, monitor=None, save_top_k=1, enable_version_counter=False
    )
    callbacks: list[Callback] = [recorder, best, last]
    if phase.patience:
        stopping = _ResumableEarlyStopping(
            _IMPROVEMENTS, patience=phase.patience, mode="max", check_finite=False
        )
        callbacks.append(stopping)
    if phase.ema:
        callbacks.append(EMAWeightAveraging(decay=phase.ema))
    return callbacks


def _make_trainer(
    module: TransferModule, settings: FitSettings, callbacks: list[Callback]
) -> L.Trainer:
    device = next(module.parameters()).device
    phase = module.phase
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        strategy=_KeepDeviceStrategy(device),
        max_epochs=phase.epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[_AtomicCheckpoints()],
        gradient_clip_val=phase.gradient_clip or None,
        accumulate_grad_batches=settings.accumulate,
        precision="bf16-mixed" if settings.precision == "bfloat16" else "32-true",
    )


def _run(
    trainer: L.Trainer,
    module: TransferModule,
    batches: tuple[Batches, Batches],
    checkpoint: str | None,
) -> None:
    """Fit; Ctrl-C is a KeyboardInterrupt, and its handler is what it was before."""
    train, val = batches
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train, val, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:  # Lightning's answer to Ctrl-C; it also leaves the signal ignored
        raise KeyboardInterrupt from error
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


class _HistoryCallback(Callback):
    """Keeps the history, reports progress, and tells the batches their epoch."""

    def __init__(self, phase: int, batches: Batches, reporter: ProgressReporter) -> None:
        self.phase = phase
        self.batches = batches
        self.reporter = reporter
        self.history: list[dict[str, Any]] = []
        self.without_gradient: list[str] | None = None
        self.started = 0.0

    @property
    def state_key(self) -> str:
        return "_Course"  # its name in the checkpoints of 0.1, which are resumed too

    def state_dict(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "history": self.history,
            "without_gradient": self.without_gradient,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self.without_gradient = state_dict.get("without_gradient")

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
        total = (trainer.max_epochs or 1) * len(self.batches)
        self.reporter.progress(f"phase {self.phase + 1}", done, total)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TransferModule)
        metrics = pl_module.val_means.to_metrics("val")
        pl_module.log_dict(metrics)  # for the callbacks that keep the best epoch, or stop
        metrics["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row = {"phase": self.phase, "epoch": trainer.current_epoch, **metrics}
        row["seconds"] = time.perf_counter() - self.started
        self.history.append(row)
        phase = pl_module.phase
        improvements = count_improvements(self.history, phase.monitor, phase.min_delta)
        pl_module.log(_IMPROVEMENTS, float(improvements))  # for early stopping

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TransferModule)
        self.history[-1].update(pl_module.train_means.to_metrics("train"))
        self.without_gradient = pl_module.without_gradient
        self.reporter.metrics(self.history[-1])


class _BestEpoch(ModelCheckpoint):
    """Keeps the best epoch by the monitored score; ties go by the other one."""

    def __init__(self, recorder: _HistoryCallback, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.recorder = recorder

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        history = self.recorder.history
        monitor = str(self.monitor)
        return count_improvements(history, monitor) > count_improvements(history[:-1], monitor)


class _KeepDeviceStrategy(SingleDeviceStrategy):
    """Leaves the network where it is; Lightning would move it to the CPU in the end."""

    def teardown(self) -> None:
        module = self._lightning_module
        self._lightning_module = None
        super().teardown()
        self._lightning_module = module


class _ResumableEarlyStopping(EarlyStopping):
    """EarlyStopping that trains no further epoch when resumed after patience ran out."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


class _AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        with atomic_write(Path(path)) as scratch:
            super().save_checkpoint(checkpoint, scratch, storage_options)


def _belongs_to(checkpoint: Path, number: int) -> bool:
    """Return whether a checkpoint can be read and is one of this phase."""
    if not checkpoint.is_file():
        return False
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:  # a file that torch cannot read is no checkpoint
        return False
    states = state.get("callbacks", {}).values()
    return any(isinstance(each, dict) and each.get("phase") == number for each in states)

"""Sending a run's course to a tracker, through Lightning's loggers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from regraft.errors import UserError
from regraft.plans.schema import Plan
from regraft.system.progress import ProgressReporter


class Tracked(ProgressReporter):
    """Passes everything on, and logs every row of the history as it comes."""

    def __init__(self, inner: ProgressReporter, logger: Any, plan: Plan) -> None:
        self.inner, self.logger, self.rows = inner, logger, 0
        logger.log_hyperparams(plan.model_dump(mode="json"))

    def say(self, text: str) -> None:
        self.inner.say(text)

    def step(self, what: str, done: int, total: int) -> None:
        self.inner.step(what, done, total)

    def row(self, values: dict[str, Any]) -> None:
        self.inner.row(values)
        self.logger.log_metrics(
            {key: float(value) for key, value in values.items() if key != "epoch"}, step=self.rows
        )
        self.rows += 1

    def close(self, scores: dict[str, Any]) -> None:
        """Log what the run reached, and end."""
        final = {
            f"{part}/{what}": float(scores[part][what])
            for part in ("train", "val")
            for what in ("accuracy", "loss")
        }
        self.logger.log_metrics(
            {**final, "seconds": float(scores["seconds"]["total"])}, step=self.rows
        )
        self.logger.finalize("success")


def check(kind: str | None) -> None:
    """Raise `UserError` when the library of a tracker is not installed; "csv" needs none."""
    if kind not in (None, "csv") and importlib.util.find_spec(str(kind)) is None:
        raise UserError(
            f"--track {kind} needs a library that is not installed. Expected {kind}. Install it with: pip install 'regraft[{kind}]'"
        )


def tracked(inner: ProgressReporter, kind: str, out: Path, plan: Plan) -> Tracked:
    """Return a watcher that logs to a tracker: "csv" and "tensorboard" under `out/track`; "mlflow" and "wandb" where their own settings say."""
    from lightning.pytorch import loggers

    name, folder = out.name, out / "track"
    if kind == "csv":
        return Tracked(
            inner, loggers.CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1), plan
        )
    if kind == "tensorboard":
        return Tracked(inner, loggers.TensorBoardLogger(folder, name="", version=""), plan)
    if kind == "mlflow":
        return Tracked(inner, loggers.MLFlowLogger(experiment_name="regraft", run_name=name), plan)
    return Tracked(inner, loggers.WandbLogger(project="regraft", name=name, save_dir=out), plan)

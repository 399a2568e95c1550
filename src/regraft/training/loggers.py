"""A run's course sent to a tracker, through Lightning's loggers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.errors import UserError
from regraft.plans.schema import Plan
from regraft.system.progress import ProgressReporter


class TrackingReporter(ProgressReporter):
    """Passes everything on, and logs every row of the history as it comes."""

    def __init__(self, inner: ProgressReporter, logger: Any, plan: Plan) -> None:
        self.inner = inner
        self.logger = logger
        self.rows = 0
        logger.log_hyperparams(plan.model_dump(mode="json"))

    def log(self, text: str) -> None:
        self.inner.log(text)

    def progress(self, what: str, done: int, total: int) -> None:
        self.inner.progress(what, done, total)

    def metrics(self, values: Mapping[str, float]) -> None:
        self.inner.metrics(values)
        metrics = {key: float(value) for key, value in values.items() if key != "epoch"}
        self.logger.log_metrics(metrics, step=self.rows)
        self.rows += 1

    def close(self, scores: Mapping[str, Any]) -> None:
        """Log what the run reached, and end."""
        metrics = {"seconds": float(scores["seconds"]["total"])}
        for part in ("train", "val"):
            for name in ("accuracy", "loss"):
                metrics[f"{part}/{name}"] = float(scores[part][name])
        self.logger.log_metrics(metrics, step=self.rows)
        self.logger.finalize("success")


def require_tracker(kind: str | None) -> None:
    """Raise `UserError` when the library of a tracker is not installed; "csv" needs none."""
    if kind in (None, "csv"):
        return
    if importlib.util.find_spec(str(kind)) is None:
        raise UserError(
            f"--track {kind} needs a library that is not installed. Expected {kind}. Install it "
            f"with: pip install 'regraft[{kind}]'"
        )


def tracking_reporter(
    inner: ProgressReporter, kind: str, folder: Path, plan: Plan
) -> TrackingReporter:
    """Return a reporter that logs to a tracker.

    Args:
        inner: The reporter that hears everything too.
        kind: "csv" and "tensorboard" write files; "mlflow" and "wandb" go where their own
            settings say.
        folder: Folder for such files, in the run's folder.
        plan: The hyperparameters.
    """
    from lightning.pytorch import loggers

    name = folder.parent.name
    if kind == "csv":
        logger: Any = loggers.CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    elif kind == "tensorboard":
        logger = loggers.TensorBoardLogger(folder, name="", version="")
    elif kind == "mlflow":
        logger = loggers.MLFlowLogger(experiment_name="regraft", run_name=name)
    else:
        logger = loggers.WandbLogger(project="regraft", name=name, save_dir=folder.parent)
    return TrackingReporter(inner, logger, plan)

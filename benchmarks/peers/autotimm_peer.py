"""AutoTimm as its documentation shows it: ImageDataModule, ImageClassifier, AutoTrainer; compiled (its default), the rate finder off, which harms it here.

It has no word for part of a backbone, so for the last stages the flags are set from outside.
"""

from __future__ import annotations

import contract
import pytorch_lightning as pl
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule, MetricConfig, TransformConfig
from autotimm.core.backbone import BackboneConfig


class Tell(pl.Callback):
    """Tells each epoch."""

    def __init__(self) -> None:
        self.teller = contract.Teller()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.teller.begin()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.teller.epoch_begins()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.teller.trained()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.teller.epoch_ends(float(trainer.callback_metrics["val/accuracy"]))


def main() -> None:
    """Train and tell."""
    told = contract.options()
    look = TransformConfig(image_size=told.resolution, use_timm_config=True)
    data = ImageDataModule(
        data_dir=told.data,
        image_size=told.resolution,
        batch_size=told.batch_size,
        transform_config=look,
        backbone=contract.MODEL,
    )
    data.setup("fit")
    score = MetricConfig(
        name="accuracy",
        backend="torchmetrics",
        metric_class="Accuracy",
        params={"task": "multiclass"},
        stages=["train", "val"],
        prog_bar=True,
    )
    model = ImageClassifier(
        backbone=BackboneConfig(contract.MODEL, pretrained=False),
        num_classes=data.num_classes,
        metrics=[score],
        transform_config=look,
        lr=told.lr,
        freeze_backbone=told.task == "frozen",
        seed=0,
        deterministic=False,
    )
    body = getattr(model.backbone, "_orig_mod", model.backbone)
    contract.fill(body, told.weights)
    if told.task == "last":
        contract.freeze(body, told.task)
    tell = Tell()
    trainer = AutoTrainer(
        max_epochs=told.epochs,
        tuner_config=False,
        callbacks=[tell],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    tell.teller.done(
        {
            "optimizer": "AdamW",
            "lr": told.lr,
            "schedule": "cosine",
            "compiled": body is not model.backbone,
            "augmentation": look.preset,
            "precision": "float32",
            "workers": data.num_workers,
        }
    )


if __name__ == "__main__":
    main()

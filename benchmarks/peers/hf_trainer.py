"""Hugging Face Trainer around a timm model: its defaults (AdamW, linear decay, no loader workers), evaluated after each epoch."""

from __future__ import annotations

import contract
import torch
from torch import Tensor, nn
from torchvision import datasets, transforms
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments


class Wrapped(nn.Module):
    """A timm model that takes and gives what Trainer expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


class Tell(TrainerCallback):
    """Tells each epoch."""

    def __init__(self) -> None:
        self.teller = contract.Teller()

    def on_train_begin(self, args: object, state: object, control: object, **more: object) -> None:
        self.teller.begin()

    def on_epoch_begin(self, args: object, state: object, control: object, **more: object) -> None:
        self.teller.epoch_begins()

    def on_epoch_end(self, args: object, state: object, control: object, **more: object) -> None:
        self.teller.trained()

    def on_evaluate(
        self,
        args: object,
        state: object,
        control: object,
        metrics: dict[str, float],
        **more: object,
    ) -> None:
        self.teller.epoch_ends(metrics["eval_accuracy"])


def collate(batch: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Return a batch by the names that the model takes."""
    return {
        "pixel_values": torch.stack([image for image, _ in batch]),
        "labels": torch.tensor([label for _, label in batch]),
    }


def accuracy(said: EvalPrediction) -> dict[str, float]:
    """Return the share of images that are told right."""
    return {"accuracy": float((said.predictions.argmax(axis=-1) == said.label_ids).mean())}


def main() -> None:
    """Train and tell."""
    told = contract.options()
    look = transforms.Compose(
        [
            transforms.Resize((told.resolution, told.resolution)),
            transforms.ToTensor(),
            transforms.Normalize(contract.MEAN, contract.STD),
        ]
    )
    train, val = (datasets.ImageFolder(told.data / part, look) for part in ("train", "val"))
    torch.manual_seed(0)
    model = contract.network(len(train.classes), told.weights)
    contract.freeze(model, told.task)
    settings = TrainingArguments(
        output_dir="trainer",
        per_device_train_batch_size=told.batch_size,
        per_device_eval_batch_size=told.batch_size,
        num_train_epochs=told.epochs,
        learning_rate=told.lr,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    tell = Tell()
    Trainer(
        Wrapped(model), settings, collate, train, val, compute_metrics=accuracy, callbacks=[tell]
    ).train()
    tell.teller.done(
        {
            "optimizer": "AdamW",
            "lr": told.lr,
            "schedule": "linear",
            "precision": "float32",
            "workers": settings.dataloader_num_workers,
        }
    )


if __name__ == "__main__":
    main()

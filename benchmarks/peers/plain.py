"""The loop that tutorials teach: torchvision's ImageFolder, a network with part of it frozen, Adam, float32, every epoch through all of it.

With `--batch-norm keep` the frozen part is also in eval mode and runs without gradients, which is what freezing means.
"""

from __future__ import annotations

from typing import Any

import contract
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def loaders(told: Any) -> tuple[DataLoader, DataLoader]:
    """Return the batches of train and val."""
    look = transforms.Compose(
        [
            transforms.Resize((told.resolution, told.resolution)),
            transforms.ToTensor(),
            transforms.Normalize(contract.MEAN, contract.STD),
        ]
    )
    parts = [datasets.ImageFolder(told.data / part, look) for part in ("train", "val")]
    train, val = (
        DataLoader(
            part,
            batch_size=told.batch_size,
            shuffle=number == 0,
            num_workers=2,
            persistent_workers=True,
        )
        for number, part in enumerate(parts)
    )
    return train, val


def frozen_modules(model: nn.Module, task: str) -> list[nn.Module]:
    """Return the parts that a task leaves as they are."""
    if task == "all":
        return []
    if task == "last":
        return [model.conv_stem, model.bn1, *model.blocks[: contract.FROZEN_BLOCKS]]
    return [model.conv_stem, model.bn1, model.blocks, model.conv_head, model.bn2]


def forward(model: nn.Module, images: Tensor, task: str, keep: bool) -> Tensor:
    """Return logits; where BatchNorm is kept, the frozen part runs without building a graph."""
    if not keep or task == "all":
        return model(images)
    with torch.no_grad():
        if task == "frozen":
            features = model.forward_features(images)
        else:
            features = model.blocks[: contract.FROZEN_BLOCKS](model.bn1(model.conv_stem(images)))
    if task == "last":
        features = model.bn2(model.conv_head(model.blocks[contract.FROZEN_BLOCKS :](features)))
    return model.forward_head(features)


def accuracy(model: nn.Module, batches: DataLoader) -> float:
    """Return the share of images that are told right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((model(images).argmax(dim=1) == labels).sum())
    return right / len(batches.dataset)


def main() -> None:
    """Train and tell."""
    told = contract.options(batch_norm={"choices": ["adapt", "keep"], "default": "adapt"})
    keep = told.batch_norm == "keep"
    torch.manual_seed(0)
    train, val = loaders(told)
    model = contract.network(len(train.dataset.classes), told.weights)
    contract.freeze(model, told.task)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=told.lr
    )
    teller = contract.Teller()
    teller.begin()
    for _ in range(told.epochs):
        teller.epoch_begins()
        model.train()
        for module in frozen_modules(model, told.task) if keep else []:
            module.eval()
        for images, labels in train:
            optimizer.zero_grad()
            loss = criterion(forward(model, images, told.task, keep), labels)
            loss.backward()
            optimizer.step()
        teller.trained()
        teller.epoch_ends(accuracy(model, val))
    teller.done(
        {
            "optimizer": "Adam",
            "lr": told.lr,
            "schedule": "constant",
            "batch_norm": told.batch_norm,
            "precision": "float32",
            "workers": 2,
        }
    )


if __name__ == "__main__":
    main()

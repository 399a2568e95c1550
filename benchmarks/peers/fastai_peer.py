"""fastai as its documentation shows it: ImageDataLoaders, vision_learner, freeze, fit_one_cycle; its defaults, but pool and linear as head."""

from __future__ import annotations

import contract
from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    accuracy,
    default_split,
    params,
    set_seed,
    vision_learner,
)
from torch import nn


class Tell(Callback):
    """Tells each epoch."""

    order = 60  # after the Recorder, which works out the metrics

    def __init__(self) -> None:
        self.teller = contract.Teller()

    def before_fit(self) -> None:
        self.teller.begin()

    def before_epoch(self) -> None:
        self.teller.epoch_begins()

    def after_train(self) -> None:
        self.teller.trained()

    def after_epoch(self) -> None:
        self.teller.epoch_ends(float(self.recorder.metrics[0].value))


def split_before_last(model: nn.Module) -> list:
    """Return the parameters in three groups: the frozen stages, the last stages, the head."""
    body = model[0].model
    below = nn.Sequential(body.conv_stem, body.bn1, *body.blocks[: contract.FROZEN_BLOCKS])
    last = nn.Sequential(*body.blocks[contract.FROZEN_BLOCKS :], body.conv_head, body.bn2)
    return [params(below), params(last), params(model[1])]


def learner(told: object) -> Learner:
    """Return a learner that holds the ImageNet weights and trains what the task asks for."""
    images = ImageDataLoaders.from_folder(
        told.data,
        train="train",
        valid="val",
        item_tfms=Resize(told.resolution),
        bs=told.batch_size,
        batch_tfms=Normalize.from_stats(contract.MEAN, contract.STD),
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, images.c))
    splitter = split_before_last if told.task == "last" else default_split
    learn = vision_learner(
        images,
        contract.MODEL,
        pretrained=False,
        custom_head=head,
        metrics=accuracy,
        splitter=splitter,
    )
    contract.fill(learn.model[0].model, told.weights)
    if told.task == "frozen":
        learn.freeze()
    elif told.task == "last":
        learn.freeze_to(1)
    return learn


def main() -> None:
    """Train and tell."""
    told = contract.options()
    set_seed(0)
    learn = learner(told)
    tell = Tell()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(told.epochs, told.lr, cbs=tell)
    workers = learn.dls.train.fake_l.num_workers
    tell.teller.done(
        {
            "optimizer": "fastai Adam",
            "lr": told.lr,
            "schedule": "one cycle",
            "train_bn": True,
            "precision": "float32",
            "workers": workers,
        }
    )


if __name__ == "__main__":
    main()

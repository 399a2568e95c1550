"""Keras 3 as the source experiments are written: arrays, a Resizing layer in the model, a frozen base called in inference mode, Adam, model.fit.

EfficientNetB0 stands in for the Lite variant, which Keras lacks, with random weights: time only, its accuracy says nothing.
"""

from __future__ import annotations

from pathlib import Path

import contract
import keras
import numpy as np
from keras import layers
from PIL import Image

LAST = ("block7", "top_")  # EfficientNetB0's names for what blocks.6, conv_head and bn2 are in timm


class Tell(keras.callbacks.Callback):
    """Tells each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.teller = contract.Teller()

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.teller.begin()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.teller.epoch_begins()

    def on_test_begin(self, logs: dict | None = None) -> None:
        keras.ops.convert_to_numpy(
            self.model.trainable_variables[0]
        )  # JAX runs ahead: wait for what it was given
        self.teller.trained()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.teller.epoch_ends(float(logs["val_accuracy"]))


def arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all images of a part and their labels."""
    classes = sorted(path.name for path in folder.iterdir())
    paths = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
    ]
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in paths]), np.array(
        [label for _, label in paths]
    )


def network(side: int, resolution: int, classes: int, task: str) -> keras.Model:
    """Return the base with a new head, trainable where the task says."""
    base = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(resolution, resolution, 3), pooling="avg"
    )
    base.trainable = task != "frozen"
    if task == "last":
        for layer in base.layers:
            layer.trainable = layer.name.startswith(LAST)
    inputs = keras.Input((side, side, 3))
    features = base(layers.Resizing(resolution, resolution)(inputs), training=False)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(features))


def main() -> None:
    """Train and tell."""
    told = contract.options()
    keras.utils.set_random_seed(0)
    (x_train, y_train), (x_val, y_val) = arrays(told.data / "train"), arrays(told.data / "val")
    model = network(x_train.shape[1], told.resolution, int(y_train.max()) + 1, told.task)
    model.compile(
        keras.optimizers.Adam(told.lr), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    tell = Tell()
    model.fit(
        x_train,
        y_train,
        told.batch_size,
        told.epochs,
        verbose=0,
        callbacks=[tell],
        validation_data=(x_val, y_val),
    )
    tell.teller.done(
        {
            "optimizer": "Adam",
            "lr": told.lr,
            "schedule": "constant",
            "backend": keras.backend.backend(),
            "precision": "float32",
            "workers": 0,
        }
    )


if __name__ == "__main__":
    main()

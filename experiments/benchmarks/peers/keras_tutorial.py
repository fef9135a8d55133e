"""The Keras tutorial that the default run reproduces, on the same files: one seed, one JSON line.

    KERAS_BACKEND=tensorflow python experiments/benchmarks/peers/keras_tutorial.py --seed 0

Needs the bench extra. The backend is Keras's choice: tensorflow, jax or torch.
"""

import argparse
import importlib.metadata
import json
import time

import keras
from files import read


class EpochTimer(keras.callbacks.Callback):
    """Seconds of each epoch's training, without its evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Stop it: the evaluation begins."""
        self.seconds.append(round(time.perf_counter() - self.began, 4))


def main() -> None:
    """Train and print the test accuracy after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(512),
            keras.layers.Activation("relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(512, kernel_regularizer=keras.regularizers.l2(0.001)),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
            keras.layers.Activation("softmax"),
        ]
    )
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    train, test = ((images, keras.utils.to_categorical(labels, 10)) for images, labels in map(read, ("train", "t10k")))
    timer = EpochTimer()
    options = {"batch_size": 128, "epochs": args.epochs, "validation_data": test, "callbacks": [timer], "verbose": 0}
    history = model.fit(*train, **options).history
    backend = keras.backend.backend()
    result = {
        "program": f"keras-{backend}",
        "seed": args.seed,
        "accuracy": [round(a, 6) for a in history["val_accuracy"]],
        "epoch_seconds": timer.seconds,
        "versions": {"keras": keras.__version__, backend: importlib.metadata.version(backend)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

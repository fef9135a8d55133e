"""The Keras tutorial that the default run reproduces, on the same files: one seed, one JSON line.

    KERAS_BACKEND=tensorflow python experiments/peers/keras_tutorial.py --seed 0

Needs the bench extra. The backend is Keras's choice: tensorflow, jax or torch.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import keras
import numpy as np

MNIST = Path(__file__).parents[2] / "mnist_flax" / "mnist"


def read(stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 [N, 784] in [0, 1] and one-hot labels [N, 10]."""
    images = np.frombuffer(gzip.decompress((MNIST / f"{stem}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((MNIST / f"{stem}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 784).astype("float32") / 255, keras.utils.to_categorical(labels, 10)


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
    test = read("t10k")
    began = time.perf_counter()
    history = model.fit(*read("train"), batch_size=128, epochs=args.epochs, validation_data=test, verbose=0).history
    seconds = time.perf_counter() - began
    result = {
        "program": f"keras-{keras.backend.backend()}",
        "seed": args.seed,
        "accuracy": [round(a, 6) for a in history["val_accuracy"]],
        "seconds": round(seconds, 2),
        "versions": {"keras": keras.__version__, keras.backend.backend(): _backend_version()},
    }
    print(json.dumps(result))


def _backend_version() -> str:
    import importlib.metadata

    return importlib.metadata.version(keras.backend.backend())


if __name__ == "__main__":
    main()

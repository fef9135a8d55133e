"""A recipe of ours in Keras, on the same files: one seed, one JSON line.

    KERAS_BACKEND=tensorflow python experiments/benchmarks/peers/recipe_keras.py experiments/recipes/98.json --seed 0

Needs the bench extra. Of a recipe it takes the settings that `recipe_files.settings` allows.
"""

import argparse
import importlib.metadata
import json
import time
from typing import Any

import keras
from files import read
from recipe_files import learning_rates, settings


class Rates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each step, from a table."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def __call__(self, step: Any) -> Any:
        """The rate after `step` updates."""
        return keras.ops.take(keras.ops.convert_to_tensor(self.rates, "float32"), keras.ops.cast(step, "int32"))


def main() -> None:
    """Train and print the test accuracy at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe, h = settings(args.recipe)
    keras.utils.set_random_seed(args.seed)
    layers: list[Any] = [keras.Input((784,))]
    for layer, width in enumerate(recipe["widths"], start=1):
        layers.append(keras.layers.Dense(width))
        layers += [keras.layers.BatchNormalization()] * (layer in recipe["batch_norm_layers"])
        layers += [keras.layers.Activation("relu"), keras.layers.Dropout(h["dropout_rate"])]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    images, labels = (array[: recipe["train"]] for array in read("train"))
    rates = learning_rates(recipe, h, len(labels))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=h["label_smoothing"])
    adam = keras.optimizers.Adam(Rates(rates), h["b1"], h["b2"], recipe["adam_epsilon"])
    model.compile(loss=loss, optimizer=adam, metrics=["accuracy"])
    began = time.perf_counter()
    options = {"batch_size": recipe["batch_size"], "epochs": recipe["epochs"], "verbose": 0}
    model.fit(images, keras.utils.to_categorical(labels, 10), **options)
    seconds = round(time.perf_counter() - began, 4)
    test, truth = read("t10k")
    accuracy = model.evaluate(test, keras.utils.to_categorical(truth, 10), batch_size=1000, verbose=0)[1]
    backend = keras.backend.backend()
    versions = {"keras": keras.__version__, backend: importlib.metadata.version(backend)}
    print(json.dumps({"accuracy": round(accuracy, 6), "training": seconds, "versions": versions}))


if __name__ == "__main__":
    main()

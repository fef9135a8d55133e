"""A network as a Keras model, `.keras` or `.h5`, as the Keras tutorial saves it: to be evaluated, or trained on.

    model = keras.models.load_model("exp1.keras")  # under Keras's TensorFlow, JAX or torch backend
    probabilities = model.predict(images)  # uint8 or float 0..255, [N, 28, 28] or [N, 28, 28, 1] -> float32 [N, 10]
    model.evaluate(images, labels)  # loss, with the L2 penalty, and accuracy

It is compiled with the run's Adam and learning rate, but label smoothing and the schedule have no place in it, and Adam
begins afresh. The metadata is JSON beside what Keras reads: the entry `mnist_flax.json` of a .keras file, which is a
zip (`unzip -p exp1.keras mnist_flax.json`); the data set `mnist_flax` of a .h5 file.
"""

import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax import record
from mnist_flax.config import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM

os.environ["KERAS_BACKEND"] = "jax"  # whatever the user's Keras is set to: only this one is surely there
import h5py
import keras

keras.config.set_floatx("float32")

NAME = "mnist_flax"
_LEAVES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


def write(path: Path, run: record.Run, variables: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the file.

    Args:
      path: the file, its name ending in .keras or .h5.
      run: what the network is.
      variables: params and batch_stats.
      about: metadata, JSON values.
    """
    model = build(run)
    output = len(run.config.widths) + 1
    for variable in model.weights:
        layer, leaf = variable.path.split("/")[-2:]
        if layer.startswith("dropout"):  # the state of its random numbers
            continue
        layer = f"dense_{output}" if layer == "logits" else layer
        leaf = _LEAVES.get(leaf, leaf)
        collection = "batch_stats" if leaf in ("mean", "var") else "params"
        variable.assign(variables[collection][layer][leaf])
    if path.suffix == ".keras":
        model.optimizer.build(model.trainable_variables)  # else Keras warns at opening that its state is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras's own, of numpy
        model.save(path)
    text = json.dumps(about)
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{NAME}.json", text)
    else:
        with h5py.File(path, "a") as file:
            del file["optimizer_weights"]  # where Keras finds them, it opens a model that cannot be trained on
            file[NAME] = text


def build(run: record.Run) -> keras.Model:
    """The network with Keras's own initial weights, compiled."""
    config, h = run.config, run.config.hparams

    def dense(layer: int, units: int, name: str) -> keras.layers.Layer:
        l2 = keras.regularizers.L2(h.l2) if layer in config.l2_layers else None
        max_norm: Any = h.max_norm  # Keras hints at an int
        limit = keras.constraints.MaxNorm(max_norm, axis=0) if layer in config.max_norm_layers else None
        return keras.layers.Dense(units, kernel_regularizer=l2, kernel_constraint=limit, name=name)

    layers: list[Any] = [
        keras.Input(tuple(run.data["image_shape"]), name="images"),
        keras.layers.Rescaling(1 / 255, name="scaled"),
        keras.layers.Flatten(data_format="channels_last", name="flat"),
    ]
    for layer, width in enumerate(config.widths, start=1):
        layers.append(dense(layer, width, f"dense_{layer}"))
        if layer in config.batch_norm_layers:
            layers.append(
                keras.layers.BatchNormalization(
                    momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=f"batch_norm_{layer}"
                )
            )
        layers.append(keras.layers.Activation("relu", name=f"relu_{layer}"))
        layers.append(keras.layers.Dropout(h.dropout_rate, name=f"dropout_{layer}"))
    layers.append(dense(len(config.widths) + 1, len(run.data["class_names"]), "logits"))
    layers.append(keras.layers.Activation("softmax", name="probabilities"))
    model = keras.Sequential(layers, name=NAME)
    adam = keras.optimizers.Adam(h.learning_rate, beta_1=h.b1, beta_2=h.b2, epsilon=config.adam_epsilon)
    model.compile(optimizer=adam, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits float32 [N, C] that Keras gets from the file for uint8 images [N, H, W, C]."""
    model: Any = keras.models.load_model(path)
    upto: Any = keras.Model(model.inputs[0], model.get_layer("logits").output)
    return upto.predict(images, verbose=0)

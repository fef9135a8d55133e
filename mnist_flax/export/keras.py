"""A network as a Keras model, `.keras` or `.h5`, as the Keras tutorial saves it: to be evaluated, or trained on.

    model = keras.models.load_model("exp1.keras")  # under Keras's TensorFlow, JAX or torch backend
    probabilities = model.predict(images)  # uint8 or float 0..255, [N, 28, 28] or [N, 28, 28, 1] -> float32 [N, 10]
    model.evaluate(images, labels)  # loss, with the L2 penalty, and accuracy

It is compiled with the run's Adam and learning rate, but label smoothing and the schedule have no place in it, and Adam
begins from scratch. The metadata is JSON next to what Keras reads: the entry `mnist_flax.json` of a .keras file, which
is a zip (`unzip -p exp1.keras mnist_flax.json`); the data set `mnist_flax` of a .h5 file.
"""

import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.config import Config
from mnist_flax.export.network import TrainedNetwork
from mnist_flax.model import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM

os.environ["KERAS_BACKEND"] = "jax"  # whatever the user's Keras is set to: only this one is surely there
import h5py
import keras

keras.config.set_floatx("float32")

NAME = "mnist_flax"


def write(path: Path, network: TrainedNetwork, about: dict[str, Any]) -> None:
    """Write a network, with its metadata in JSON values; the path ends in .keras or .h5."""
    layers = network.dense_layers()
    model: Any = build(network.config, network.image_shape, len(network.class_names))
    for number, layer in enumerate(layers, start=1):
        name = "logits" if number == len(layers) else f"dense_{number}"
        model.get_layer(name).set_weights([layer.kernel, layer.bias])
        if layer.batch_norm is not None:
            leaves = [layer.batch_norm[leaf] for leaf in ("scale", "bias", "mean", "var")]
            model.get_layer(f"batch_norm_{number}").set_weights(leaves)
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
            del file["optimizer_weights"]  # with them Keras opens a model that cannot be trained further
            file[NAME] = text


def build(config: Config, image_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """The network of a config with Keras's own initial weights, compiled."""
    h = config.hparams

    def dense(layer: int, units: int, name: str) -> keras.layers.Layer:
        l2 = keras.regularizers.L2(h.l2) if layer in config.l2_layers else None
        max_norm: Any = h.max_norm  # Keras hints at an int
        limit = keras.constraints.MaxNorm(max_norm, axis=0) if layer in config.max_norm_layers else None
        return keras.layers.Dense(units, kernel_regularizer=l2, kernel_constraint=limit, name=name)

    layers: list[Any] = [
        keras.Input(image_shape, name="images"),
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
    layers.append(dense(len(config.widths) + 1, num_classes, "logits"))
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

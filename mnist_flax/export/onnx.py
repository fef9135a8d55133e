"""A network as ONNX, built node by node.

    session = onnxruntime.InferenceSession("exp1.onnx")
    logits, probabilities = session.run(None, {"images": images})  # uint8 [N, 28, 28, 1], of any N -> float32 [N, 10]

The metadata is in `metadata_props`, where `session.get_modelmeta().custom_metadata_map` finds it: texts unchanged,
all else as JSON.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mnist_flax.export.network import TrainedNetwork
from mnist_flax.model import BATCH_NORM_EPSILON

# ONNX 1.10 of 2021: the first with the BatchNormalization of today, and read by every runtime since.
OPSET, IR_VERSION = 15, 8


def write(path: Path, network: TrainedNetwork, about: dict[str, Any]) -> None:
    """Write a network, with its metadata in JSON values, after `onnx.checker` has passed it."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def weight(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    x = add("Cast", ["images"], "pixels", to=TensorProto.FLOAT)
    x = add("Flatten", [x], "flat", axis=1)
    x = add("Div", [x, weight("largest_pixel", 255)], "scaled")
    layers = network.dense_layers()
    for number, layer in enumerate(layers, start=1):
        names = [weight(f"dense_{number}/{leaf}", getattr(layer, leaf)) for leaf in ("kernel", "bias")]
        x = add("Gemm", [x, *names], "logits" if number == len(layers) else f"dense_{number}")
        if layer.batch_norm is not None:
            name, leaves = f"batch_norm_{number}", ("scale", "bias", "mean", "var")
            names = [weight(f"{name}/{leaf}", layer.batch_norm[leaf]) for leaf in leaves]
            x = add("BatchNormalization", [x, *names], name, epsilon=BATCH_NORM_EPSILON)
        if number < len(layers):
            x = add("Relu", [x], f"relu_{number}")
    add("Softmax", [x], "probabilities", axis=1)

    classes = len(network.class_names)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *network.image_shape])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes]) for name in ("logits", "probabilities")
    ]
    graph = helper.make_graph(nodes, "mlp", [images], outputs, weights)
    opset = helper.make_operatorsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="mnist_flax")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits float32 [N, C] that onnxruntime gets from the file for uint8 images [N, H, W, C]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": images})[0])

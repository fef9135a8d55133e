"""A network, or an ensemble of several, as ONNX, built node by node.

    session = onnxruntime.InferenceSession("exp1.onnx")
    logits, probabilities = session.run(None, {"images": images})  # uint8 [N, 28, 28, 1], of any N -> float32 [N, 10]

The metadata is in `metadata_props`, where `session.get_modelmeta().custom_metadata_map` finds it: texts unchanged,
all else as JSON. The logits of an ensemble are the logarithms of its probabilities.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mnist_flax.export.network import TrainedNetwork
from mnist_flax.model import BATCH_NORM_EPSILON, DenseLayer

# ONNX 1.10 of 2021: the first with the BatchNormalization of today, and read by every runtime since.
OPSET, IR_VERSION = 15, 8


class _Nodes:
    """The nodes and weights of a graph, in the order in which they are added; each node is named after its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, value: Any, dtype: type = np.float32) -> str:
        """Add an array; returns its name."""
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add_layers(self, x: str, layers: list[DenseLayer], prefix: str = "") -> str:
        """Add a network's layers, with names that begin with `prefix`; returns the name of its logits."""
        for number, layer in enumerate(layers, start=1):
            dense = f"{prefix}dense_{number}"
            names = [self.weight(f"{dense}/{leaf}", getattr(layer, leaf)) for leaf in ("kernel", "bias")]
            x = self.add("Gemm", [x, *names], f"{prefix}logits" if number == len(layers) else dense)
            if layer.batch_norm is not None:
                name, leaves = f"{prefix}batch_norm_{number}", ("scale", "bias", "mean", "var")
                names = [self.weight(f"{name}/{leaf}", layer.batch_norm[leaf]) for leaf in leaves]
                x = self.add("BatchNormalization", [x, *names], name, epsilon=BATCH_NORM_EPSILON)
            if number < len(layers):
                x = self.add("Relu", [x], f"{prefix}relu_{number}")
        return x

    def add_mean(self, x: str, networks: list[TrainedNetwork]) -> str:
        """Add networks, and the logarithms of the mean of their probabilities; returns the name of these logarithms."""
        first, each = self.weight("first_axis", [0], np.int64), []
        for number, network in enumerate(networks, start=1):
            prefix = f"network_{number}/"
            logits = self.add_layers(x, network.dense_layers(), prefix)
            alone = self.add("LogSoftmax", [logits], f"{prefix}log_probabilities", axis=1)
            each.append(self.add("Unsqueeze", [alone, first], f"{prefix}row"))
        stack = self.add("Concat", each, "stack", axis=0)  # [P, N, C]
        total = self.add("ReduceLogSumExp", [stack], "log_sum", axes=[0], keepdims=0)
        return self.add("Sub", [total, self.weight("log_networks", np.log(len(networks)))], "logits")


def write(path: Path, network: TrainedNetwork | list[TrainedNetwork], about: dict[str, Any]) -> None:
    """Write a network, with its metadata in JSON values, after `onnx.checker` has passed it.

    A list, of one shape of images and the same classes, is written as the ensemble of its networks.
    """
    networks = network if isinstance(network, list) else [network]
    graph = _Nodes()
    x = graph.add("Cast", ["images"], "pixels", to=TensorProto.FLOAT)
    x = graph.add("Flatten", [x], "flat", axis=1)
    x = graph.add("Div", [x, graph.weight("largest_pixel", 255)], "scaled")
    x = graph.add_layers(x, networks[0].dense_layers()) if len(networks) == 1 else graph.add_mean(x, networks)
    graph.add("Softmax", [x], "probabilities", axis=1)

    classes = len(networks[0].class_names)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *networks[0].image_shape])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes]) for name in ("logits", "probabilities")
    ]
    made = helper.make_graph(graph.nodes, "mlp", [images], outputs, graph.weights)
    opset = helper.make_operatorsetid("", OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION, producer_name="mnist_flax")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Logits float32 [N, C] that onnxruntime gets from the file for uint8 images [N, H, W, C]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": images})[0])

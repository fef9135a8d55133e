"""Turn a network's jaxpr into nodes and edges, for TensorBoard's graph."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from mnist_flax.model import Network
from mnist_flax.monitor.async_writer import Node


def training_graph(model: Network, variables: dict[str, Any], image_shape: tuple[int, ...]) -> list[Node]:
    """The forward pass in training: the parameters by their path, the operations in groups by layer."""

    def apply(variables: dict[str, Any], images: Array) -> Array:
        rngs = {"params": jax.random.key(0)}  # Flax takes it for every stream
        logits, _ = model.apply(variables, images, dropout_rate=0.5, train=True, rngs=rngs, mutable=["batch_stats"])
        return logits

    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
    closed = jax.make_jaxpr(apply)(variables, images)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    names = ["/".join(key.key for key in path[1:]) for path in paths] + ["images"]  # without `params`
    nodes: list[Node] = [(name, "Parameter", []) for name in names[:-1]] + [("images", "Placeholder", [])]
    made = dict(zip(closed.jaxpr.invars, names, strict=True))
    counts: dict[str, int] = {}
    root = type(model).__name__
    for equation in closed.jaxpr.eqns:
        op = _name_of(equation)
        scope = "/".join(part for part in str(equation.source_info.name_stack).split("/") if part and part != root)
        name = f"{scope}/{op}" if scope else op
        counts[name] = counts.get(name, 0) + 1
        name += f"_{counts[name]}" if counts[name] > 1 else ""
        inputs = [made[var] for var in equation.invars if not isinstance(var, core.Literal) and var in made]
        nodes.append((name, op, inputs))
        made |= dict.fromkeys(equation.outvars, name)
    outputs = [made[var] for var in closed.jaxpr.outvars if not isinstance(var, core.Literal)]
    return [*nodes, ("logits", "Output", outputs)]


def _name_of(equation: core.JaxprEqn) -> str:
    """The operation's name, or that of the function that it calls, such as relu."""
    inner = equation.params.get("call_jaxpr")
    if inner is not None and len(inner.eqns) == 1:
        return _name_of(inner.eqns[0])
    return str(equation.params.get("name", equation.primitive.name))

"""Compile a driver for TPUs or GPUs on a host without them, and print what the compiler reports.

XLA's compilers need a description of the chips, not the chips. That for TPUs is part of libtpu, which knows its slices
by name; that for NVIDIA cards is part of jax-cuda12-pjrt, and takes a card's public figures, such as those in h100.txt.

    python experiments/benchmarks/compile_program.py '{"topology": "v5e:2x2", "driver": "train"}' ...
    python experiments/benchmarks/compile_program.py '{"topology": "H100:8", "driver": "train"}' ...

prints one JSON line for each program. MNIST_FLAX_LIBTPU names a directory with libtpu, in the version that jax[tpu]
requires, unless it is installed: `pip install --no-deps --target DIRECTORY 'libtpu==0.0.42.*'`, 684 MB. Every `import
jax` loads a libtpu that is installed in its environment, so a directory is better on a host without TPUs. In the same
way MNIST_FLAX_CUDA: `pip install --target DIRECTORY 'jax-cuda12-plugin[with-cuda]==0.10.2'`, the version of jax, 5 GB.
"""

import os
import sys

# Nothing is computed, so no platform but the CPU is needed, no metadata server, and no lock of the TPUs.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
sys.path += [os.environ[name] for name in ("MNIST_FLAX_LIBTPU", "MNIST_FLAX_CUDA") if name in os.environ]

import importlib.metadata
import json
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hlo
import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnist_flax import compiled
from mnist_flax.config import Config
from mnist_flax.data.batches import eval_batches
from mnist_flax.loop import make_plan
from mnist_flax.program import Program
from mnist_flax.state import as_arrays, init_state

EXAMPLES = {"train": 60_000, "eval": 10_000}
EVERYWHERE, BATCHES, MEMBERS = PartitionSpec(), PartitionSpec(None, "data"), PartitionSpec("member")


@dataclass(frozen=True)
class Case:
    """What to compile: a driver, of the default run but for these settings, and where."""

    topology: str
    driver: str  # train, eval, train_members or eval_members
    members: int = 1
    config: dict[str, Any] = field(default_factory=dict)


def lower(case: Case) -> Any:
    """The driver's program as `compiled` calls it, before XLA compiles it."""
    config = Config(**case.config)
    steps = -(-EXAMPLES["train"] // config.batch_size)
    program, hparams = Program(config.static(), (28, 28, 1), 10, steps), as_arrays(config.hparams)
    state = jax.eval_shape(partial(init_state, program=program), hparams)
    kind, _, population = case.driver.partition("_")
    mesh = Mesh(devices(case.topology), ("member" if population else "data",))
    count = EXAMPLES[kind]
    split = _placed(
        (jax.ShapeDtypeStruct((count, 28, 28, 1), np.uint8), jax.ShapeDtypeStruct((count,), np.int32)), mesh
    )
    if kind == "train":
        first, last = make_plan(config, steps).calls[0]
        indices = np.empty((last - first, config.batch_size), np.int32)
    else:
        indices = eval_batches(count, config.eval_batch_size)
    if population:
        mine = partial(_placed, mesh=mesh, spec=MEMBERS, members=case.members)
        order = mine(indices) if kind == "train" else _placed(indices, mesh)
        static: dict[str, Any] = {"program": program, "mesh": mesh, "at_once": -(-case.members // mesh.size)}
        driver = compiled.train_members if kind == "train" else compiled.eval_members
        return driver.lower(mine(state), mine(hparams), split, order, **static)
    missing = -indices.shape[1] % mesh.size
    order = _placed(np.pad(indices, ((0, 0), (0, missing))), mesh, BATCHES)
    driver = compiled.train_steps if kind == "train" else compiled.eval_steps
    return driver.lower(_placed(state, mesh), _placed(hparams, mesh), split, order, program=program)


def devices(topology: str) -> np.ndarray:
    """The chips of a slice of TPUs, as `v5e:2x2`, or those of a host with as many cards, as `H100:8`."""
    if not topology.startswith("H100:"):
        return np.asarray(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
    card, cards = Path(__file__).with_name("h100.txt").read_text(), topology.partition(":")[2]
    made = topologies.get_topology_desc(platform="cuda", target_config=card, topology=f"1x1x{cards}")
    return np.asarray(made.devices)


def _placed(tree: Any, mesh: Mesh, spec: PartitionSpec = EVERYWHERE, members: int = 0) -> Any:
    """The shapes and types of a tree on the devices; of as many members, if any."""
    first, sharding = (members,) if members else (), NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(first + leaf.shape, leaf.dtype, sharding=sharding), tree)


def measure(case: Case) -> dict[str, Any]:
    """What the compiled program takes and does on one chip; or why it was not compiled."""
    lowered = lower(case)
    state = jax.tree.leaves(lowered.in_avals[0][0])
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:  # such as too little memory
        return {"failed": str(error).splitlines()[0]}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory, text = program.memory_analysis(), program.as_text()
    each_turn, once = hlo.collectives(text)
    compiler = "jax-cuda12-pjrt" if case.topology.startswith("H100") else "libtpu"
    return {
        "compiler": f"{compiler} {importlib.metadata.version(compiler)}",
        "compile_seconds": round(wall, 1),
        "compile_cpu_seconds": round(cpu, 1),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "flops": (program.cost_analysis() or {}).get("flops"),  # the CUDA compiler does not say
        "collectives_each_step": each_turn,
        "collectives_once": once,
        "state_leaves": len(state),
        "donated": hlo.donated(text),
        "float64": hlo.has_float64(text),
        "host_calls": hlo.host_calls(text),
        "custom_calls": hlo.custom_calls(text),
    }


if __name__ == "__main__":
    for word in sys.argv[1:]:
        asked = json.loads(word)
        print(json.dumps(asked | measure(Case(**asked))), flush=True)

"""The parts of `device.py`: each is run as a process of its own, and prints its results as JSON lines.

python experiments/benchmarks/device_parts.py steps
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
# (dtype, precision) of a product; a GPU rounds float32 factors to TF32 unless it is told not to.
PRECISIONS = {"float32": ("float32", "highest"), "tf32": ("float32", "tensorfloat32"), "bfloat16": ("bfloat16", None)}
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
TESTS = ["test_steps.py", "test_model.py", "test_metrics.py", "test_layers.py", "workdir/test_resume.py"]
QUIET: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
Result = dict[str, Any]


def seconds(action: Any) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def program_and_splits(config: Any) -> tuple[Any, tuple[Any, Any]]:
    """The static program of a config, and MNIST's training and test images."""
    from mnist_flax.data import batches, datasets
    from mnist_flax.program import Program

    dataset = datasets.open_dataset("mnist", datasets.default_data_dir())
    train, test = (batches.Split(*dataset.read(name)) for name in ("train", "test"))
    return Program(config.static(), (28, 28, 1), 10, -(-60_000 // config.batch_size)), (train, test)


def products() -> Iterator[Result]:
    """TFLOP/s of a product of 8192 x 8192 in each precision."""
    import jax
    import jax.numpy as jnp

    size = 8192
    for name, (dtype, precision) in PRECISIONS.items():
        a, b = (jax.random.normal(jax.random.key(seed), (size, size), dtype) for seed in (0, 1))
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        times = [seconds(lambda: jax.block_until_ready(product(a, b))) for _ in range(8)]  # noqa: B023
        yield {"precision": name, "tflops": 2 * size**3 / min(times) / 1e12}


def steps() -> Iterator[Result]:
    """Milliseconds a step of the default run, by epoch, and the peak of the card's memory."""
    import jax

    from mnist_flax import placement
    from mnist_flax.config import Config
    from mnist_flax.drivers import RunDriver

    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    for precision in precisions:
        config = Config(precision=precision)
        program, splits = program_and_splits(config)
        driver = RunDriver(config, program, *splits, placement.data_mesh(config.batch_size))
        state, milliseconds = driver.init(), []
        for epoch in range(8):
            order, began = driver.batches(epoch), time.perf_counter()
            for first in range(0, len(order), config.steps_per_call):
                state, _ = driver.train(state, order[first : first + config.steps_per_call])
            jax.block_until_ready(state)
            milliseconds.append(1000 * (time.perf_counter() - began) / len(order))
        found, _ = driver.evaluate(state)
        hits, examples = (float(sum(values)) for values in (found.correct, found.examples))
        memory = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
        yield {
            "precision": precision,
            "milliseconds": milliseconds,
            "accuracy": hits / examples,
            "peak_memory_mb": memory,
        }


def pytorch() -> Iterator[Result]:
    """The same of PyTorch, with CUDA graphs."""
    for name in PRECISIONS:
        line = [sys.executable, f"{Path(__file__).parent}/peers/pytorch_cuda_graph.py", "--precision", name]
        found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
        milliseconds = [1000 * epoch / found["steps"] for epoch in found["epoch_seconds"]]
        yield {"precision": name, "milliseconds": milliseconds} | {k: found[k] for k in ("accuracy", "peak_memory_mb")}


def populations() -> Iterator[Result]:
    """Milliseconds a step and a member, of populations of 1 to 512."""
    import jax

    from mnist_flax.config import Config, Hyperparams
    from mnist_flax.drivers import PopulationDriver

    program, splits = program_and_splits(Config())
    for members in (1, 4, 16, 64, 256, 512):
        driver = PopulationDriver([Config(hparams=Hyperparams(seed=s)) for s in range(members)], program, *splits)
        state, calls = driver.init(), driver.batches(0)
        times = []
        for call in range(4):
            began = time.perf_counter()
            state, metrics = driver.train(state, calls[:, 67 * call : 67 * (call + 1)])
            jax.block_until_ready((state, metrics))
            times.append(1000 * (time.perf_counter() - began) / 67 / members)
        memory = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
        yield {"members": members, "milliseconds": times[1:], "peak_memory_mb": memory}


def resume() -> Iterator[Result]:
    """Is a run that was killed in the middle, and went on, the same bit for bit as a straight one?"""
    from faults_processes import command, final, same

    flags_of_all = ["--checkpoint-every", "200", "--epochs", "3", "--no-figures", "--no-tensorboard"]
    for flags in (DETERMINISTIC, ""):
        with tempfile.TemporaryDirectory() as directory:
            env = os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            names = ("straight", "again", "killed")
            lines = {name: command("train", "--workdir", Path(directory) / name, *flags_of_all) for name in names}
            began = time.perf_counter()
            processes = {name: subprocess.Popen(line, env=env, **QUIET) for name, line in lines.items()}
            saved = Path(directory) / "killed" / "checkpoints"
            while processes["killed"].poll() is None and not [*saved.glob("[0-9]*")]:
                time.sleep(0.05)
            processes["killed"].kill()
            codes = [processes[name].wait() for name in ("straight", "again")]
            wall = time.perf_counter() - began
            steps_then = sorted(path.name for path in saved.iterdir())
            codes.append(subprocess.run(lines["killed"], env=env, **QUIET).returncode)
            straight, again, killed = (final(Path(directory) / name) for name in lines)
        same_bits = {"again": same(again, straight), "resumed": same(killed, straight)}
        yield {"flags": flags, "exit_codes": codes, "killed_at": steps_then, "wall": wall} | {
            "same_bits": same_bits,
            "compared": "arrays and metrics",
        }


def workers() -> Iterator[Result]:
    """A sweep of 16 members by one and by two processes that share the card."""
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as directory:
            study, sweep = Path(directory) / "study.py", Path(directory) / "sweep"
            splits = 'train_split="train[:50000]", eval_split="train[50000:]"'
            seeds = "def sweep():\n    yield from ({'seed': seed} for seed in range(16))\n"
            study.write_text(f"from mnist_flax import Config\nBASE = Config({splits})\nFINAL_SEEDS = 0\n{seeds}")
            line = [sys.executable, "-m", "mnist_flax.sweep", str(study), "--workdir", str(sweep)]
            began = time.perf_counter()
            done = subprocess.run([*line, "--population", "8", "--workers", str(count)], capture_output=True, text=True)
            wall, file = time.perf_counter() - began, sweep / "results.jsonl"
            accuracy = (
                [json.loads(row)["history"][-1]["accuracy"] for row in file.read_text().splitlines()]
                if file.exists()
                else []
            )
        said = "" if not done.returncode else done.stderr.strip()[-300:]
        yield {"workers": count, "exit_code": done.returncode, "wall": wall, "accuracy": accuracy, "said": said}


def tests() -> Iterator[Result]:
    """The tests that need no CPU devices, on the card."""
    line = [sys.executable, "-m", "pytest", *(f"tests/{name}" for name in TESTS), "-q", "--tb=line", "-W", "default"]
    line += ["-n", "6"] if importlib.util.find_spec("xdist") else []
    env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    failed = [text[:160] for text in done.stdout.splitlines() if text.startswith(("FAILED", "ERROR"))]
    yield {"tests": TESTS, "summary": done.stdout.strip().splitlines()[-1:], "failed": failed}


PARTS = {part.__name__: part for part in (products, steps, pytorch, populations, resume, workers, tests)}


if __name__ == "__main__":
    for result in PARTS[sys.argv[1]]():
        print(json.dumps(result), flush=True)

"""The best float32 rate of a 2048 x 2048 product that this machine shows: one JSON line.

    python experiments/benchmarks/peers/floor.py

numpy's BLAS, PyTorch and XLA, in turn. Needs the bench extra.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

N = 2048


def best(product: Callable[[], Any], tries: int = 12) -> float:
    """GFLOP/s of the fastest of several."""
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        product()
        times.append(time.perf_counter() - began)
    return 2 * N**3 / min(times) / 1e9


def main() -> None:
    """Measure each twice, in turn."""
    a, b = np.random.default_rng(0).random((2, N, N), np.float32)
    tensors, arrays = (torch.from_numpy(a), torch.from_numpy(b)), (jax.device_put(a), jax.device_put(b))
    multiply = jax.jit(lambda x, y: x @ y)
    programs = {
        "numpy": lambda: a @ b,
        "torch": lambda: tensors[0] @ tensors[1],
        "xla": lambda: multiply(*arrays).block_until_ready(),
    }
    rates = {name: 0.0 for name in programs}
    for _ in range(2):
        for name, product in programs.items():
            rates[name] = round(max(rates[name], best(product)), 1)
    print(json.dumps({"program": "floor", "gflops": rates}))


if __name__ == "__main__":
    main()

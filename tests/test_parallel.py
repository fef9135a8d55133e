"""Placement, and what several processes agree on."""

import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import Tiny

from mnist_flax import data, fit, parallel
from mnist_flax.config import InputError


def test_batches_are_split_and_filled_up() -> None:
    mesh = parallel.make_mesh(16)
    placed = parallel.shard_batches(np.arange(30, dtype=np.int32).reshape(3, 10), mesh)
    assert placed.shape == (3, 16) and len(placed.sharding.device_set) == 8
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(placed[:, :10], np.arange(30).reshape(3, 10))
    assert (np.asarray(placed[:, 10:]) == -1).all()


@pytest.mark.parametrize(("batch_size", "remedy"), [(100, "96 or 104"), (5, "8"), (17, "16 or 24")])
def test_a_batch_that_does_not_divide(batch_size: int, remedy: str) -> None:
    with pytest.raises(InputError, match=f"batch_size={batch_size} must be a multiple of the 8 devices; try {remedy}$"):
        parallel.make_mesh(batch_size)


def test_alone_a_signal_is_what_was_received() -> None:
    assert parallel.stop_signal(0, None) is None and parallel.stop_signal(1, signal.SIGINT) == signal.SIGINT


def test_two_processes_stop_at_one_call_when_one_gets_sigterm() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = """
import os, sys, time, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from mnist_flax import parallel
print("ready", flush=True)
for call in range(2000):
    if parallel.stop_signal(call, None):
        print(call, flush=True)
        os._exit(0)
    time.sleep(0.01)
"""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, address, str(i)], stdout=subprocess.PIPE, text=True, env=env)
        for i in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    processes[1].send_signal(signal.SIGTERM)
    stopped = [process.communicate(timeout=30)[0] for process in processes]
    assert stopped[0] == stopped[1] and 0 < int(stopped[0]) < 1999
    assert [process.returncode for process in processes] == [0, 0]


def test_no_data_travels_inside_an_epoch(tiny: Tiny, small: data.Split) -> None:
    """Indices go to the devices, and metrics come back, when they are told to: nothing else crosses in between."""
    mesh = parallel.make_mesh(16)
    hparams, split = parallel.replicate((tiny.hparams(), tuple(small)), mesh)
    state = parallel.replicate(tiny.init(tiny.hparams()), mesh)
    indices = parallel.shard_batches(data.epoch_batches(200, 16, 0, 0), mesh)
    with jax.transfer_guard("disallow_explicit"):
        state, metrics = fit.train_steps(state, hparams, split, indices, model=tiny.model, make_tx=tiny.make_tx)
        state, metrics = fit.train_steps(state, hparams, split, indices, model=tiny.model, make_tx=tiny.make_tx)
    assert int(state.step) == 26 and metrics.examples.sum() == 200
    with pytest.raises(Exception, match="Disallowed"), jax.transfer_guard("disallow_explicit"):
        fit.train_steps(state, hparams, split, np.asarray(indices), model=tiny.model, make_tx=tiny.make_tx)

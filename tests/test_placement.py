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

from mnist_flax import compiled, placement
from mnist_flax.data import batches
from mnist_flax.errors import InputError
from mnist_flax.process import distributed


def test_batches_are_split_and_filled_up() -> None:
    mesh = placement.data_mesh(16)
    placed = placement.shard_batches(np.arange(30, dtype=np.int32).reshape(3, 10), mesh)
    assert placed.shape == (3, 16) and len(placed.sharding.device_set) == 8
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(placed[:, :10], np.arange(30).reshape(3, 10))
    assert (np.asarray(placed[:, 10:]) == -1).all()


@pytest.mark.parametrize(("batch_size", "remedy"), [(100, "96 or 104"), (5, "8"), (17, "16 or 24")])
def test_a_batch_that_does_not_divide(batch_size: int, remedy: str) -> None:
    with pytest.raises(InputError, match=f"batch_size={batch_size} must be a multiple of the 8 devices; try {remedy}$"):
        placement.data_mesh(batch_size)


def test_alone_a_signal_is_what_was_received() -> None:
    assert distributed.stop_signal(0, None) is None and distributed.stop_signal(1, signal.SIGINT) == signal.SIGINT


def test_two_processes_stop_at_one_call_when_one_gets_sigterm() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = """
import os, sys, time, jax
from mnist_flax.process import distributed
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
print("ready", flush=True)
for call in range(2000):
    if distributed.stop_signal(call, None):
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


def test_no_data_travels_inside_an_epoch(tiny: Tiny, small: batches.Split) -> None:
    """Indices go to the devices, and metrics come back, when they are told to: nothing else crosses in between."""
    mesh = placement.data_mesh(16)
    hparams, split = placement.replicate((tiny.hparams(), tuple(small)), mesh)
    state = placement.replicate(tiny.init(tiny.hparams()), mesh)
    indices = placement.shard_batches(batches.epoch_batches(200, 16, 0, 0), mesh)
    with jax.transfer_guard("disallow_explicit"):
        state, metrics = compiled.train_steps(state, hparams, split, indices, program=tiny.program)
        state, metrics = compiled.train_steps(state, hparams, split, indices, program=tiny.program)
    assert int(state.step) == 26 and metrics.examples.sum() == 200
    with pytest.raises(Exception, match="Disallowed"), jax.transfer_guard("disallow_explicit"):
        compiled.train_steps(state, hparams, split, np.asarray(indices), program=tiny.program)

"""Placement, and what several processes agree on."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import PATIENCE, Tiny

from mnist_flax import compiled, drivers, inference, placement
from mnist_flax.config import Config
from mnist_flax.data import batches, datasets
from mnist_flax.errors import InputError
from mnist_flax.process import distributed
from mnist_flax.program import make_program
from mnist_flax.state import inference_variables


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


@pytest.mark.parametrize(("processes", "devices"), [(1, 6), (4, 1), (9, 1)])
def test_the_cores_that_a_process_may_use_are_shared_among_workers(
    processes: int, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container or `taskset` allows six; the machine has more."""
    changed = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(6)}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(placement.jax.config, "update", changed.__setitem__)
    placement.use_cores_as_devices(processes)
    assert changed == {"jax_num_cpu_devices": devices}


def test_alone_a_signal_is_what_was_received() -> None:
    assert distributed.stop_signal(0, None) is None and distributed.stop_signal(1, signal.SIGINT) == signal.SIGINT


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_two_processes_stop_at_one_call_when_one_gets_a_signal(signum: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = """
import os, sys, time
from mnist_flax.process import distributed
from mnist_flax.process.signals import StopSignals
signals = StopSignals()
signals._deferring = True
distributed.join(sys.argv[1], 2, int(sys.argv[2]))
print("ready", flush=True)
for call in range(2000):
    if distributed.stop_signal(call, signals.received):
        print(call, flush=True)
        distributed.wait_for_all("the end")  # else one ends while the other still asks
        os._exit(0)
    time.sleep(0.01)
"""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, address, str(i)], stdout=subprocess.PIPE, text=True, env=env)
        for i in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    processes[1].send_signal(signum)
    stopped = [process.communicate(timeout=PATIENCE)[0].splitlines()[0] for process in processes]  # then Gloo speaks
    assert stopped[0] == stopped[1] and 0 < int(stopped[0]) < 1999
    assert [process.returncode for process in processes] == [0, 0]


def test_logits_are_those_of_every_example_in_order(dataset: datasets.Dataset) -> None:
    """Batches of 100 do not divide over eight devices, nor 203 examples into batches of 100."""
    config = Config(widths=(16,), batch_norm_layers=(), l2_layers=(), batch_size=16, eval_batch_size=100)
    train, test = dataset.read("train[:16]"), dataset.read("test[:203]")
    info = {"image_shape": dataset.image_shape, "class_names": dataset.class_names, "train_examples": 16}
    program = make_program(config, info)
    driver = drivers.RunDriver(config, program, train, test, placement.data_mesh(16))
    scores, logits = driver.evaluate(state := driver.init())
    want = inference.logits_of(program.model, inference_variables(state), test.images, 203)
    np.testing.assert_allclose(logits, want, atol=1e-5)
    assert (logits.argmax(axis=1) == test.labels).sum() == scores.correct.sum()


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


def test_memory_is_that_of_the_innermost_group(tmp_path: Path) -> None:
    """Version 2, version 1, and a container, where the group's own name is not below what is mounted."""
    inner = tmp_path / "user" / "job"
    inner.mkdir(parents=True)
    (tmp_path / "user" / "memory.max").write_text("5000\n")
    (inner / "memory.max").write_text("max\n")
    groups = tmp_path / "groups"
    groups.write_text("0::/user/job\n")
    assert placement._cgroup_limits(groups, tmp_path) == [5000]
    groups.write_text("0::/user/job:1\n")  # a name may hold colons
    assert placement._cgroup_limits(groups, tmp_path) == [5000]
    groups.write_text("0::/elsewhere/job\n")
    (tmp_path / "memory.max").write_text("7000\n")
    assert placement._cgroup_limits(groups, tmp_path) == [7000]
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text("6000\n")
    groups.write_text("4:cpu,cpuacct:/job\n3:memory:/job\n")
    assert 6000 in placement._cgroup_limits(groups, tmp_path)
    assert placement.memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

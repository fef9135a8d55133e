"""A checkpoint is whole or not there; a damaged one is named, set aside, and never loaded."""

import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import Tiny, alarm, assert_trees_equal

import mnist_flax
from mnist_flax import placement
from mnist_flax.config import Config, Hyperparams
from mnist_flax.errors import InputError, RunError
from mnist_flax.process import files
from mnist_flax.state import TrainState
from mnist_flax.workdir import checkpoint, checksums
from mnist_flax.workdir.run_info import RunInfo, differing, identity_of


def info(best: int | None = None) -> dict:
    return {"history": [{"step": 1, "loss": 0.1 + 0.2}], "best_step": best, "running": None}


def silent(text: str) -> None:
    warnings.warn(text, stacklevel=2)  # an error in these tests, unless expected


def moved(state: TrainState, by: float) -> TrainState:
    return jax.tree.map(lambda x: x + np.asarray(by, x.dtype), state)


@pytest.fixture(scope="module")
def state(tiny: Tiny) -> TrainState:
    return jax.jit(tiny.init)(tiny.hparams())


@pytest.fixture(scope="module")
def two(state: TrainState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 5 and 10."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpoint.save(directory, 5, moved(state, 5), info(), keep=2)
    checkpoint.save(directory, 10, moved(state, 10), info(), keep=2)
    return directory


def test_round_trip(two: Path, state: TrainState) -> None:
    step, got, back = checkpoint.restore(two, "latest", like=jax.eval_shape(lambda: state), warn=silent)
    assert step == 10 and back == info() and isinstance(got, TrainState)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(got))
    assert_trees_equal(got, moved(state, 10))
    _, plain, _ = checkpoint.restore(two, 5, warn=silent)  # without the code that knows its structure
    assert_trees_equal(plain["params"], moved(state, 5).params)
    assert_trees_equal(plain["batch_stats"], moved(state, 5).batch_stats)


def test_sums_are_those_of_sha256sum(two: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=two / "10", check=True)


def damages() -> dict:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return {
        "flip": flip,
        "truncate": lambda path: os.truncate(path, path.stat().st_size // 2),
        "empty": lambda path: os.truncate(path, 0),
        "delete": lambda path: path.unlink(),
    }


@pytest.mark.parametrize("kind", damages())
def test_every_file_damaged_in_every_way_is_named_and_set_aside(two: Path, tmp_path: Path, kind: str) -> None:
    want = checkpoint.restore(two, 5, warn=silent)
    names = [file.relative_to(two / "10") for file in (two / "10").rglob("*") if file.is_file()]
    assert len(names) > 8
    for index, name in enumerate(names):
        directory = tmp_path / str(index)
        shutil.copytree(two, directory)
        victim = directory / "10" / name
        if kind != "delete" and not victim.stat().st_size:
            continue  # orbax's marker is empty already
        damages()[kind](victim)
        with pytest.raises(RunError, match="is damaged"):
            checkpoint.restore(directory, 10, warn=silent)
        told: list[str] = []
        step, got, _ = checkpoint.restore(directory, "latest", warn=told.append, set_aside=True)
        assert step == 5, name
        assert_trees_equal(got, want[1])
        assert len(told) == 1 and "corrupt-10" in told[0] and ("SHA256SUMS" in told[0] or name.as_posix() in told[0])
        assert checkpoint.steps(directory) == [5] and (directory / "corrupt-10").is_dir()


def test_a_reader_passes_over_without_touching(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "c")
    (tmp_path / "c" / "10" / "SHA256SUMS").unlink()
    told: list[str] = []
    assert checkpoint.restore(tmp_path / "c", "latest", warn=told.append)[0] == 5
    assert told and checkpoint.steps(tmp_path / "c") == [5, 10]


def test_a_full_scratch_disk_says_nothing_against_a_checkpoint(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(two, tmp_path / "c")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match="could not be copied .*No space left on device.*TMPDIR"):
        checkpoint.restore(tmp_path / "c", "latest", warn=silent, set_aside=True)
    assert checkpoint.steps(tmp_path / "c") == [5, 10]


def test_a_checkpoint_that_would_not_fit_is_refused_before_anything_is_written(
    state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes its arrays and 64 kB; the half of an earlier try may lie in its place."""
    size, free = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state)) + 2**16, 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    directory = tmp_path / "c"
    free = size - 1
    with pytest.raises(RunError, match="step 5 could not be saved .*No space left on device.*no earlier checkpoint"):
        checkpoint.save(directory, 5, state, info(), keep=2)
    assert not directory.exists()
    free = size
    half = files.scratch_of(directory / "5")
    half.mkdir(parents=True)
    (half / "state").write_text("half")
    checkpoint.save(directory, 5, state, info(), keep=2)
    assert [entry.name for entry in directory.iterdir()] == ["5"]
    assert_trees_equal(checkpoint.restore(directory, 5, like=state, warn=silent)[1], state)


def test_with_none_left_it_is_an_error_and_stays_one(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "c")
    for step in (5, 10):
        (tmp_path / "c" / str(step) / "_CHECKPOINT_METADATA").write_text("{}")
    for _ in range(2):  # the second time only corrupt-* are there
        with pytest.raises(RunError, match="no sound checkpoint is left"):
            checkpoint.restore(tmp_path / "c", "latest", warn=lambda _: None, set_aside=True)
        assert checkpoint.exists(tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["corrupt-10", "corrupt-5"]


def test_best_and_latest_are_kept_over_restarts(state: TrainState, tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        checkpoint.save(tmp_path / "c", step, state, info(best), keep=2)
    assert checkpoint.steps(tmp_path / "c") == [2, 4, 5]
    assert checkpoint.restore(tmp_path / "c", "latest", warn=silent)[0] == 5
    checkpoint.save(tmp_path / "c", 6, state, info(6), keep=1)
    assert checkpoint.steps(tmp_path / "c") == [6]


def test_another_runs_checkpoint_is_refused_before_it_is_loaded(state: TrainState, tmp_path: Path) -> None:
    data: dict[str, Any] = {"image_shape": [28, 28, 1], "class_names": ["0"], "data_dir": "/here"}
    run = RunInfo(Config(), data, {})
    checkpoint.save(tmp_path / "c", 1, state, info() | identity_of(run), keep=1)
    checkpoint.restore(tmp_path / "c", 1, differing=partial(differing, run), warn=silent)
    others = {
        "widths": replace(run, config=Config(widths=(512, 513))),
        "seed": replace(run, config=Config(hparams=Hyperparams(seed=1))),
        "class_names": replace(run, data=data | {"class_names": ["1"]}),
        "n": replace(run, data=data | {"n": 1}),
        "precision": replace(run, config=Config(precision="bfloat16")),
        "epochs": replace(run, config=Config(epochs=3)),
        "epochs, schedule": replace(run, config=Config(epochs=8, schedule="cosine")),
    }
    for name, other in others.items():
        with pytest.raises(InputError, match=f"whose config.json was another: {name} differs"):
            checkpoint.restore(
                tmp_path / "c", "latest", differing=partial(differing, other), like=np.zeros(3), warn=silent
            )
    grown = replace(run, config=Config(epochs=5))
    checkpoint.restore(tmp_path / "c", 1, differing=partial(differing, grown), warn=silent)


def test_missing_steps_are_named(two: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="step=7 has no checkpoint .* one of: 5, 10"):
        checkpoint.restore(two, 7, warn=silent)
    with pytest.raises(InputError, match="no checkpoint yet"):
        checkpoint.restore(tmp_path, "latest", warn=silent)


def test_leftovers_of_a_kill_are_no_checkpoints(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS they cannot be removed while a process has a file of theirs open: that is no error, and later they can."""
    shutil.copytree(two, tmp_path / "c")
    shutil.copytree(two / "10", tmp_path / "c" / ".saving-15")
    shutil.copytree(two / "10", tmp_path / "c" / ".deleting-3")
    assert checkpoint.restore(tmp_path / "c", "latest", warn=silent)[0] == 10

    def open_still(path: object, **_: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", open_still)
        checkpoint.clean(tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [".deleting-3", ".saving-15", "10", "5"]
    checkpoint.clean(tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["10", "5"]


def test_a_save_goes_over_what_a_killed_save_left(state: TrainState, tmp_path: Path) -> None:
    (tmp_path / "c" / ".saving-5" / "state").mkdir(parents=True)
    (tmp_path / "c" / ".saving-5" / "state" / "half").write_text("half")
    checkpoint.save(tmp_path / "c", 5, state, info(), keep=2)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["5"]
    assert not (tmp_path / "c" / "5" / "state" / "half").exists()


def test_a_vanished_workdir_is_not_recreated(state: TrainState, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="step 5 could not be saved .*no earlier checkpoint is there"):
        checkpoint.save(tmp_path / "gone" / "checkpoints", 5, state, info(), keep=2)
    assert not (tmp_path / "gone").exists()


def test_saved_on_eight_devices_loads_on_one_and_the_reverse(state: TrainState, tmp_path: Path) -> None:
    mesh = placement.data_mesh(16)
    eight = placement.replicate(state, mesh)
    sharded = jax.device_put(
        eight.params["dense_1"]["kernel"], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    eight = eight.replace(params=eight.params | {"dense_1": eight.params["dense_1"] | {"kernel": sharded}})
    checkpoint.save(tmp_path / "c", 1, eight, info(), keep=1)
    like = jax.eval_shape(lambda: state)
    _, got, _ = checkpoint.restore(tmp_path / "c", 1, like=like, warn=silent)
    assert_trees_equal(got, state)
    code = f"""
from mnist_flax.workdir import checkpoint, checksums
from pathlib import Path
import jax
assert len(jax.devices()) == 1
_, got, _ = checkpoint.restore(Path({str(tmp_path / "c")!r}), 1, warn=print)
checkpoint.save(Path({str(tmp_path / "one")!r}), 1, got, {info()!r}, keep=1)
"""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    _, back, _ = checkpoint.restore(tmp_path / "one", 1, like=like, warn=silent)
    assert_trees_equal(placement.replicate(back, mesh), state)


def test_metadata_that_names_another_device_loads(two: Path, tmp_path: Path) -> None:
    """As a checkpoint from a GPU does: the device's name stands in the files, and loading looks past it."""
    shutil.copytree(two, tmp_path / "c")
    path = tmp_path / "c" / "10"
    changed = 0
    for file in path.rglob("*"):
        if file.is_file() and b"cpu:0" in (content := file.read_bytes()):
            file.write_bytes(content.replace(b"cpu:0", b"cuda:7"))
            changed += 1
    assert changed
    (path / "SHA256SUMS").write_text(checksums.of(path))
    _, got, _ = checkpoint.restore(tmp_path / "c", 10, warn=silent)
    assert_trees_equal(got, checkpoint.restore(two, 10, warn=silent)[1])


@pytest.mark.parametrize("what", ["pipe", "directory that holds itself"])
def test_what_is_not_a_file_is_damage(what: str, two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "c")
    odd = tmp_path / "c" / "10" / "state" / "odd"
    os.mkfifo(odd) if what == "pipe" else odd.symlink_to("..")
    told: list[str] = []
    with alarm(20):
        step, *_ = checkpoint.restore(tmp_path / "c", "latest", warn=told.append, set_aside=True)
    assert step == 5 and "is damaged (state/odd is not a file); set aside as" in told[0]


def test_what_is_far_too_large_is_not_copied(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "c")
    (tmp_path / "c" / "10" / "odd").touch()
    os.truncate(tmp_path / "c" / "10" / "odd", 2**40)  # takes no space, but a copy would
    told: list[str] = []
    with alarm(20):
        assert checkpoint.restore(tmp_path / "c", "latest", warn=told.append)[0] == 5
    assert re.search("10 is damaged .it has 1,099,511,.* bytes, and one of this run at most 1,073,741,824", told[0])


@pytest.mark.parametrize("change", ["one more row", "another order"])
def test_arrays_of_other_shapes_are_refused(
    change: str, state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are loaded, unless all shapes are there: zeros can have any size in a small file."""
    like = jax.eval_shape(lambda: state)
    params = jax.tree.map(np.asarray, state.params)
    first, last = params["dense_1"], params["dense_3"]
    if change == "one more row":
        first["kernel"] = np.concatenate([first["kernel"], first["kernel"][:1]])
        monkeypatch.setattr(checkpoint.ocp, "load", None)
    else:
        first["bias"], last["bias"] = last["bias"], first["bias"]
    checkpoint.save(tmp_path / "c", 1, dataclasses.replace(state, params=params), info(), keep=2)
    with pytest.raises(RunError, match="cannot be loaded.*its arrays have other shapes than the run's"):
        checkpoint.restore(tmp_path / "c", "latest", like=like, warn=silent)


def test_a_copy_of_what_may_only_be_read_is_removed(two: Path, tmp_path: Path) -> None:
    """Even by a process that is not root: the copy's own directories may be written."""
    shutil.copytree(two, tmp_path / "c")
    for path in [*(tmp_path / "c").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    modes = []

    def note(copy: Path) -> str:
        modes.extend(path.stat().st_mode & 0o200 for path in [copy, *copy.rglob("*")])
        return "seen"

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match="seen"):
        patch.setattr(checksums, "damage", note)
        checkpoint.restore(tmp_path / "c", 10, warn=silent)
    assert len(modes) > 5 and all(modes)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("_CHECKPOINT_METADATA", '"custom_metadata": {', '"custom_metadata": 7, "x": {'),
        ("state/_METADATA", '"value_type"', '"other"'),
        ("state/_METADATA", '"key_metadata": [', '"key_metadata": [0.5, '),
        ("state/_METADATA", "{", "{half "),
    ],
)
def test_a_checkpoint_that_does_not_load_although_its_sums_fit_is_one_line(
    name: str, old: str, new: str, two: Path, state: TrainState, tmp_path: Path
) -> None:
    """Written by somebody else, or by another orbax: it is kept."""
    shutil.copytree(two, tmp_path / "c")
    path = tmp_path / "c" / "10"
    text = (path / name).read_text()
    assert old in text
    (path / name).write_text(text.replace(old, new))
    (path / "SHA256SUMS").write_text(checksums.of(path))
    with pytest.raises(RunError, match=f"{path} cannot be loaded, though its sums are right") as caught:
        checkpoint.restore(tmp_path / "c", "latest", differing=lambda info: [], warn=silent, set_aside=True)
    assert "\n" not in str(caught.value) and checkpoint.steps(tmp_path / "c") == [5, 10]


def test_nothing_executable_is_read(two: Path) -> None:
    """No file of a checkpoint is a pickle, and no module of ours reads one from a file.

    Training sends pickles to its own writer process only, through a pipe that nobody else can write to.
    """
    for file in two.rglob("*"):
        assert not file.is_file() or not re.match(rb"\x80[\x02-\x05]", file.read_bytes()), file
    paths = list(Path(mnist_flax.__file__).parent.rglob("*.py"))
    assert {"checkpoint.py", "async_writer.py", "writer_process.py"} <= {path.name for path in paths}
    for path in paths:
        text = path.read_text()
        if path.name in ("async_writer.py", "writer_process.py"):
            text = text.replace("import pickle", "").replace("pickle.load(sys.stdin.buffer)", "")
            text = text.replace("pickle.UnpicklingError", "").replace("pickle.dump(message, process.stdin", "")
            text = text.replace("pickle.HIGHEST_PROTOCOL", "")
        assert "pickle" not in text.replace("allow_pickle=False", ""), path
        assert not {"eval(", "exec("} & {word for word in ("eval(", "exec(") if f" {word}" in text}, path


def test_everything_is_on_the_disk_before_anything_older_goes(
    state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut: the files, their directories, and the directory that names the checkpoint."""
    checkpoint.save(tmp_path / "c", 1, state, info(), keep=1)
    seen: list[tuple[str, object]] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def note_fsync(descriptor: int) -> None:
        seen.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        seen.append(("rename", target.name))
        return rename(path, target)

    def note_rmtree(path: Path, **kwargs: bool) -> None:
        seen.append(("remove", path))
        rmtree(path, **kwargs)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **kwargs: (seen.append(("remove", path)), rmtree(path, **kwargs))
    )
    checkpoint.save(tmp_path / "c", 2, state, info(2), keep=1)
    named, pruned = seen.index(("rename", "2")), seen.index(("rename", ".deleting-1"))
    synced = {what for kind, what in seen[:named] if kind == "sync"}
    new = tmp_path / "c" / "2"
    assert {path.stat().st_ino for path in (new, *new.rglob("*"))} <= synced
    assert len([*new.rglob("*")]) >= 10
    then = {what for kind, what in seen[named:pruned] if kind == "sync"}
    assert {(tmp_path / "c").stat().st_ino, tmp_path.stat().st_ino} <= then
    assert [what for kind, what in seen[:pruned] if kind == "remove"] == []


@pytest.mark.parametrize("name", ["0010", "١٠٠"])
def test_a_name_that_is_not_how_a_step_is_written_is_no_checkpoint(two: Path, tmp_path: Path, name: str) -> None:
    """It was looked for under the name of its number, for ever."""
    shutil.copytree(two, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "10")
    shutil.copytree(two / "10", tmp_path / "c" / name)
    with alarm(5):
        assert checkpoint.restore(tmp_path / "c", "latest", warn=silent)[0] == 5


@pytest.mark.parametrize("at", range(10))
def test_a_checkpoint_that_is_removed_while_it_is_read_is_gone(
    at: int, two: Path, state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a training that goes on, before the directory in it with this number is listed; the next one is read."""
    shutil.copytree(two, directory := tmp_path / "c")
    scandir, count = os.scandir, 0

    def scandir_later(path: Any) -> Any:
        nonlocal count
        if str(path).startswith(str(directory / "10")):
            count += 1
            if count == at + 1:
                shutil.rmtree(directory / "10")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_later)
    step, got, _ = checkpoint.restore(directory, "latest", like=state, warn=silent)
    assert step == (5 if count > at else 10)
    assert_trees_equal(got, moved(state, step))
    assert at > 5 or count > at

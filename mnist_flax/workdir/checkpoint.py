"""Checkpoints that are whole or not there, and checked before they are believed.

    save(directory, step, state, info, keep=2)
    step, state, info = restore(directory, "latest", identity={}, like=state, warn=print)

Each is a directory `<step>` that orbax wrote, with the SHA-256 sum of every file in `SHA256SUMS`, which `sha256sum -c`
reads. It appears under its name by one rename, complete. Loading gives numpy arrays, whatever devices saved them.
"""

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mnist_flax.errors import InputError, RunError, first_line
from mnist_flax.process import files

_SUMS = "SHA256SUMS"
for _name in ("absl", "asyncio"):  # orbax logs 50 lines a save, and what it raises once more
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal() and entry.is_dir())


def save(directory: Path, step: int, state: Any, info: dict[str, Any], *, keep: int) -> None:
    """Write a checkpoint, drop what is neither among the `keep` latest nor the best. All processes call it, one writes.

    A checkpoint of that step that is already there is left alone. `info`, JSON values, is kept with it;
    `info["best_step"]` names the best one so far, or is None. Raises `RunError` if it could not be written whole; then
    earlier checkpoints are untouched.
    """
    target = directory / str(step)
    scratch = files.scratch_of(target)
    try:
        directory.parent.stat()  # orbax would quietly recreate a workdir that has been removed
        if not target.exists():
            state = jax.tree.map(np.asarray, state) if jax.process_count() > 1 else state  # each has all of it
            size = 2**16 + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            if shutil.disk_usage(directory.parent).free < size:  # orbax in the middle of it is less orderly
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            ocp.save(str(scratch.absolute()), state, custom_metadata=info, overwrite=True)
            if jax.process_index() == 0:
                _write_durably(scratch / _SUMS, _sums(scratch))
                scratch.rename(target)
    except (OSError, ValueError, RuntimeError) as error:
        clean(directory)
        saved = steps(directory)
        good = f"the last good checkpoint is {directory / str(saved[-1])}" if saved else "there is no earlier one"
        raise RunError(f"the checkpoint of step {step} could not be saved ({_reason(error)}); {good}") from error
    if jax.process_index() == 0:
        kept = {*steps(directory)[-keep:], info["best_step"]}
        for old in {*steps(directory)} - kept:
            (directory / str(old)).rename(directory / f".deleting-{old}")
        clean(directory)


def clean(directory: Path) -> None:
    """Remove what a killed process left half written or half deleted; only for the holder of the workdir."""
    for leftover in (
        () if jax.process_index() else (*directory.glob(f"{files.SCRATCH}*"), *directory.glob(".deleting-*"))
    ):
        shutil.rmtree(leftover, ignore_errors=True)


def exists(directory: Path) -> bool:
    """Whether there is, or was, a checkpoint: damaged ones alone do not make a new run."""
    return bool(steps(directory)) or any(directory.glob("corrupt-*"))


def restore(
    directory: Path,
    which: str | int,
    *,
    identity: dict[str, Any],
    like: Any = None,
    warn: Callable[[str], None],
    set_aside: bool = False,
) -> tuple[int, Any, dict[str, Any]]:
    """Load a checkpoint after checking every file of it: its step, its state with numpy leaves, its info.

    Args:
      directory: of all checkpoints.
      which: a step, `latest` (the newest sound one: damaged ones are named and passed over) or `best`.
      identity: what `info` must hold: the run that it was saved by.
      like: a pytree of the same structure, arrays or `ShapeDtypeStruct`s; None gives nested dicts and lists.
      warn: is told of every damaged checkpoint that is passed over.
      set_aside: rename damaged checkpoints to `corrupt-<step>`; only for the holder of the workdir.

    Raises:
      InputError: there is none, the one asked for does not exist, or it is another run's.
      RunError: it is damaged, or all are.
    """
    if which == "latest":
        return _restore_latest(directory, identity, like, warn, set_aside)
    if which == "best":
        _, _, info = _restore_latest(directory, identity, None, warn, set_aside)
        which = info["best_step"]
        if which is None:
            raise InputError(f"{directory} has no best checkpoint before the first evaluation; give --step latest")
    if which not in steps(directory):
        have = ", ".join(map(str, steps(directory))) or "none"
        raise InputError(f"step={which} has no checkpoint in {directory}; give latest, best or one of: {have}")
    state, info, damage = _read(directory / str(which), identity, like)
    if damage:
        raise RunError(f"the checkpoint {directory / str(which)} is damaged ({damage}); try --step latest")
    return int(which), state, info


def _restore_latest(
    directory: Path, identity: dict[str, Any], like: Any, warn: Callable[[str], None], set_aside: bool
) -> tuple[int, Any, dict[str, Any]]:
    passed: set[int] = set()
    while left := [step for step in steps(directory) if step not in passed]:
        path = directory / str(left[-1])
        state, info, damage = _read(path, identity, like)
        if not damage:
            return left[-1], state, info
        if not path.exists():
            continue  # a training that goes on meanwhile has dropped it: look again
        passed.add(left[-1])
        where = ""
        if set_aside:
            taken = len(list(directory.glob(f"corrupt-{left[-1]}*")))
            aside = directory / (f"corrupt-{left[-1]}" + (f"-{taken + 1}" if taken else ""))
            path.rename(aside)
            where = f"; set aside as {aside}"
        warn(f"the checkpoint {path} is damaged ({damage}){where}")
    if damaged := sorted(entry.name for entry in directory.glob("corrupt-*")) or steps(directory):
        raise RunError(
            f"no sound checkpoint is left in {directory} (damaged: {', '.join(map(str, damaged))}); "
            "restore one, or start again in another --workdir"
        )
    raise InputError(f"{directory} holds no checkpoint yet; train first")


def _read(path: Path, identity: dict[str, Any], like: Any) -> tuple[Any, dict[str, Any], str | None]:
    """State, info, and what is wrong with them (None: nothing).

    By way of a copy, so that what was checked is what is read, whatever a training does to the original meanwhile.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "checkpoint"
        try:
            shutil.copytree(path, copy)
        except OSError as error:  # of the copy, as far as we know: that says nothing against the checkpoint
            if path.exists():
                reason = f"could not be copied to {scratch} ({_reason(error)}); make room there or set TMPDIR"
                raise RunError(f"the checkpoint {path} {reason}") from error
            return None, {}, "it is gone"
        if damage := _damage(copy):
            return None, {}, damage
        metadata = ocp.metadata(str(copy))
        info = cast(dict[str, Any], metadata.custom_metadata)
        _check_identity(path, info, identity)  # before loading: another run's arrays may have other shapes
        like = metadata.metadata if like is None else like
        state = ocp.load(str(copy), jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like))
    return state, info, None


def _check_identity(path: Path, info: dict[str, Any], identity: dict[str, Any]) -> None:
    for part, ours in identity.items():
        if differing := sorted(name for name in ours if ours[name] != info.get(part, {}).get(name)):
            raise InputError(
                f"{path} was saved by a run whose config.json was another: {', '.join(differing)} differs; restore it"
            )


def _sums(path: Path) -> bytes:
    """The SHA-256 sum of every file below `path`, sorted by name, in the format of `sha256sum`."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / _SUMS)
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(path).as_posix()}\n" for file in files
    ]
    return "".join(lines).encode()


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Comparing the whole text leaves no byte unchecked."""
    try:
        expected, found = (path / _SUMS).read_bytes(), _sums(path)
    except OSError as error:
        return _reason(error)
    if expected == found:
        return None
    lines = set(expected.splitlines()) ^ set(found.splitlines())
    names = sorted({line.split(b"  ", 1)[-1].decode(errors="replace") for line in lines})
    return f"changed: {', '.join(names)}, or {_SUMS} itself"


def _write_durably(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: BaseException) -> str:
    """Why a save or a copy failed, in one line."""
    return "another process of this run has ended" if "Gloo" in str(error) else first_line(error)

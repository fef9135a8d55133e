"""Save checkpoints atomically, and check every byte of them before they are used.

    save(directory, step, state, info, keep=2)
    step, state, info = restore(directory, "latest", like=state, warn=print)

A checkpoint is a directory `<step>` that orbax wrote, with the SHA-256 sum of every file in `SHA256SUMS`, which
`sha256sum -c` reads. It is renamed to `<step>` when it is complete. Loading gives numpy arrays, whatever devices saved
them.
"""

import errno
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mnist_flax.errors import InputError, RunError, first_line
from mnist_flax.process import files
from mnist_flax.workdir import checksums

_Differing = Callable[[dict[str, Any]], list[str]]
_MOST = 2**30  # bytes of a checkpoint besides twice its arrays: the history of a long run
for _name in ("absl", "asyncio"):  # orbax logs 50 lines for each save, and every error that it raises
    logging.getLogger(_name).setLevel(logging.CRITICAL)
# Where orbax fails, it leaves coroutines that nobody awaits; the user's own are still warned of.
warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning, r"orbax\.")


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    if not directory.is_dir():
        return []
    named = [entry for entry in directory.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    return sorted(int(entry.name) for entry in named if entry.name == str(int(entry.name)))  # not 007, whose path is 7


def save(directory: Path, step: int, state: Any, info: dict[str, Any], *, keep: int) -> None:
    """Write a checkpoint, and delete all but the `keep` latest and the best. All processes call it, one writes.

    An existing checkpoint of that step is left alone. `info`, JSON values, is saved with it; `info["best_step"]` is the
    best step so far, or None. Raises `RunError` if it could not be saved; then earlier checkpoints are untouched.
    """
    target = directory / str(step)
    scratch = files.scratch_of(target)
    try:
        directory.parent.stat()  # orbax would create a removed workdir again
        if not target.exists():
            if jax.process_count() > 1:
                state = jax.tree.map(np.asarray, state)  # every process has all of it
            size = 2**16 + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            if shutil.disk_usage(directory.parent).free < size:  # orbax would fail in the middle of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            ocp.save(str(scratch.absolute()), state, custom_metadata=info, overwrite=True)
            if jax.process_index() == 0:
                checksums.write(scratch)
                files.sync(scratch)
                scratch.rename(target)
                for each in (directory, directory.parent):  # before an older one is removed
                    files.sync(each, inside=False)
    except (OSError, ValueError, RuntimeError) as error:
        clean(directory)
        problem = f"the checkpoint of step {step} could not be saved ({_reason(error)})"
        raise RunError(f"{problem}; {last_good(directory)}") from error
    if jax.process_index() == 0:
        for old in {*steps(directory)[:-keep]} - {info["best_step"]}:
            (directory / str(old)).rename(directory / f".deleting-{old}")
        clean(directory)


def last_good(directory: Path) -> str:
    """What to tell when a run fails: where its last checkpoint is."""
    saved = steps(directory)
    return f"the last good checkpoint is {directory / str(saved[-1])}" if saved else "no earlier checkpoint is there"


def clean(directory: Path) -> None:
    """Remove what a killed process left half written or half deleted; call it with the workdir claimed."""
    if jax.process_index() == 0:
        for leftover in (*directory.glob(f"{files.SCRATCH}*"), *directory.glob(".deleting-*")):
            shutil.rmtree(leftover, ignore_errors=True)


def exists(directory: Path) -> bool:
    """Whether there is a checkpoint, sound or damaged."""
    return bool(steps(directory)) or any(directory.glob("corrupt-*"))


def restore(
    directory: Path,
    which: str | int,
    *,
    differing: _Differing = lambda info: [],
    like: Any = None,
    warn: Callable[[str], None],
    set_aside: bool = False,
) -> tuple[int, Any, dict[str, Any]]:
    """Check every file of a checkpoint, then load its step, its state (numpy leaves) and its info.

    Args:
      directory: holds all checkpoints.
      which: a step, or `latest`: the newest that is not damaged.
      differing: names the fields of `info` that show that another run saved the checkpoint.
      like: a pytree of the same structure, arrays or `ShapeDtypeStruct`s; None gives nested dicts and lists.
      warn: gets a message for every damaged checkpoint that is skipped.
      set_aside: rename damaged checkpoints to `corrupt-<step>`; the workdir must be claimed.

    Raises:
      InputError: there is none, not the one asked for, or another run saved it.
      RunError: it is damaged, or all are.
    """
    if which == "latest":
        return _restore_latest(directory, differing, like, warn, set_aside)
    if which not in steps(directory):
        have = ", ".join(map(str, steps(directory))) or "none"
        raise InputError(f"step={which} has no checkpoint in {directory}; give latest, best or one of: {have}")
    state, info, damage = _read(directory / str(which), differing, like)
    if damage:
        raise RunError(f"the checkpoint {directory / str(which)} is damaged ({damage}); try --step latest")
    return int(which), state, info


def _restore_latest(
    directory: Path, differing: _Differing, like: Any, warn: Callable[[str], None], set_aside: bool
) -> tuple[int, Any, dict[str, Any]]:
    skipped: set[int] = set()
    while left := {*steps(directory)} - skipped:
        step = max(left)
        path = directory / str(step)
        state, info, damage = _read(path, differing, like)
        if not damage:
            return step, state, info
        if not path.exists():
            continue  # a running training has deleted it: look again
        skipped.add(step)
        where = ""
        if set_aside:
            taken = len(list(directory.glob(f"corrupt-{step}*")))
            aside = path.rename(directory / (f"corrupt-{step}" + (f"-{taken + 1}" if taken else "")))
            where = f"; set aside as {aside}"
        warn(f"the checkpoint {path} is damaged ({damage}){where}")
    if damaged := sorted(entry.name for entry in directory.glob("corrupt-*")) or steps(directory):
        raise RunError(
            f"no sound checkpoint is left in {directory} (damaged: {', '.join(map(str, damaged))}); "
            "restore one, or start again in another --workdir"
        )
    raise InputError(f"{directory} holds no checkpoint yet; train first")


def _read(path: Path, differing: _Differing, like: Any) -> tuple[Any, dict[str, Any], str | None]:
    """State, info, and what is wrong with them (None: nothing).

    They are checked in a copy and read from it, whatever a running training does to the original meanwhile.
    """
    most = _MOST + 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    with files.temporary_directory() as scratch:
        copy = scratch / "checkpoint"
        try:
            entries = checksums.entries(path)
            for entry in entries:  # before they are copied: a pipe never ends, and a linked directory may hold itself
                if not (entry.is_file() or (entry.is_dir() and not entry.is_symlink())):
                    return None, {}, f"{entry.relative_to(path)} is not a file"
            if (size := sum(entry.stat().st_size for entry in entries)) > most:
                return None, {}, f"it has {size:,} bytes, and one of this run at most {most:,}"
            copy.mkdir()
            for entry in entries:  # without its mode, since a copy that may only be read could not be removed
                target = copy / entry.relative_to(path)
                target.mkdir() if entry.is_dir() else shutil.copyfile(entry, target)
        except OSError as error:
            if path.exists():  # then the copy has failed, and the checkpoint may be sound
                reason = f"could not be copied to {scratch} ({_reason(error)}); make room there or set TMPDIR"
                raise RunError(f"the checkpoint {path} {reason}") from error
            return None, {}, "it is gone"
        if damage := checksums.damage(copy):
            return None, {}, damage
        try:
            return *_load(path, copy, differing, like), None
        except InputError:
            raise
        except Exception as error:  # of orbax, of any kind: somebody else, or another version of it, has written it
            text = f"the checkpoint {path} cannot be loaded, though its sums are right ({first_line(error)})"
            raise RunError(f"{text}; restore it or give another --step") from error


def _load(path: Path, copy: Path, differing: _Differing, like: Any) -> tuple[Any, dict[str, Any]]:
    """State and info of the checkpoint `path`, from an undamaged copy of it."""
    metadata = ocp.metadata(str(copy))
    info = cast(dict[str, Any], metadata.custom_metadata)
    # Before loading: another run's arrays may have other shapes.
    if names := differing(info):
        problem = f"was saved by a run whose config.json was another: {', '.join(names)} differs"
        raise InputError(f"{path} {problem}; restore it")
    like = metadata.metadata if like is None else like
    # Before loading too: some bytes can stand for any number of zeros.
    if sorted(_shapes(metadata.metadata)) != sorted(_shapes(like)):
        raise ValueError("its arrays have other shapes than the run's")
    state = ocp.load(str(copy), jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like))
    if _shapes(state) != _shapes(like):
        raise ValueError("its arrays have other shapes than the run's")
    return state, info


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(tree)]


def _reason(error: BaseException) -> str:
    """Why a save or a copy failed, in one line."""
    return "another process of this run has ended" if "Gloo" in str(error) else first_line(error)

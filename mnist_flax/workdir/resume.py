"""Where a run stands: its program, its latest or another checkpoint, or nothing yet. To train on, or to load."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mnist_flax.errors import RunError
from mnist_flax.program import Program, make_program
from mnist_flax.state import TrainState, as_arrays, init_state
from mnist_flax.workdir import checkpoint, claim
from mnist_flax.workdir.history import new_history
from mnist_flax.workdir.run_info import RunInfo, identity_of


class Saved(NamedTuple):
    """A run at one of its steps."""

    program: Program
    step: int
    """Finished updates."""
    state: TrainState | None
    """Leaves are numpy arrays; None before the first step."""
    history: dict[str, Any]
    """What the checkpoint knows of the run (see `history.new_history`)."""


def load(
    workdir: Path, run: RunInfo, which: str | int, *, warn: Callable[[str], None], set_aside: bool = False
) -> Saved:
    """A checkpoint of a run: a step, `latest` or `best`.

    Raises `InputError` if there is none, or not this one, or it is another run's, and `RunError` if it is damaged.
    """
    program = make_program(run.config, run.data)
    like = jax.eval_shape(functools.partial(init_state, program=program), as_arrays(run.config.hparams))
    directory, identity = claim.checkpoints_dir(workdir), identity_of(run)
    restored = checkpoint.restore(directory, which, identity=identity, like=like, warn=warn, set_aside=set_aside)
    return Saved(program, *restored)


def resume(workdir: Path, run: RunInfo, *, warn: Callable[[str], None], set_aside: bool) -> Saved:
    """The latest sound checkpoint of a run, or its beginning; only for the holder of the directory.

    `set_aside` says whether this process renames damaged ones. Raises `RunError` if there were checkpoints and no sound
    one is left.
    """
    directory = claim.checkpoints_dir(workdir)
    checkpoint.clean(directory)
    if checkpoint.exists(directory):
        return load(workdir, run, "latest", warn=warn, set_aside=set_aside)
    if claim.was_saved(workdir):
        raise RunError(f"{directory} had checkpoints and has none now; restore them, or start in another --workdir")
    return Saved(make_program(run.config, run.data), 0, None, new_history(run))

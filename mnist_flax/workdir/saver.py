"""Save a run's checkpoints while the training goes on.

with Saver(path, keep=2) as saver:
    saver.save(step, state, history)  # returns at once; waits for the save before it
# all is saved
"""

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_flax.errors import RunError
from mnist_flax.workdir import checkpoint, claim


class Saver:
    """Saves one checkpoint after another in a thread, of copies, so that training may change the originals.

    `save`, `wait` and the end of the `with` block raise `RunError` if the last save has failed. Several processes must
    save together, so they wait for each save.
    """

    def __init__(self, path: Path, keep: int) -> None:
        """Save into the checkpoints of the run in `path`, and `keep` the latest and the best."""
        self._path, self._keep = path, keep
        self._thread = ThreadPoolExecutor(1, "saver")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def save(self, step: int, state: Any, history: dict[str, Any]) -> None:
        """Begin to save, once the save before has ended."""
        self.wait()
        if jax.process_count() > 1:
            self._save(step, state, history)
        else:
            copies = jax.tree.map(np.array, state), copy.deepcopy(history)
            self._pending = self._thread.submit(self._save, step, *copies)

    def wait(self) -> None:
        """Return when nothing is being saved."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _save(self, step: int, state: Any, history: dict[str, Any]) -> None:
        directory = claim.checkpoints_dir(self._path)
        try:
            checkpoint.save(directory, step, state, history, keep=self._keep)
            claim.check_still_there(self._path)
            claim.mark_saved(self._path)
        except OSError as error:
            raise RunError(f"step {step}: {error}; {checkpoint.last_good(directory)}") from error

"""A save goes on in a thread; what it saves, and what went wrong, are those of the moment when it was asked for."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_flax.errors import RunError
from mnist_flax.workdir import checkpoint, claim
from mnist_flax.workdir.saver import Saver


class Blocked:
    """A save that ends when it is let go; `saved` has the steps, states and histories."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, Any, Any]] = []
        self.go, self.error = threading.Event(), None

    def __call__(self, directory: Path, step: int, state: Any, history: Any, *, keep: int) -> None:
        assert self.go.wait(30)
        if self.error:
            raise self.error
        self.saved.append((step, {name: leaf.tolist() for name, leaf in state.items()}, history))


@pytest.fixture
def blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocked]:
    blocked = Blocked()
    monkeypatch.setattr(checkpoint, "save", blocked)
    (tmp_path / claim.CONFIG).touch()
    yield blocked
    blocked.go.set()


def test_it_saves_what_was_there_when_it_was_asked(blocked: Blocked, tmp_path: Path) -> None:
    state, history = {"w": np.array([1.0])}, {"history": [1]}
    with Saver(tmp_path, 2) as saver:
        saver.save(5, state, history)
        state["w"][0] = 2.0
        history["history"].append(2)
        assert not blocked.saved and not claim.was_saved(tmp_path)
        blocked.go.set()
        saver.save(10, state, history)  # after the first one
        assert [step for step, *_ in blocked.saved][0] == 5
    assert blocked.saved == [(5, {"w": [1.0]}, {"history": [1]}), (10, {"w": [2.0]}, {"history": [1, 2]})]
    assert claim.was_saved(tmp_path)


@pytest.mark.parametrize("how", ["save", "wait", "end"])
def test_a_save_that_failed_is_said(how: str, blocked: Blocked, tmp_path: Path) -> None:
    blocked.error = OSError(28, "No space left on device")
    blocked.go.set()
    match = "step 5: .*No space left on device; no earlier checkpoint"
    if how == "end":
        with pytest.raises(RunError, match=match), Saver(tmp_path, 2) as saver:
            saver.save(5, {}, {})
    else:
        with Saver(tmp_path, 2) as saver:
            saver.save(5, {}, {})
            with pytest.raises(RunError, match=match):
                saver.wait() if how == "wait" else saver.save(10, {}, {})
    assert not claim.was_saved(tmp_path)


def test_what_ends_the_training_waits_for_the_save(blocked: Blocked, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Saver(tmp_path, 2) as saver:
        saver.save(5, {}, {})
        threading.Timer(0.1, blocked.go.set).start()
        raise ZeroDivisionError
    assert [step for step, *_ in blocked.saved] == [5]


def test_a_directory_that_vanished_is_said(blocked: Blocked, tmp_path: Path) -> None:
    (tmp_path / claim.CONFIG).unlink()
    blocked.go.set()
    with pytest.raises(RunError, match="has vanished while it was in use"), Saver(tmp_path, 2) as saver:
        saver.save(5, {}, {})

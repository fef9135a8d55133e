"""Whose members are given to others, and whose are not."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from mnist_flax.sweep import trial_queue
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue

MEMBERS = {name: {"overrides": {"name": name}} for name in "abc"}
Open = Callable[[], TrialQueue]


@pytest.fixture
def worker(tmp_path: Path) -> Open:
    """A new worker's view of one study, as each process has its own."""
    return lambda: TrialQueue(open_journal(tmp_path), "study")


def nobody(_: object) -> bool:
    """No process holds a member's directory."""
    return False


def test_a_process_that_runs_on_this_machine_keeps_its_members(worker: Open) -> None:
    other, me = worker(), worker()
    me.enqueue(MEMBERS)
    line = [sys.executable, "-c", "input()"]
    with subprocess.Popen(line, stdin=subprocess.PIPE) as process:
        other.worker = me.worker.rpartition(" ")[0] + f" {process.pid}"
        other.claim(2)
        me.retake_lost(nobody)
        assert len(me.running()) == 2
        process.communicate(b"\n")
    me.retake_lost(nobody)
    assert not me.running()


def test_a_worker_elsewhere_is_lost_after_a_minute_without_a_heartbeat(
    worker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(trial_queue, "time", SimpleNamespace(monotonic=lambda: clock.now))
    elsewhere, me = worker(), worker()
    elsewhere.worker = "another host 1"
    me.enqueue(MEMBERS)
    elsewhere.claim(2)
    for clock.now in (1000.0, 1001.0, 1060.0):
        me.retake_lost(nobody)
        assert len(me.running()) == 2
    elsewhere.study.set_user_attr("beat of another host 1", 1)
    for clock.now in (1061.0, 1121.0):
        me.retake_lost(nobody)
        assert len(me.running()) == 2
    clock.now = 1122.0
    me.retake_lost(nobody)
    assert not me.running()


def test_members_that_wait_are_not_lost(worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody works on them, for however long."""
    monkeypatch.setattr(trial_queue, "_STALE_SECONDS", -1)
    me = worker()
    me.enqueue(MEMBERS)
    for _ in range(2):
        me.retake_lost(nobody)
    assert [trial.state for trial in me.study.trials] == [TrialState.WAITING] * 3


def test_at_the_end_of_the_block_the_last_heartbeat_is_written(worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would reach for a database that has been closed."""
    queue, begun, written = worker(), threading.Event(), []

    def write_slowly(*beat: object) -> None:
        begun.set()
        time.sleep(0.2)
        written.append(beat)

    monkeypatch.setattr(queue.study, "set_user_attr", write_slowly)
    with queue:
        begun.wait(10)
    assert written == [(f"beat of {queue.worker}", 0)]

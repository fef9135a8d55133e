"""Every member once, whoever asks, dies, or comes back."""

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from conftest import alarm
from optuna.trial import TrialState, create_trial

from mnist_flax.errors import InputError, RunError
from mnist_flax.sweep import directory, storage, trial_queue
from mnist_flax.sweep.storage import open_database, open_journal
from mnist_flax.sweep.trial_checks import check_trials
from mnist_flax.sweep.trial_queue import TrialQueue

MEMBERS = {name: {"overrides": {"name": name}} for name in "abcde"}
Open = Callable[[], TrialQueue]


@pytest.fixture(params=["journal", "database"])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """A new worker's view of one study, as each process has its own."""
    databases = []

    def open_one() -> TrialQueue:
        if request.param == "journal":
            return TrialQueue(open_journal(tmp_path), "study")
        databases.append(database := open_database(f"sqlite:///{tmp_path / 'x.db'}"))
        return TrialQueue(database, "study")

    yield open_one
    for database in databases:
        database.engine.dispose()


def names(trials: list) -> list[str]:
    return [trial.user_attrs["member"] for trial in trials]


def test_members_are_claimed_once_and_in_order(worker: Open) -> None:
    one, other = worker(), worker()
    one.enqueue(MEMBERS)
    first, second = one.claim(3), other.claim(3)
    assert (names(first), names(second), one.claim(3)) == (["a", "b", "c"], ["d", "e"], [])
    assert one.finish(first[0], [0.5, 0.9], 0.9, {"seconds": 1.5})
    assert one.finish(first[1], [0.5], None, {"diverged_at": 3})
    done = other.finished()
    assert done.keys() == {"a", "b"}
    assert (done["a"].value, done["a"].intermediate_values) == (0.9, {1: 0.5, 2: 0.9})
    assert done["a"].user_attrs["seconds"] == 1.5
    assert done["b"].state == TrialState.PRUNED
    assert (one.objective(done["a"]), one.objective(done["b"])) == (0.9, None)
    one.enqueue(MEMBERS)
    assert one.claim(3) == []  # what is running or done is left alone


def test_two_workers_that_enqueue_at_once_make_no_doubles(worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = worker(), worker()
    with monkeypatch.context() as context:  # as if neither had seen what the other did
        context.setattr(TrialQueue, "counted", lambda self: {})
        one.enqueue(MEMBERS)
        other.enqueue(MEMBERS)
    assert len(one.study.trials) == 10
    claimed = one.claim(2)
    assert names(claimed + other.claim(9)) == list("abcde")
    assert one.claim(9) == []


def test_what_is_released_is_done_by_another_in_the_same_place(worker: Open) -> None:
    one, other = worker(), worker()
    one.enqueue(MEMBERS)
    trials = one.claim(5)
    sampled = trials[1].suggest_float("x", 0, 1)
    one.release(trials[1:3])
    other.enqueue(MEMBERS)
    again = other.claim(9)
    assert names(again) == ["b", "c"]
    assert [other.first_number(trial) for trial in again] == [1, 2]
    assert again[0].suggest_float("x", 0, 1) == sampled  # a search trains what was sampled at first
    assert one.finish(trials[1], [0.5], 0.5, {}) is False  # too late
    assert other.finish(again[0], [0.7], 0.7, {})
    assert other.finished()["b"].value == 0.7


def test_members_of_the_dead_are_retaken(worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living, here, elsewhere, me = worker(), worker(), worker(), worker()
    here.worker = here.worker.rpartition(" ")[0] + f" {dead.pid}"
    elsewhere.worker = "another host 1"
    me.enqueue(MEMBERS)
    living.claim(1), here.claim(2), elsewhere.claim(1)
    me.retake_lost(lambda trial: trial.user_attrs["member"] == "b")  # a process that we cannot see holds its directory
    me.enqueue(MEMBERS)
    assert names(me.claim(9)) == ["e", "c"]

    with elsewhere:  # its heart beats
        while "beat of another host 1" not in me.study.user_attrs:
            pass
        monkeypatch.setattr(trial_queue, "_STALE_SECONDS", -1)
        me.retake_lost(lambda trial: trial.user_attrs["member"] == "b")  # we see it for the first time
    me.enqueue(MEMBERS)
    assert me.claim(9) == []
    me.retake_lost(lambda trial: trial.user_attrs["member"] == "b")  # no beat since
    me.enqueue(MEMBERS)
    assert names(me.claim(9)) == ["d"]


def test_a_claim_that_was_cut_off_is_retaken(worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, me = worker(), worker()
    me.enqueue({"a": {}, "b": {}})
    one.study.ask(), one.study.ask(), one.study.ask()  # no worker yet; the third has no member either
    me.retake_lost(lambda trial: False)
    monkeypatch.setattr(trial_queue, "_STALE_SECONDS", -1)
    me.retake_lost(lambda trial: False)
    me.enqueue({"a": {}, "b": {}})
    assert names(me.claim(9)) == ["a", "b"]


def test_who_loses_a_claim_goes_on(worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = worker(), worker()
    one.enqueue(MEMBERS)
    ask = one.study.ask

    def ask_and_lose(*args: object, **kwargs: object) -> object:
        trial = ask()
        if trial.user_attrs["member"] == "a":
            other.release([trial])
        return trial

    monkeypatch.setattr(one.study, "ask", ask_and_lose)
    assert names(one.claim(2)) == ["b", "c"]


KILLED_WHILE_IT_WRITES = """
import os, signal, sys
from pathlib import Path
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue

queue = TrialQueue(open_journal(Path(sys.argv[1])), "study")
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
queue.enqueue({"a": {}})
"""


def test_nobody_waits_for_one_that_was_killed_while_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_WRITES, str(tmp_path)])
    assert killed.returncode == -9
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    queue = TrialQueue(open_journal(tmp_path), "study")
    queue.enqueue(MEMBERS)
    assert names(queue.claim(9)) == list("abcde")


def test_a_cut_off_line_of_the_journal_costs_nothing_else(tmp_path: Path) -> None:
    one = TrialQueue(open_journal(tmp_path), "study")
    one.enqueue(MEMBERS)
    journal = tmp_path / "optuna.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    other = TrialQueue(open_journal(tmp_path), "study")
    assert names(other.claim(9)) == list("abcde")
    journal.write_bytes(b"{half\n" + journal.read_bytes())
    with pytest.raises(InputError, match=r"optuna\.journal is damaged"):
        open_journal(tmp_path)


def test_a_journal_of_terabytes_is_not_read(tmp_path: Path) -> None:
    TrialQueue(open_journal(tmp_path), "study").enqueue(MEMBERS)
    os.truncate(tmp_path / "optuna.journal", 2**40)  # takes no space
    with alarm(20), pytest.raises(InputError, match=r"optuna\.journal is damaged \(a line is too long\)"):
        open_journal(tmp_path)


def test_a_new_sweep_and_its_journal_are_on_the_disk(tmp_path: Path, synced: set[int]) -> None:
    """Else a power cut can lose them with every finished member, though their lines were synced."""
    path = tmp_path / "sweeps" / "a"
    directory.create(path, {"experiment": "a.py"})
    assert {each.stat().st_ino for each in (tmp_path, path.parent, path)} <= synced
    synced.clear()
    open_journal(path)
    assert path.stat().st_ino in synced


@pytest.mark.parametrize(
    "line",
    [
        "7",
        "[]",
        "{}",
        '{"op_code": 4,',
        '{"a": "\x01"}',
        '{"op_code": 99, "worker_id": "w"}',
        '{"op_code": 4, "worker_id": "w"}',
    ],
)
def test_a_line_that_is_not_the_journals_is_damage(line: str, tmp_path: Path) -> None:
    (tmp_path / "optuna.journal").write_text(line + "\n")
    with pytest.raises(InputError, match=r"optuna\.journal is damaged \(.*\); restore it"):
        open_journal(tmp_path)


def test_a_result_that_does_not_say_whether_it_diverged_is_damage(tmp_path: Path) -> None:
    with TrialQueue(open_journal(tmp_path), "study") as queue:
        rest = {name: value for name, value in DONE.items() if name != "diverged_at"} | {"member": "a", "overrides": {}}
        for attributes in (rest | {"diverged_at": None}, rest):
            trial = create_trial(state=TrialState.COMPLETE, value=0.9, user_attrs=attributes)
            queue.study.add_trial(trial)
        trials = queue.study.get_trials(deepcopy=False)
        check_trials(trials[:1])
        with pytest.raises(InputError, match="trial 1 in the sweep's storage is damaged"):
            check_trials(trials)


LINE = {"step": 13, "epoch": 1, "split": "eval", "loss": 0.5, "accuracy": 0.9}
DONE = {"history": [LINE], "seconds": 1.5, "versions": {}, "commit": "", "workdir": "members/0000", "diverged_at": None}


@pytest.mark.parametrize(
    "change",
    [{}, {"member": ["a"]}, {"worker": "none"}, {"worker": "w 9999999999"}, {"overrides": 7}, {"versions": None},
     {"history": [LINE | {"loss": "0"}]}, {"history": 3}, {"seconds": "1"}, {"seconds": math.inf},
     {"history": [LINE | {"loss": math.nan}]}, {"history": [LINE | {"accuracy": 10**400}]},
     {"history": [LINE | {"accuracy": 0.8}]}, {"history": [LINE | {"step": 10**30}]}, {"history": []},
     {"history": [LINE | {"split": "../x"}]}, {"history 1": 3}, {"history 1": [LINE | {"step": 26, "accuracy": 0.8}]},
     {"versions": {"jax": "\x1b[2J"}}, {"commit": "a\nb"}, {"workdir": "/etc"}, {"diverged_at": -1},
     {"member": '{"seed": 1}', "overrides": {"seed": 5}}],
)  # fmt: skip
def test_a_trial_that_is_not_a_sweeps_is_named(change: dict, tmp_path: Path) -> None:
    queue = TrialQueue(open_journal(tmp_path), "study")
    queue.enqueue(MEMBERS)
    [trial] = queue.claim(1)
    queue.finish(trial, [0.9], 0.9, DONE | change)
    trials = queue.study.get_trials()
    if change:
        with pytest.raises(InputError, match="trial 0 in the sweep's storage is damaged; restore it"):
            check_trials(trials)
    else:
        check_trials(trials)


def test_a_finished_member_waits_for_the_disk_once_and_all_it_has_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = TrialQueue(open_journal(tmp_path), "study")
    queue.enqueue(MEMBERS)
    [trial] = queue.claim(1)
    sizes, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size) or sync(file))
    queue.finish(trial, [0.8, 0.9], 0.9, DONE)
    assert sizes == [(tmp_path / "optuna.journal").stat().st_size]  # after its last line


def test_a_claim_reads_all_trials_a_few_times_whatever_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, counts = TrialQueue(open_journal(tmp_path), "study"), []
    queue.enqueue({f"{number}": {} for number in range(40)})
    read = queue.counted
    monkeypatch.setattr(queue, "counted", lambda: counts.append(0) or read())
    assert [len(queue.claim(most)) for most in (10, 30)] == [10, 30] and len(counts) == 2


def test_a_search_can_be_repeated(tmp_path: Path) -> None:
    sampled = []
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        one = TrialQueue(open_journal(tmp_path), name, seed)
        one.enqueue({f"{n}": {} for n in range(24)})
        sampled.append([])
        for _ in range(3):
            for trial in one.claim(8):
                sampled[-1].append(trial.suggest_float("x", 0, 1))
                one.finish(trial, [], sampled[-1][-1], {})
    assert sampled[0] == sampled[1] and len({*sampled[0], *sampled[2]}) == 48


def test_a_search_looks_where_accuracies_are_high(tmp_path: Path) -> None:
    one, sampled = TrialQueue(open_journal(tmp_path), "study"), list[float]()
    one.enqueue({f"{n}": {} for n in range(40)})
    for _ in range(5):
        for trial in one.claim(8):
            sampled.append(trial.suggest_float("x", 0, 1))
            one.finish(trial, [], sampled[-1], {})
    assert statistics.mean(sampled[-16:]) > 0.75 > statistics.mean(sampled[:8])


def test_two_workers_of_a_search_sample_apart(tmp_path: Path) -> None:
    one, other = (TrialQueue(open_journal(tmp_path), "study") for _ in range(2))
    one.enqueue({f"{n}": {} for n in range(8)})
    trials = one.claim(4) + other.claim(4)
    assert len({trial.suggest_float("x", 0, 1) for trial in trials}) == 8


def test_a_beating_heart_is_alive(worker: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_queue, "_BEAT_SECONDS", 0.01)
    elsewhere, me = worker(), worker()
    elsewhere.worker = "another host 1"
    me.enqueue(MEMBERS)
    elsewhere.claim(5)
    monkeypatch.setattr(trial_queue, "_STALE_SECONDS", -1)
    with elsewhere:
        for beats in range(3):
            me.retake_lost(lambda trial: False)
            seen = me.study.user_attrs.get("beat of another host 1", -1)
            while me.study.user_attrs.get("beat of another host 1", -1) == seen:
                pass
            assert all(trial.state == TrialState.RUNNING for trial in me.study.trials), beats


def test_a_bad_database_is_named(tmp_path: Path) -> None:
    for url in ("nonsuch://x", f"sqlite:///{tmp_path}/no/such/x.db", "x"):
        with pytest.raises(InputError, match="storage='.*' cannot be used"):
            open_database(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://joe:hush@host/db",
        "postgresql://joe@corp.com:hush@host/db",
        "postgresql://joe:a@hush@host/db",
        "postgresql://host/db?user=joe&password=hush&sslmode=require",
        "postgresql://joe:hush@host/db?sslPassword=hush",
    ],
)
def test_no_password_is_shown_or_stored(url: str) -> None:
    shown = directory.without_password(url)
    assert "hush" not in shown and "joe" in shown and "host/db" in shown and "***" in shown
    assert directory.without_password("postgresql://joe@host/db?sslmode=require").count("*") == 0


def test_a_long_history_fits_into_small_fields(worker: Open) -> None:
    """A MySQL TEXT holds 64 kB; a line of metrics.jsonl has about 230 bytes."""
    one, history = worker(), [{"step": step, "text": "x" * 230} for step in range(777)]
    one.enqueue(MEMBERS)
    [trial] = one.claim(1)
    assert one.finish(trial, [0.5], 0.5, {"history": history, "seconds": 1.0})
    done = one.finished()["a"]
    assert one.attribute(done, "history") == history and one.attribute(done, "seconds") == 1.0
    assert max(len(json.dumps(value)) for value in done.user_attrs.values()) < 2**15


@contextlib.contextmanager
def without_answers(engine: sqlalchemy.Engine, number: float) -> Iterator[None]:
    """The database does not answer so many times."""
    failed = 0

    def fail(*_: object) -> None:
        nonlocal failed
        if failed < number:
            failed += 1
            raise sqlalchemy.exc.OperationalError("select", None, Exception("server closed the connection"))

    sqlalchemy.event.listen(engine, "before_cursor_execute", fail)
    yield
    sqlalchemy.event.remove(engine, "before_cursor_execute", fail)
    assert failed


def test_a_database_that_comes_back_was_only_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'x.db'}")
    queue = TrialQueue(database, "study")
    with without_answers(database.engine, 4):
        queue.enqueue(MEMBERS)
    with without_answers(database.engine, 4):
        claimed = queue.claim(2)
    with without_answers(database.engine, 4):
        assert queue.finish(claimed[0], [0.5], 0.5, {})
    assert names([*queue.finished().values()]) == ["a"] and names(claimed) == ["a", "b"]
    monkeypatch.setattr(storage, "_PATIENCE", 0.2)
    with without_answers(database.engine, math.inf), pytest.raises(RunError, match="not answered for .*closed the con"):
        queue.counted()
    database.engine.dispose()


def test_a_worker_waits_for_the_database_of_its_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, connect, answers = f"sqlite:///{tmp_path / 'x.db'}", storage.PatientStorage.__init__, iter([False] * 16)

    def connect_or_fail(*args: object, **kwargs: object) -> None:
        if not next(answers, True):
            raise sqlalchemy.exc.OperationalError("select", None, Exception("the database system is starting up"))
        connect(*args, **kwargs)

    monkeypatch.setattr(storage.PatientStorage, "__init__", connect_or_fail)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(InputError, match="cannot be used .*starting up"):  # a wrong URL is told at once
        open_database(url)
    database = open_database(url, wait=True)
    assert next(answers, "connected") == "connected"
    database.engine.dispose()


def test_a_line_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    code = f"""
import os, resource
from pathlib import Path
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue
from mnist_flax.sweep.trial_checks import check_trials
queue, path = TrialQueue(open_journal(Path({str(tmp_path)!r})), "study"), Path({str(tmp_path)!r}) / "optuna.journal"
queue.enqueue({{"a": {{}}}})
before = path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, resource.RLIM_INFINITY))
try:
    queue.enqueue({{"b": {{"x": "y" * 1000}}}})
except OSError as error:
    print(error.strerror, path.read_bytes() == before)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
queue.enqueue({{"c": {{}}}})
print(sorted(queue.counted()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "File too large True\n['a', 'c']\n", result.stderr

"""A sweep goes on when the epochs of its BASE have grown, and says where it cannot."""

import dataclasses
import functools
import hashlib
import json
import signal
from pathlib import Path

import optuna
import pytest
from conftest import PATIENCE, Command
from test_sweep import rows_of, start

from mnist_flax.config import Config
from mnist_flax.errors import InputError
from mnist_flax.sweep import directory, experiment_file, growth
from mnist_flax.sweep.experiment import override
from mnist_flax.sweep.storage import open_journal
from mnist_flax.sweep.trial_queue import TrialQueue
from mnist_flax.workdir import claim, run_info

GRID = """'''A tiny study.'''
from mnist_flax import Config, Hyperparams

BASE = Config(
    widths=(16,), batch_norm_layers=(), l2_layers=(), batch_size=16, epochs=EPOCHS, steps_per_call=13,
    train_split="train[:200]", eval_split="train[200:400]",
)
FINAL = {"train_split": "train[400:600]", "eval_split": "test[:200]"}
FINAL_SEEDS = 2


def sweep():
    for learning_rate in (1e-4, 1e-3, 1e-2):
        for seed in range(2):
            yield {"learning_rate": learning_rate, "seed": seed}
"""
SEARCH = (
    GRID[: GRID.index("FINAL")]
    + """FINAL_SEEDS = 0
TRIALS = 3


def search(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)}
"""
)
QUIET = ("--no-figures", "--no-tensorboard")


def write(path: Path, text: str, epochs: int) -> Path:
    path.write_text(text.replace("EPOCHS", str(epochs)))
    return path


def results(path: Path) -> dict[str, list[dict]]:
    """Each member's history without its timings."""
    return {
        json.dumps([row["stage"], row["overrides"]]): [
            {name: value for name, value in line.items() if name != "seconds"} for line in row["history"]
        ]
        for row in rows_of(path)
    }


def files_in(path: Path) -> dict[str, str]:
    found = (file for file in path.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def test_kept_members_go_on_and_pruned_ones_start_again(tmp_path: Path, command: Command) -> None:
    """Planned, stopped and run again: the same bits as with the larger number from the start."""
    study, path = write(tmp_path / "study.py", GRID, 2), tmp_path / "sweep"
    assert command("sweep", study, "--workdir", path, *QUIET).returncode == 0
    few = results(path)
    write(study, GRID, 30)
    before = files_in(path)
    plan = command("sweep", study, "--workdir", path, "--dry-run")
    assert (plan.returncode, plan.stderr, files_in(path)) == (0, "", before)
    said = "BASE.epochs=30 (before 2): 3 members of the selection go on from their last checkpoint, 3 train from their"
    assert said in plan.stdout and "0 done, 3 go on from a checkpoint, 3 start" in " ".join(plan.stdout.split())
    process = start(study, path)
    assert process.stdout
    while "epoch 4 of 30" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in process.communicate(timeout=PATIENCE)[1] and process.returncode == 143
    again = command("sweep", study, "--workdir", path, *QUIET)
    assert again.returncode == 0 and "BASE.epochs=30 (before 2): " in again.stdout, again.stderr
    straight = command("sweep", study, "--workdir", tmp_path / "straight", *QUIET)
    assert straight.returncode == 0
    assert results(path) == results(tmp_path / "straight")
    assert {len(history) for history in results(path).values()} == {60}
    storage = open_journal(path)
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    old = [trial for each in studies for trial in each.trials if trial.state.name == "COMPLETE"]
    assert len(studies) == 4 and sorted(len(trial.user_attrs["history"]) for trial in old)[:8] == [4] * 8  # not lost
    assert {key: lines[:4] for key, lines in results(path).items() if key in few}.items() <= few.items()
    shrunk = command("sweep", write(study, GRID, 2), "--workdir", path, *QUIET)
    assert shrunk.returncode == 2 and "BASE.epochs=2 (there 30);" in shrunk.stderr


def test_a_search_trains_the_same_trials_for_longer(tmp_path: Path, command: Command) -> None:
    study, path = write(tmp_path / "study.py", SEARCH, 1), tmp_path / "sweep"
    assert command("sweep", study, "--workdir", path, "--trials", "5", *QUIET).returncode == 0
    few = results(path)
    grown = command("sweep", write(study, SEARCH, 2), "--workdir", path, *QUIET)
    assert grown.returncode == 0 and "3 members of the selection go on" in grown.stdout, grown.stderr
    assert {key: lines[:2] for key, lines in results(path).items()} == few and len(few) == 5
    assert {len(lines) for lines in results(path).values()} == {4}


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        (
            "epochs=2",
            "epochs=3, schedule='cosine'",
            r"BASE.schedule='cosine' \(there 'constant'\), BASE.epochs=3 \(there 2",
        ),
        (
            "epochs=2, schedule='cosine'",
            "epochs=3, schedule='cosine'",
            "with schedule='cosine' the learning rate depends",
        ),
        ("epochs=3", "epochs=2", r"BASE.epochs=2 \(there 3\); give the same"),
        ("epochs=2", "epochs=2, hparams=Hyperparams(l2=0.5)", r"other settings: BASE.l2=0.5 \(there 0.001\);"),
        ("test[:200]", "test[:100]", r"other settings: FINAL.eval_split='test\[:100\]' \(there 'test\[:200\]'\);"),
    ],
)
def test_what_differs_is_named_with_both_values(there: str, here: str, said: str, tmp_path: Path) -> None:
    text, path = GRID if there in GRID else GRID.replace("epochs=EPOCHS", there), tmp_path / "sweep"
    directory.create(path, identity_of(tmp_path, text))
    with pytest.raises(InputError, match=said) as error:
        directory.check(path, identity_of(tmp_path, text.replace(there, here)))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"other settings: storage='sqlite:///x.db' \(there 'journal'\);"):
        directory.check(path, identity_of(tmp_path, text) | {"storage": "sqlite:///x.db"})


def identity_of(path: Path, text: str) -> dict:
    return directory.identity(experiment_file.load(write(path / "study.py", text, 2)), None)


def test_another_keep_is_refused_since_what_was_removed_cannot_come_back(tmp_path: Path) -> None:
    three, ten = (identity_of(tmp_path, f"{GRID}\n\nKEEP = {number}\n") for number in (3, 10))
    assert three == identity_of(tmp_path, GRID) and "keep" not in three  # so are the names of older sweeps' studies
    assert directory.study_names(three, [], "selection") != directory.study_names(ten, [], "selection")
    for there, here, said in ((three, ten, r"KEEP=10 \(there 3\)"), (ten, three, r"KEEP=3 \(there 10\)")):
        path = tmp_path / str(there.get("keep"))
        directory.create(path, there)
        assert directory.check(path, there) == []
        with pytest.raises(InputError, match=f"other settings: {said}; networks that were not kept cannot come back; "):
            directory.check(path, here)


def test_the_earlier_epochs_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    for epochs, earlier in (("2", []), ("3", [2]), ("3", [2]), ("5", [2, 3])):
        identity = identity_of(tmp_path, GRID.replace("EPOCHS", epochs))
        assert directory.check(path, identity) == earlier
        directory.create(path, identity)
        assert directory.check(path, identity) == earlier


def test_a_member_that_cannot_go_on_is_named_before_anything_changes(tmp_path: Path) -> None:
    """In use by a sweep of fewer epochs, or with a schedule of its own."""
    storage, names = open_journal(tmp_path), ["two", "three"]
    base = Config(widths=(8,), batch_norm_layers=(), l2_layers=(), epochs=2)
    info = {"image_shape": [28, 28, 1], "class_names": ["0"], "train_examples": 1, "eval_examples": 1, "sha256": {}}
    for number, schedule in enumerate(("constant", "cosine")):
        overrides = {"schedule": schedule}
        with TrialQueue(storage, names[0]) as queue:
            queue.enqueue({schedule: {"overrides": overrides}})
        config, path = override(base, overrides), tmp_path / "members" / f"{number:04d}"
        with claim.claim(path, run_info.new(config, info | {"data_dir": "/data"})):
            if schedule == "constant":
                with pytest.raises(InputError, match="0000 is in use by a sweep of fewer epochs"):
                    growth.check(storage, names, tmp_path / "members", functools.partial(override, base))
        grown = functools.partial(override, dataclasses.replace(base, epochs=3))
        if schedule == "constant":
            growth.check(storage, names, tmp_path / "members", grown)
    with pytest.raises(InputError, match=r"epochs=3 \(there 2\); with schedule='cosine'"):
        growth.check(storage, names, tmp_path / "members", grown)


def test_members_keep_their_directories(tmp_path: Path) -> None:
    """Also those whose first trial failed; new ones get directories that are not in use."""
    storage, names = open_journal(tmp_path), ["two", "three", "four"]
    with TrialQueue(storage, names[0]) as queue:
        queue.enqueue({"a": {}, "b": {}})
        queue.claim(1)[0].suggest_float("x", 0, 1)
        queue.release(queue.study.trials[:1])
        queue.enqueue({"a": {}, "b": {}, "c": {}})
        before = {trial.user_attrs["member"]: queue.first_number(trial) for trial in queue.study.trials}
        sampled = queue.study.trials[0].params
    growth.copy_members(storage, names[:2])
    for _ in range(2):  # what is there is not copied again
        growth.copy_members(storage, names)
    with TrialQueue(storage, names[-1]) as queue:
        assert len(queue.study.trials) == 4 and not queue.counted()
        queue.enqueue({"d": {}, "a": {}, "b": {}, "c": {}})
        numbers = {trial.user_attrs["member"]: queue.first_number(trial) for trial in queue.counted().values()}
        assert numbers == before | {"d": 4} == {"a": 0, "b": 1, "c": 3, "d": 4}
        trial = queue.claim(2)[1]
        assert {"x": trial.suggest_float("x", 0, 1)} == sampled

"""Sweeps by their command: real processes, killed, stopped, joined, rerun."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import PATIENCE, Command

import mnist_flax
from mnist_flax.sweep import directory
from mnist_flax.sweep.storage import open_database, open_journal
from mnist_flax.workdir import checkpoint

STUDY = """'''A tiny study.'''
from mnist_flax import Config

BASE = Config(
    widths=(16, 16), batch_size=16, epochs=EPOCHS, steps_per_call=13,
    train_split="train[:200]", eval_split="train[200:400]",
)
FINAL = {"train_split": "train[400:600]", "eval_split": "test[:200]"}
FINAL_SEEDS = 4


def sweep():
    for batch_norm_layers, learning_rates in ((), (1e-3, 1e-2)), ((2,), (1e-3, 1e30)):
        for learning_rate in learning_rates:
            for seed in range(2):
                yield {"batch_norm_layers": batch_norm_layers, "learning_rate": learning_rate, "seed": seed}
"""
SEARCH = (
    STUDY[: STUDY.index("FINAL")]
    + """FINAL_SEEDS = 0
TRIALS = 4


def search(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)}
"""
)
ONE_PROGRAM = (
    SEARCH[: SEARCH.index("TRIALS")]
    + """KEEP = 4


def sweep():
    yield from ({"seed": seed} for seed in range(6))
"""
)


def write(path: Path, text: str, epochs: int = 2) -> Path:
    path.write_text(text.replace("EPOCHS", str(epochs)))
    return path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(path: Path) -> list[dict]:
    return lines_of(path / "results.jsonl")


@pytest.fixture(scope="module")
def finished_sweep(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of a grid, by two workers, next to its experiment file."""
    directory = tmp_path_factory.mktemp("sweep")
    study = write(directory / "study.py", STUDY)
    result = command("sweep", study, "--workdir", directory / "sweep", "--workers", "2")
    assert (result.returncode, result.stderr) == (0, "")
    assert "chosen batch_norm_layers=" in result.stdout
    return directory / "sweep"


def test_results(finished_sweep: Path) -> None:
    rows = rows_of(finished_sweep)
    assert [row["stage"] for row in rows] == ["selection"] * 8 + ["final"] * 4
    diverged = [row for row in rows if row["diverged_at"]]
    assert [row["overrides"]["learning_rate"] for row in diverged] == [1e30] * 2
    for row in rows:
        assert len(row["history"]) == (0 if row in diverged else 4)
        assert row["value"] == (None if row in diverged else row["history"][-1]["accuracy"])
        assert row["versions"]["jax"] and (row in diverged or row["seconds"] > 0)
        assert all(line["examples"] == 200 for line in row["history"])
    groups = {}
    for row in rows[:8]:
        groups.setdefault(json.dumps(row["overrides"] | {"seed": 0}), []).append(row["value"])
    best = max((g for g in groups if None not in groups[g]), key=lambda g: np.mean(groups[g]))
    for row in rows[8:]:
        assert row["overrides"] | {"seed": 0} == json.loads(best) and row["overrides"]["seed"] >= 1000
    title, _, made, *_ = (finished_sweep / "summary.md").read_text().split("\n")
    words = f"{finished_sweep.parent}/study.py --workdir {finished_sweep} --workers 2"
    assert title == "# study.py: A tiny study." and made.startswith(f"`python -m mnist_flax.sweep {words}`; commit `")
    table = list(csv.DictReader((finished_sweep / "summary.csv").read_text().splitlines()))
    assert len(table) == 5
    assert {path.name for path in (finished_sweep / "figures").glob("*.png")} == {
        "curves.png",
        "heatmap.png",
        "final.png",
    }
    members = {f"{row['stage']}-trial-{row['trial']:04d}" for row in rows}
    assert {path.name for path in (finished_sweep / "tensorboard").iterdir()} == members


def test_members_are_ordinary_runs(finished_sweep: Path, command: Command, tmp_path: Path) -> None:
    best = max(rows_of(finished_sweep)[:8], key=lambda row: row["value"] or 0)
    kept = sorted(path.name for path in (finished_sweep / "members").iterdir())
    assert len(kept) == 3 and best["workdir"].split("/")[1] in kept  # the three best
    named = [row["workdir"] for row in rows_of(finished_sweep)[:8]]
    assert sorted(filter(None, named)) == [f"members/{name}" for name in kept] and named.count(None) == 5
    path = finished_sweep / best["workdir"]
    changes = [f"--{name.replace('_', '-')} {value}".split() for name, value in best["overrides"].items()]
    layers = best["overrides"]["batch_norm_layers"]
    changes = [change for change in changes if "layers" not in change[0]] + [["--batch-norm-layers", *map(str, layers)]]
    config = ["--widths", "16", "16", "--batch-size", "16", "--epochs", "2", "--steps-per-call", "13",
              "--train-split", "train[:200]", "--eval-split", "train[200:400]"]  # fmt: skip
    lone = command("train", "--workdir", tmp_path / "lone", *config, *sum(changes, []))
    assert lone.returncode == 0, lone.stderr
    for member, alone in zip(best["history"], lines_of(tmp_path / "lone" / "metrics.jsonl"), strict=True):
        assert abs(member["cross_entropy"] - alone["cross_entropy"]) < 1e-2 * alone["cross_entropy"]
        assert abs(member["accuracy"] - alone["accuracy"]) <= 0.01
        assert (member["step"], member["split"]) == (alone["step"], alone["split"])
    again = command("train", "--workdir", path, *config, *sum(changes, []))
    assert "is finished: nothing to do" in again.stdout
    model, variables = mnist_flax.load(finished_sweep / "final" / "0001")
    assert model.apply(variables, np.zeros((1, 28, 28), np.uint8)).shape == (1, 10)


def test_a_finished_sweep_has_an_ensemble(finished_sweep: Path, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    shutil.copytree(finished_sweep, path)
    for flags, stage in (((), "final"), (("--stage", "selection"), "selection")):
        result = command("evaluate", "--workdir", path, "--ensemble", 3, "--no-figures", "--json", *flags)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["stage"] == stage and len(report["networks"]) == 3
        # The last evaluation of each was on this split.
        values = {row["workdir"]: row["value"] for row in rows_of(path) if row["stage"] == stage}
        for network in report["networks"]:
            assert abs(network["accuracy"] - values[network["network"]]) < 0.011
    directory.create(path, {"storage": "journal"})  # as a command on it does, before it trains anything
    result = command("evaluate", "--workdir", path, "--ensemble", 3)
    assert (result.returncode, result.stdout) == (2, "") and "is not a sweep that is known to be" in result.stderr


def test_a_finished_sweep_has_nothing_to_do(finished_sweep: Path, command: Command) -> None:
    before = (finished_sweep / "results.jsonl").read_bytes()
    events, figures = finished_sweep / "tensorboard", finished_sweep / "figures"
    (figures / "curves.png").unlink()
    half, theirs = events / ".saving-selection-trial-0001", events / "notes"
    for path in (half, theirs, events / "selection-0001"):  # the last by an older version
        path.mkdir()
    kept = {*events.iterdir()}
    result = command("sweep", finished_sweep.parent / "study.py", "--workdir", finished_sweep)
    assert (figures / "curves.png").exists() and {*events.iterdir()} == kept - {half, events / "selection-0001"}
    heatmap = (figures / "heatmap.png").stat().st_mtime_ns
    command("sweep", finished_sweep.parent / "study.py", "--workdir", finished_sweep)
    assert (figures / "heatmap.png").stat().st_mtime_ns == heatmap  # what is there is not drawn again
    assert result.returncode == 0 and "is finished: nothing to do" in result.stdout
    assert (finished_sweep / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("what", ["pipe", "no text"])
def test_an_odd_note_of_what_is_drawn_is_written_again(
    what: str, finished_sweep: Path, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "sweep"
    shutil.copytree(finished_sweep, path)
    note = path / "figures" / ".drawn"
    text = note.read_bytes()
    note.unlink()
    os.mkfifo(note) if what == "pipe" else note.write_bytes(b"\xff")
    result = command("sweep", finished_sweep.parent / "study.py", "--workdir", path, "--no-tensorboard")
    assert (result.returncode, result.stderr) == (0, "") and note.read_bytes() == text


def start(study: Path, path: Path, *flags: str) -> subprocess.Popen:
    line = [
        sys.executable,
        "-m",
        "mnist_flax.sweep",
        str(study),
        "--workdir",
        str(path),
        "--no-figures",
        "--no-tensorboard",
        *flags,
    ]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_two_workers_one_killed(tmp_path: Path) -> None:
    study = write(tmp_path / "study.py", ONE_PROGRAM, epochs=40)
    first, second = (start(study, tmp_path / "sweep", "--worker", "--workers", "2", "--population", "2") for _ in "12")
    while f" {first.pid}" not in "".join(p.read_text() for p in (tmp_path / "sweep").glob("members/*/.lock")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    time.sleep(0.5)
    first.kill()
    first.communicate()
    _, errors = second.communicate(timeout=PATIENCE)
    assert (second.returncode, errors) == (0, "")
    storage = open_journal(tmp_path / "sweep")
    name = next(name for name in optuna.get_all_study_names(storage) if "selection" in name)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    done = [trial.user_attrs["member"] for trial in trials if trial.state.name == "COMPLETE"]
    assert len(done) == len(set(done)) == 6
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    of_the_killed = [trial for trial in failed if trial.user_attrs["worker"].endswith(f" {first.pid}")]
    assert of_the_killed
    # Both may have made a member wait; whoever came second let it be.
    assert not [trial for trial in failed if trial not in of_the_killed and trial.intermediate_values]
    rows = rows_of(tmp_path / "sweep")
    assert [row["overrides"] for row in rows] == [{"seed": seed} for seed in range(6)]
    assert [len(row["history"]) for row in rows] == [80] * 6
    kept = {row["workdir"] for row in sorted(rows, key=lambda row: (-row["value"], row["trial"]))[:4]}
    there = {f"members/{path.name}" for path in (tmp_path / "sweep" / "members").iterdir()}
    assert {row["workdir"] for row in rows} - {None} == kept == there


def sampled_in(path: Path) -> list[float]:
    """The learning rates of a search, from its database."""
    storage = open_database(f"sqlite:///{path}")
    name = next(name for name in optuna.get_all_study_names(storage) if "selection" in name)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    storage.engine.dispose()
    return [trial.params["learning_rate"] for trial in trials if trial.params]


def test_final_seeds_stay_fresh_when_a_search_goes_on(tmp_path: Path, command: Command) -> None:
    """The second half of the search samples seeds with which the chosen one was tested after the first half."""
    text = SEARCH.replace("FINAL_SEEDS = 0", 'FINAL = {"eval_split": "test[:50]"}\nFINAL_SEEDS = 3').replace(
        'return {"learning', 'return {"seed": 998 + trial.number, "learning'
    )
    study, path = write(tmp_path / "study.py", text, epochs=1), tmp_path / "sweep"
    seen = []
    for trials in ("2", "4"):
        result = command("sweep", study, "--workdir", path, "--no-figures", "--trials", trials)
        assert result.returncode == 0, result.stderr
        rows = rows_of(path)
        used = {row["overrides"]["seed"] for row in rows if row["stage"] == "selection"}
        seen.append((used, {row["overrides"]["seed"] for row in rows if row["stage"] == "final"}))
    assert seen == [({998, 999}, {1000, 1001, 1002}), ({998, 999, 1000, 1001}, {1002, 1003, 1004})]
    assert {entry.name for entry in (path / "tensorboard").iterdir()} >= {"final-trial-0002", "final-trial-0003"}
    assert not (path / "tensorboard" / "final-trial-0000").exists()
    assert "best of all" in result.stdout


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path: Path, command: Command) -> None:
    study = write(tmp_path / "study.py", SEARCH, epochs=60)
    database = f"sqlite:///{os.path.relpath(tmp_path)}/ledger.db"  # from here
    process = start(study, tmp_path / "sweep", "--population", "4", "--storage", database)
    assert process.stdout
    while "epoch 5 of 60" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "the 4 running members are saved in" in errors
    steps = {path.name: checkpoint.steps(path / "checkpoints")[-1] for path in (tmp_path / "sweep/members").iterdir()}
    assert len(set(steps.values())) == 1 and 5 * 13 <= steps["0000"] < 60 * 13
    sampled = sampled_in(tmp_path / "ledger.db")
    assert len(sampled) == 4 and not (tmp_path / "sweep" / "optuna.journal").exists()
    # With more trials than before: the new ones come after those that were running.
    more = ["--population", "4", "--trials", "8", "--no-figures", "--storage", f"sqlite:///{tmp_path}/ledger.db"]
    result = command("sweep", study, "--workdir", tmp_path / "sweep", *more)
    assert result.returncode == 0, result.stderr
    assert "epoch 1 of 60" not in result.stdout.split("selection: 4 of 8 done")[0]
    rows = rows_of(tmp_path / "sweep")
    assert [len(row["history"]) for row in rows] == [120] * 8
    assert [row["overrides"]["learning_rate"] in sampled for row in rows] == [True] * 4 + [False] * 4


def worker_pids(path: Path) -> set[int]:
    """The processes that hold members of a sweep."""
    notes = [file.read_text() for file in path.glob("members/*/.lock")]
    return {int(note.split()[1]) for note in notes if note}


def wait_for_workers(supervisor: subprocess.Popen, path: Path, number: int) -> set[int]:
    while len(pids := worker_pids(path)) < number:
        assert supervisor.poll() is None, supervisor.communicate()
        time.sleep(0.05)
    return pids


def test_workers_end_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    study = write(tmp_path / "study.py", ONE_PROGRAM, epochs=3000)
    supervisor = start(study, tmp_path / "sweep", "--workers", "2", "--population", "2")
    pids = wait_for_workers(supervisor, tmp_path / "sweep", 2)
    supervisor.kill()
    supervisor.communicate()
    deadline = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "stopped by SIGTERM: " in (tmp_path / "sweep" / "worker-1.log").read_text()


def test_a_worker_that_was_killed_is_replaced(tmp_path: Path) -> None:
    study = write(tmp_path / "study.py", ONE_PROGRAM, epochs=100)
    supervisor = start(study, tmp_path / "sweep", "--workers", "2", "--population", "2")
    os.kill(wait_for_workers(supervisor, tmp_path / "sweep", 2).pop(), signal.SIGKILL)
    output, errors = supervisor.communicate(timeout=PATIENCE)
    assert (supervisor.returncode, errors) == (0, "")
    assert re.search("worker [12] was ended by SIGKILL, and starts again", output)
    assert [len(row["history"]) for row in rows_of(tmp_path / "sweep")] == [200] * 6

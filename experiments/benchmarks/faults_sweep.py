"""Kill sweeps, their database, and processes that train together, for `faults.py`."""

import collections
import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults_processes as processes
from faults_database import Postgres
from faults_processes import command, final, same
from optuna.trial import TrialState

from mnist_flax.sweep.storage import open_journal

EXPERIMENT = '''"""Which step size?"""
from mnist_flax import Config

BASE = Config(widths=(8,), batch_norm_layers=(), l2_layers=(), batch_size=16, epochs=10, steps_per_call=32,
              train_split="train[:1000]", eval_split="train[1000:3000]")
FINAL = {"train_split": "train[:1000]", "eval_split": "test[:1000]"}
FINAL_SEEDS = 2


def sweep():
    for learning_rate in (1e-3, 3e-3):
        for seed in range(3):
            yield {"learning_rate": learning_rate, "seed": seed}
'''
IMPORTS = "from mnist_flax import Config, Halving, PopulationBased\n\n"
MEMBERS = """
BASE = Config(widths=(8,), batch_norm_layers=(), l2_layers=(), batch_size=16, epochs=9, steps_per_call=32,
              train_split="train[:1000]", eval_split="train[1000:3000]")
FINAL_SEEDS, KEEP = 0, 8


def sweep():
    for i in range(8):
        yield {"learning_rate": 10 ** (-4 + i / 4), "seed": i}
"""
ADAPT = {
    "halving": "ADAPT = Halving(rungs=(1, 3, 9), keep=0.5)\n",
    "population": 'ADAPT = PopulationBased(every=2, perturb={"learning_rate": (0.8, 1.25)})\n',
}
SAVING = """
import runpy
from mnist_flax.sweep import members
members.SAVE_SECONDS = 1.0
runpy.run_module("mnist_flax.sweep", run_name="__main__", alter_sys=True)
"""
UNLIKE = ("trial", "member", "seconds", "versions", "commit", "workdir")  # may differ after a kill
TRAIN = ["--widths", "8", "--batch-norm-layers", "--l2-layers", "--train-split", "train[:500]",
         "--eval-split", "test[:400]", "--batch-size", "16", "--epochs", "16", "--steps-per-call", "4",
         "--checkpoint-every", "8"]  # fmt: skip


def sweep_line(root: Path, path: Path, *more: object) -> list[str]:
    """The command of a sweep with two workers."""
    (root / "step_size.py").write_text(EXPERIMENT)
    return command("sweep", root / "step_size.py", "--workdir", path, "--workers", 2, "--population", 2, *more)


def results(path: Path) -> dict[str, tuple[dict[str, Any], Any]]:
    """Each member's result and, where it is kept, its last checkpoint."""
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for row in map(json.loads, (path / "results.jsonl").read_text().splitlines()):
        key = json.dumps([row["stage"], row["overrides"]])
        row["history"] = [{k: v for k, v in line.items() if k != "seconds"} for line in row["history"]]
        kept = final(path / row["workdir"]) if row["workdir"] else None
        found[key] = {k: v for k, v in row.items() if k not in UNLIKE}, kept
    return found


def compare(path: Path, want: dict[str, tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    """How the results of a sweep differ from those of one that nobody disturbed."""
    got, twice = results(path), len((path / "results.jsonl").read_text().splitlines()) - len(want)
    both = got.keys() & want.keys()
    equal = [k for k in both if got[k][0] == want[k][0] and (got[k][1] is None) == (want[k][1] is None)]
    bits = [k for k in equal if got[k][1] is None or same(got[k][1], want[k][1])]
    differing = len(both) - len(bits)
    return {"members": len(want), "lost": len(want) - len(both), "twice": max(twice, 0), "differing": differing}


def problems(path: Path) -> list[str]:
    """What the command and its workers printed to stderr, but that they wait for the database."""
    lines = [line for log in sorted(path.glob("worker-*.log")) for line in log.read_text(errors="replace").splitlines()]
    lines = [line.replace(str(path), "...") for line in lines if line.startswith(("error:", "warning:", "Traceback"))]
    return [line for line in processes.said(path) + lines if "the database does not answer" not in line]


def sweep_kills(root: Path, number: int, rng: random.Random) -> Iterator[dict]:
    """Kill the supervisor, a worker, or all, until `number` is reached, every sweep to its end; a line a sweep."""
    began = time.monotonic()
    assert processes.run(sweep_line(root, root / "straight"), root / "straight") == 0
    longest, want, killed, sweeps = time.monotonic() - began, results(root / "straight"), 0, 0
    while killed < number:
        path, sweeps = root / f"killed-{sweeps}", sweeps + 1
        moments, codes = kill_often(sweep_line(root, path), path, longest, rng)
        killed += len(moments)
        line = {"kind": "sweep", "kills": moments, "exit_codes": codes, "stderr": problems(path)}
        yield line | compare(path, want) | {"done_twice": _done_twice(path)}
        shutil.rmtree(path)


def kill_often(line: list[str], path: Path, longest: float, rng: random.Random) -> tuple[list[str], list[int]]:
    """Start a sweep and kill it at random moments until it ends by itself; returns whom, and the exit codes."""
    moments, codes = list[str](), list[int]()
    while codes[-1:] != [0] and len(codes) < 50:
        process = processes.start(line, path)
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0.5, longest))
                break
            workers = processes.children(process.pid)
            whom = rng.choice(["supervisor", "worker", "all"] if workers else ["supervisor"])
            one = rng.choice(workers) if workers else 0
            processes.kill(*{"supervisor": [process.pid], "worker": [one], "all": [process.pid, *workers]}[whom])
            moments.append(whom)
            if whom != "worker":
                process.wait()
        codes.append(process.returncode)
    return moments, codes


def adapt_kills(root: Path, number: int, rng: random.Random, method: str) -> Iterator[dict]:
    """Kill sweeps with `ADAPT`, until `number` is reached; of halving every other one has two workers.

    With one worker, all results must be those of the straight sweep. With two, members stop by the order in which the
    workers report; so those that are there must have the results of a sweep without `ADAPT`, as far as they got.
    """
    texts = {"straight": IMPORTS + ADAPT[method] + MEMBERS, "plain": IMPORTS + MEMBERS}
    wanted, longest = {}, 0.0
    for name, text in texts.items():
        began = time.monotonic()
        assert processes.run(_adapt_line(root, root / name, text, 1), root / name) == 0
        wanted[name], longest = results(root / name), max(longest, time.monotonic() - began)
    killed = sweeps = 0
    while killed < number:
        workers, path, sweeps = 1 + (method == "halving" and sweeps % 2), root / f"killed-{sweeps}", sweeps + 1
        line = _adapt_line(root, path, texts["straight"], workers)
        moments, codes = kill_often(line, path, longest, rng)
        killed += len(moments)
        found = compare(path, wanted["straight"]) if workers == 1 else compare_prefixes(path, wanted["plain"])
        line = {"kind": method, "workers": workers, "kills": moments, "exit_codes": codes, "stderr": problems(path)}
        yield line | found | {"done_twice": _done_twice(path)}
        shutil.rmtree(path)


def _adapt_line(root: Path, path: Path, text: str, workers: int) -> list[str]:
    """The command of a sweep; where it is the only worker, it saves every second, so that there is much to restore."""
    file = root / f"study_{'adapt' if 'ADAPT' in text else 'plain'}.py"
    file.write_text(text)
    words = [str(file), "--workdir", str(path), "--population", "4" if "Halving(" in text or workers > 1 else "8"]
    if workers > 1:
        return command("sweep", *words, "--workers", workers)
    return [sys.executable, "-c", SAVING, *words]


def compare_prefixes(path: Path, want: dict[str, tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    """How the members of a halving differ from the same ones that nobody stopped, as far as they got."""
    got = results(path)
    differing = 0
    for name, (row, kept) in got.items():
        whole, theirs = want[name]
        history = whole["history"][: len(row["history"])]
        same_end = kept is None or theirs is None or same(kept, theirs)
        differing += row["history"] != history or not same_end
    rows = len((path / "results.jsonl").read_text().splitlines())
    twice = max(rows - len(got), 0)
    return {"members": len(want), "lost": len(want.keys() - got.keys()), "twice": twice, "differing": differing}


def _done_twice(path: Path) -> int:
    """How many members of the journal have two trials that are done."""
    storage, done = open_journal(path), collections.Counter()
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if "member" in trial.user_attrs:  # a batch of a halving's reports has none
                done[study.study_name, trial.user_attrs["member"]] += 1
    return sum(n > 1 for n in done.values())


def distributed_kills(root: Path, number: int, rng: random.Random) -> Iterator[dict]:
    """Kill one of two processes of a run, until `number` is reached, and start both again; a line a run."""
    began = time.monotonic()
    assert [process.wait() for process in _both(root / "straight")] == [0, 0], processes.said(root / "straight")
    longest, want, killed, runs = time.monotonic() - began, final(root / "straight"), 0, 0
    while killed < number:
        path, runs, moments = root / f"killed-{runs}", runs + 1, []
        while True:
            both = _both(path)
            if processes.all_end([process.pid for process in both], rng.uniform(0.5, 1.2 * longest)):
                break
            whom = rng.randrange(2)
            processes.kill(both[whom].pid)
            moments.append({"whom": whom, "at_step": processes.latest_step(path)} | _survive(both[1 - whom], path))
            both[whom].wait()
        killed += len(moments)
        codes = [process.wait() for process in both]
        line = {
            "kind": "distributed",
            "kills": moments,
            "exit_code": max(map(abs, codes)),
            "stderr": processes.said(path),
        }
        yield line | {"bit_for_bit": codes == [0, 0] and same(final(path), want)}
        shutil.rmtree(path)


def _both(path: Path) -> list[subprocess.Popen[bytes]]:
    """Two processes that train one network."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    line = command("train", "--workdir", path, *TRAIN, "--distributed", "--coordinator", coordinator)
    Path(f"{path}.out").unlink(missing_ok=True)
    return [processes.start([*line, "--num-processes", "2", "--process-id", str(i)], path) for i in range(2)]


def _survive(process: subprocess.Popen[bytes], path: Path) -> dict[str, Any]:
    """What the other process says, and how soon it ends; before it has met the other, it waits two minutes for that."""
    began, trains = time.monotonic(), "cpu devices" in Path(f"{path}.out").read_text()
    try:
        code = process.wait(processes.ENDS_WITHIN if trains else 5)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    seconds = round(time.monotonic() - began, 1)
    return {"trained": trains, "other_ended_with": code, "seconds": seconds, "other_said": processes.said(path)}


def database_kills(root: Path, number: int, rng: random.Random) -> Iterator[dict]:
    """Kill the PostgreSQL server under a sweep, and start it again 1 to 5 s later; a line a sweep."""
    assert processes.run(sweep_line(root, root / "straight"), root / "straight") == 0
    want, killed, sweeps = results(root / "straight"), 0, 0
    with Postgres(root / "postgres") as server:
        while killed < number:
            path, sweeps, moments, codes = root / f"killed-{sweeps}", sweeps + 1, [], []
            url = server.new_database(f"sweep_{sweeps}")
            while codes[-1:] != [0] and len(codes) < 20:
                process = processes.start(
                    sweep_line(root, path, "--no-figures", "--no-tensorboard", "--storage", url), path
                )
                while not processes.all_end([process.pid], rng.uniform(0.5, 12.0)):
                    server.kill()
                    moments.append(away := round(rng.uniform(1.0, 5.0), 1))
                    time.sleep(away)
                    server.start()
                codes.append(process.wait())
            killed += len(moments)
            line = {"kind": "database", "seconds_away": moments, "exit_codes": codes, "stderr": problems(path)}
            yield line | compare(path, want)
            shutil.rmtree(path)

"""Train every member of an experiment, many as one program; run the same command again, or elsewhere, to go on or help.

python -m mnist_flax.sweep experiments/regularization.py --workdir sweeps/regularization --workers 2
"""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from mnist_flax import console, data, experiment, experiment_file, overrides, record, report, splits, stages, sweepdir
from mnist_flax.board import Board
from mnist_flax.config import Config, InputError, RunError, to_json

_SAID = {"selection": "validation", "final": "test"}


@dataclass(frozen=True)
class Args:
    """Train every member of an experiment file; the same command again goes on, after this one or beside it."""

    experiment: tyro.conf.Positional[Path]
    """The experiment file, such as experiments/regularization.py."""
    workdir: Path
    """Directory of the sweep; created, continued, or found finished."""
    trials: int | None = None
    """Members of a search. Default: its TRIALS; a larger number continues a finished one."""
    population: int | None = None
    """Members trained as one program. Default: what fits into memory, at most 16 a device; of a search at most an
    eighth of its trials, so that it can learn from the ones before."""
    workers: int = 1
    """Processes on this host; they share the CPU's cores."""
    worker: bool = False
    """Be one of the --workers, instead of starting them."""
    storage: str | None = None
    """Database (SQLAlchemy URL) for the ledger, where hosts share no file system; each then keeps the checkpoints of
    the members that it has trained, and in one database the same experiment is one sweep, whatever the workdir.
    Default: a journal in the workdir."""
    figures: bool = True
    """Draw figures of the results."""
    tensorboard: bool = True
    """Write event files of all members into the workdir's tensorboard/."""
    data_dir: Path | None = None
    """Where prepared datasets live, laid out as TFDS does. Default: a directory of our own in the user's cache."""
    manual_dir: Path | None = None
    """Directory with the four canonical files of mnist, fashion_mnist or kmnist, used instead of their URLs."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache, so that the next run starts sooner."""
    traceback: bool = False  # read from sys.argv by `console.main`, since parsing itself may fail
    """Show where an error comes from."""


def run(args: Args, signals: console.StopSignals) -> None:
    """The command: check everything that can be wrong, then write."""
    for name, value in (("trials", args.trials), ("population", args.population), ("workers", args.workers)):
        if value is not None and not 1 <= value <= 10**6:
            raise InputError(f"{name}={value} is out of range; give a whole number from 1")
    study = experiment_file.load(args.experiment.expanduser(), args.trials)
    path = args.workdir.expanduser().absolute()
    database = args.storage
    if database and (relative := re.fullmatch("sqlite:///([^/].*)", database)):
        database = f"sqlite:///{Path(relative[1]).resolve()}"
    identity = _identity(study, database)
    sweepdir.check(path, identity)
    for config in study.configs():
        splits.check(config.dataset, config.train_split, config.eval_split)
    data_dir = (args.data_dir or data.default_data_dir()).expanduser().absolute()
    manual_dir = args.manual_dir.expanduser().absolute() if args.manual_dir else None
    dataset = data.open_dataset(study.base.dataset, data_dir, manual_dir, console.track)
    study.check_honest(dataset.examples)

    from mnist_flax import ledger, storage

    opened = storage.open_database(database) if database else None  # it may fail: before anything is written
    sweepdir.create(path, identity)
    opened = opened or storage.open_journal(path)
    sweep_id = hashlib.sha256(json.dumps(identity | {"storage": None}, sort_keys=True).encode()).hexdigest()[:12]
    names = [f"{study.path.stem}, {stage}, {sweep_id}" for stage in ("selection", "final")]
    with ledger.Ledger(opened, names[0]) as selecting, ledger.Ledger(opened, names[1]) as testing:
        sweep = stages.Sweep(study, path, selecting, testing)
        console.say(study.question)
        if sweep.left() == 0:
            console.say(f"{path} is finished: nothing to do.")
        elif args.workers > 1 and not args.worker:
            _supervise(args, sweep, signals)
        else:
            _work(args, sweep, dataset, data_dir, signals)
        if not args.worker:
            _conclude(args, sweep)


def _work(args: Args, sweep: stages.Sweep, dataset: data.Dataset, data_dir: Path, signals: console.StopSignals) -> None:
    """Train in this process until the sweep is finished, by whomever."""
    import jax

    from mnist_flax import members, parallel
    from mnist_flax.worker import Worker

    record.commit()  # now: it may be another when a population has ended
    if args.compilation_cache:
        parallel.use_compilation_cache(data.cache_dir() / "xla")
    parallel.use_cores_as_devices(args.workers)

    def fits(config: Config) -> int:
        return args.population or max(1, members.largest(config, dataset) // args.workers)

    with signals.deferred(), Board() as board:
        for ledger, next_stage in ((sweep.selecting, sweep.selection), (sweep.testing, sweep.final)):
            stage = next_stage()
            learns = sweep.study.search and ledger is sweep.selecting
            share = -(-len(stage.members) // (8 if learns else args.workers))
            size = args.population or min(16 * jax.device_count(), share)
            Worker(stage, ledger, dataset, data_dir, fits, board, signals).work(size, lambda: _report(sweep))


def _supervise(args: Args, sweep: stages.Sweep, signals: console.StopSignals) -> None:
    """Start the workers and wait for them; they share the ledger and nothing else."""
    logs = [sweep.path / f"worker-{number}.log" for number in range(1, args.workers + 1)]
    line = [sys.executable, "-m", "mnist_flax.sweep", *sys.argv[1:], "--worker"]
    workers: list[subprocess.Popen[bytes]] = []
    with signals.deferred(), Board() as board:
        try:
            for log in logs:
                with log.open("a") as file:
                    workers.append(subprocess.Popen(line, stdout=file, stderr=file, start_new_session=True))
            board.say(f"{args.workers} workers; their output is in {sweep.path}/worker-*.log")
            while None in [worker.poll() for worker in workers]:  # asks all: who is not asked stays a zombie
                if signals.received:
                    raise console.Stopped(signals.received, f"what was running is saved in {sweep.path}")
                board.watch(*sweep.progress())
                time.sleep(1)
        finally:
            for worker in workers:
                worker.send_signal(signals.received or signal.SIGTERM)
            codes = [worker.wait() for worker in workers]
    if left := sweep.left():
        raise RunError(f"{left} members are left (the workers ended with {codes}); see {logs[0]}, and run again")


def _conclude(args: Args, sweep: stages.Sweep) -> None:
    """Write all results and say the main one."""
    rows = _report(sweep)
    drawn = sweep.path / "figures" / ".drawn"  # of which results
    key = hashlib.sha256((sweep.path / "results.jsonl").read_bytes()).hexdigest()
    if args.figures and not (drawn.exists() and drawn.read_text() == key):
        from mnist_flax.figures import sweep_figures

        importances = sweep.selecting.importances() if sweep.study.search else {}
        with sweepdir.alone(sweep.path):
            drawn.parent.mkdir(exist_ok=True)
            sweep_figures(drawn.parent, rows, sweep.study.search is not None, importances)
            drawn.write_text(key)
    events = sweep.path / "tensorboard"
    if args.tensorboard and len(rows) > (len(list(events.iterdir())) if events.exists() else 0):
        from mnist_flax.events import write_members

        with sweepdir.alone(sweep.path):
            write_members(events, rows)
    _tell_result(rows)
    more = ", figures/" * args.figures + ", tensorboard/" * args.tensorboard
    console.say(f"results in {sweep.path}: summary.md, summary.csv, results.jsonl{more}")


def _tell_result(rows: list[dict[str, Any]]) -> None:
    """Say what was chosen, and both its numbers."""
    summaries, chosen = report.summarize(rows), report.choose(rows)
    for method, configuration in chosen.items():
        own = [each for each in summaries if (each.method, each.overrides) == (method, configuration)]
        told = report.described(configuration, configuration)
        scores = ", ".join(map(_score, own))
        console.say(f"{method + ': ' if method else ''}chosen {told}: {scores}")
    if not chosen:
        console.say("nothing could be chosen: in every configuration a member diverged")


def _score(summary: report.Summary) -> str:
    text = f"{_SAID[summary.stage]} " + ("" if summary.mean is None else f"{100 * summary.mean:.3f} % (n={summary.n})")
    return text + (f" ({summary.diverged} diverged)" if summary.diverged else "")


def _report(sweep: stages.Sweep) -> list[dict[str, Any]]:
    """Write what there is; one process at a time."""
    with sweepdir.alone(sweep.path):
        report.write(sweep.path, rows := sweep.rows())
    return rows


def _identity(study: experiment.Experiment, database: str | None) -> dict[str, Any]:
    """What must not change between two commands on one directory."""
    return {
        "experiment": study.path.name,
        "base": to_json(study.base),
        "final": overrides.plain(study.final),
        "search": hashlib.sha256(study.source().encode()).hexdigest(),
        "storage": sweepdir.without_password(database) if database else "journal",
    }


if __name__ == "__main__":
    console.main(Args, run)

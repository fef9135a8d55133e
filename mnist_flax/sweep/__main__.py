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

from mnist_flax.analysis import labels, tables
from mnist_flax.analysis.summaries import Summary, choose, summarize
from mnist_flax.config import Config, to_json
from mnist_flax.data import datasets, splits
from mnist_flax.errors import InputError, RunError
from mnist_flax.process import cli
from mnist_flax.process.cli import Stopped, StopSignals
from mnist_flax.process.terminal import say, track
from mnist_flax.sweep import directory, experiment_file, stages
from mnist_flax.sweep.experiment import Experiment, to_plain
from mnist_flax.sweep.progress import SweepProgress
from mnist_flax.workdir.run_info import commit

_SAID = {"selection": "validation", "final": "test"}


@dataclass(frozen=True)
class Args:
    """Train every member of an experiment file; the same command again goes on, after this one or at the same time."""

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
    """Database (SQLAlchemy URL) for the trials, where hosts share no file system; each then keeps the checkpoints of
    the members that it has trained, and in one database the same experiment is one sweep, whatever the workdir.
    Default: a journal in the workdir."""
    figures: bool = True
    """Draw figures of the results."""
    tensorboard: bool = True
    """Write event files of all members into the workdir's tensorboard/."""
    data_dir: Path | None = None
    """Where prepared datasets live, laid out as TFDS does. Default: this package's directory in the user's cache."""
    manual_dir: Path | None = None
    """Directory with the four canonical files of mnist, fashion_mnist or kmnist, used instead of their URLs."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache, so that the next run starts sooner."""
    traceback: bool = False  # read from sys.argv by `cli.main`, since parsing itself may fail
    """Show where an error comes from."""


def run(args: Args, signals: StopSignals) -> None:
    """The command: check everything that can be wrong, then write."""
    for name, value in (("trials", args.trials), ("population", args.population), ("workers", args.workers)):
        if value is not None and not 1 <= value <= 10**6:
            raise InputError(f"{name}={value} is out of range; give a whole number from 1")
    experiment = experiment_file.load(args.experiment.expanduser(), args.trials)
    path = args.workdir.expanduser().absolute()
    database = args.storage
    if database and (relative := re.fullmatch("sqlite:///([^/].*)", database)):
        database = f"sqlite:///{Path(relative[1]).resolve()}"
    identity = _identity(experiment, database)
    directory.check(path, identity)
    for config in experiment.configs():
        splits.check(config.dataset, config.train_split, config.eval_split)
    data_dir = (args.data_dir or datasets.default_data_dir()).expanduser().absolute()
    manual_dir = args.manual_dir.expanduser().absolute() if args.manual_dir else None
    dataset = datasets.open_dataset(experiment.base.dataset, data_dir, manual_dir, track)
    experiment.check_no_leakage(dataset.examples)

    from mnist_flax.sweep import storage
    from mnist_flax.sweep.trial_queue import TrialQueue

    opened = storage.open_database(database) if database else None  # it may fail: before anything is written
    directory.create(path, identity)
    opened = opened or storage.open_journal(path)
    sweep_id = hashlib.sha256(json.dumps(identity | {"storage": None}, sort_keys=True).encode()).hexdigest()[:12]
    names = [f"{experiment.path.stem}, {stage}, {sweep_id}" for stage in ("selection", "final")]
    with TrialQueue(opened, names[0]) as selection_queue, TrialQueue(opened, names[1]) as final_queue:
        sweep = stages.Sweep(experiment, path, selection_queue, final_queue)
        say(experiment.question)
        if sweep.left() == 0:
            say(f"{path} is finished: nothing to do.")
        elif args.workers > 1 and not args.worker:
            _supervise(args, sweep, signals)
        else:
            _work(args, sweep, dataset, data_dir, signals)
        if not args.worker:
            _conclude(args, sweep)


def _work(args: Args, sweep: stages.Sweep, dataset: datasets.Dataset, data_dir: Path, signals: StopSignals) -> None:
    """Train in this process until the sweep is finished."""
    import jax

    from mnist_flax import placement
    from mnist_flax.placement import use_compilation_cache
    from mnist_flax.sweep import members
    from mnist_flax.sweep.worker import Worker

    commit()  # now: it may be another when a population has ended
    if args.compilation_cache:
        use_compilation_cache(datasets.cache_dir() / "xla")
    placement.use_cores_as_devices(args.workers)

    def fits(config: Config) -> int:
        return args.population or max(1, members.largest(config, dataset) // args.workers)

    with signals.deferred(), SweepProgress() as progress:
        for queue, next_stage in ((sweep.selection_queue, sweep.selection), (sweep.final_queue, sweep.final)):
            stage = next_stage()
            learns = sweep.experiment.search and queue is sweep.selection_queue
            share = -(-len(stage.members) // (8 if learns else args.workers))
            size = args.population or min(16 * jax.device_count(), share)
            Worker(stage, queue, dataset, data_dir, fits, progress, signals).work(size, lambda: _write_results(sweep))


def _supervise(args: Args, sweep: stages.Sweep, signals: StopSignals) -> None:
    """Start the workers and wait for them; they share the trial queue and nothing else."""
    logs = [sweep.path / f"worker-{number}.log" for number in range(1, args.workers + 1)]
    line = [sys.executable, "-m", "mnist_flax.sweep", *sys.argv[1:], "--worker"]
    workers: list[subprocess.Popen[bytes]] = []
    with signals.deferred(), SweepProgress() as progress:
        try:
            for log in logs:
                with log.open("a") as file:
                    workers.append(subprocess.Popen(line, stdout=file, stderr=file, start_new_session=True))
            progress.say(f"{args.workers} workers; their output is in {sweep.path}/worker-*.log")
            while None in [worker.poll() for worker in workers]:  # asks all: who is not asked stays a zombie
                if signals.received:
                    raise Stopped(signals.received, f"what was running is saved in {sweep.path}")
                progress.watch(*sweep.progress())
                time.sleep(1)
        finally:
            for worker in workers:
                worker.send_signal(signals.received or signal.SIGTERM)
            codes = [worker.wait() for worker in workers]
    if left := sweep.left():
        raise RunError(f"{left} members are left (the workers ended with {codes}); see {logs[0]}, and run again")


def _conclude(args: Args, sweep: stages.Sweep) -> None:
    """Write all results and print the main one."""
    rows = _write_results(sweep)
    drawn = sweep.path / "figures" / ".drawn"  # of which results
    key = hashlib.sha256((sweep.path / "results.jsonl").read_bytes()).hexdigest()
    if args.figures and not (drawn.exists() and drawn.read_text() == key):
        from mnist_flax.analysis.sweep_figures import sweep_figures

        importances = sweep.selection_queue.importances() if sweep.experiment.search else {}
        with directory.locked(sweep.path):
            drawn.parent.mkdir(exist_ok=True)
            sweep_figures(drawn.parent, rows, sweep.experiment.search is not None, importances)
            drawn.write_text(key)
    events = sweep.path / "tensorboard"
    if args.tensorboard and len(rows) > (len(list(events.iterdir())) if events.exists() else 0):
        from mnist_flax.monitor.tensorboard import write_members

        with directory.locked(sweep.path):
            write_members(events, rows)
    _print_result(rows)
    more = ", figures/" * args.figures + ", tensorboard/" * args.tensorboard
    say(f"results in {sweep.path}: summary.md, summary.csv, results.jsonl{more}")


def _print_result(rows: list[dict[str, Any]]) -> None:
    """Print what was chosen, with its validation and its test accuracy."""
    summaries, chosen = summarize(rows), choose(rows)
    for method, configuration in chosen.items():
        of_chosen = [each for each in summaries if (each.method, each.overrides) == (method, configuration)]
        described = labels.described(configuration, configuration)
        scores = ", ".join(map(_score, of_chosen))
        say(f"{method + ': ' if method else ''}chosen {described}: {scores}")
    if not chosen:
        say("nothing could be chosen: in every configuration a member diverged")


def _score(summary: Summary) -> str:
    text = f"{_SAID[summary.stage]} " + ("" if summary.mean is None else f"{100 * summary.mean:.3f} % (n={summary.n})")
    return text + (f" ({summary.diverged} diverged)" if summary.diverged else "")


def _write_results(sweep: stages.Sweep) -> list[dict[str, Any]]:
    """Write what there is; one process at a time."""
    with directory.locked(sweep.path):
        tables.write_tables(sweep.path, rows := sweep.rows())
    return rows


def _identity(experiment: Experiment, database: str | None) -> dict[str, Any]:
    """What must be the same in every command on one directory."""
    return {
        "experiment": experiment.path.name,
        "base": to_json(experiment.base),
        "final": to_plain(experiment.final),
        "search": hashlib.sha256(experiment.source().encode()).hexdigest(),
        "storage": directory.without_password(database) if database else "journal",
    }


if __name__ == "__main__":
    cli.main(Args, run)

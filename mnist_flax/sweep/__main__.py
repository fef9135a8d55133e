"""Train every member of an experiment, many as one program. The same command again continues, or joins from elsewhere.

python -m mnist_flax.sweep experiments/regularization.py --workdir sweeps/regularization --workers 2
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from mnist_flax.config import Config, to_json
from mnist_flax.data import datasets, splits
from mnist_flax.errors import InputError, wrong
from mnist_flax.process import cli, files
from mnist_flax.process.signals import StopSignals
from mnist_flax.process.terminal import say, track
from mnist_flax.sweep import directory, experiment_file, results, stages, supervisor
from mnist_flax.sweep.experiment import Experiment, to_plain
from mnist_flax.sweep.progress import SweepProgress
from mnist_flax.workdir.run_info import commit

_OTHER_FILES = 256  # that a worker may need besides


@dataclass(frozen=True)
class Args:
    """Train every member of an experiment file; the same command again continues the sweep, or joins a running one."""

    experiment: tyro.conf.Positional[Path]
    """The experiment file, such as experiments/regularization.py."""
    workdir: Path
    """Directory of the sweep; created if it is missing."""
    trials: int | None = None
    """Members of a search. Default: its TRIALS; a larger number continues a finished search."""
    population: int | None = None
    """Members trained as one program. Default: what fits into memory, at most 16 per device; for a search at most an
    eighth of its trials, so that later trials learn from earlier ones."""
    workers: int = 1
    """Worker processes on this host; they share the CPU's cores."""
    worker: bool = False
    """Be one of the --workers, instead of starting them."""
    storage: str | None = None
    """Database (SQLAlchemy URL) for the trials, for hosts that share no file system. Each host keeps the checkpoints of
    the members that it trains. In one database the same experiment is one sweep, whatever the workdir. Default: a
    journal in the workdir."""
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
    """Check everything that can be wrong before anything is written, then train and write the results."""
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

    # It may fail: before anything is written. A worker's supervisor has opened it.
    opened = storage.open_database(database, wait=args.worker) if database else None
    directory.create(path, identity)
    opened = opened or storage.open_journal(path)
    sweep_id = hashlib.sha256(json.dumps(identity | {"storage": None}, sort_keys=True).encode()).hexdigest()[:12]
    names = [f"{experiment.path.stem}, {stage}, {sweep_id}" for stage in ("selection", "final")]
    with TrialQueue(opened, names[0]) as selection_queue, TrialQueue(opened, names[1]) as final_queue:
        sweep = stages.Sweep(experiment, path, selection_queue, final_queue)
        say(experiment.question)
        if sweep.current().left() == 0:
            say(f"{path} is finished: nothing to do.")
        elif args.workers > 1 and not args.worker:
            supervisor.train(sweep, args.workers, signals)
        else:
            _work(args, sweep, dataset, data_dir, signals)
        if not args.worker:
            results.finish(sweep, figures=args.figures, tensorboard=args.tensorboard)


def _work(args: Args, sweep: stages.Sweep, dataset: datasets.Dataset, data_dir: Path, signals: StopSignals) -> None:
    """Train in this process until the sweep is finished."""
    import jax

    from mnist_flax import placement
    from mnist_flax.sweep import members
    from mnist_flax.sweep.worker import Worker

    supervisor.stop_with_it()
    commit()  # read it now, once: the repository may have another commit when a population ends
    if args.compilation_cache:
        placement.use_compilation_cache(datasets.cache_dir() / "xla")
    placement.use_cores_as_devices(args.workers)

    def fits(config: Config) -> int:
        return args.population or max(1, members.largest(config, dataset) // args.workers)

    with signals.deferred(), SweepProgress() as progress:
        for next_stage in (sweep.selection, sweep.final):
            stage = next_stage()
            parts = 8 if sweep.experiment.search and stage.name == "selection" else args.workers
            size = args.population or min(16 * jax.device_count(), -(-len(stage.members) // parts))
            if not files.allow_open(size + _OTHER_FILES):  # each running member holds its lock
                raise wrong("population", size, "needs more open files than the system allows", "give a smaller one")
            Worker(stage, dataset, data_dir, fits, progress, signals).work(size, lambda: results.write(sweep))


def _identity(experiment: Experiment, database: str | None) -> dict[str, Any]:
    """What every command on one sweep must agree in, in JSON values."""
    return {
        "experiment": experiment.path.name,
        "base": to_json(experiment.base),
        "final": to_plain(experiment.final),
        "search": hashlib.sha256(experiment.source().encode()).hexdigest(),
        "storage": directory.without_password(database) if database else "journal",
    }


if __name__ == "__main__":
    cli.main(Args, run)

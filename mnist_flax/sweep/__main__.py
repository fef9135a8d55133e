"""Train every member of an experiment, many as one program. The same command again continues, or joins from elsewhere.

python -m mnist_flax.sweep experiments/regularization.py --workdir sweeps/regularization --workers 2
"""

import contextlib
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.config import Config
from mnist_flax.data import datasets, splits
from mnist_flax.errors import InputError, wrong
from mnist_flax.process import cli, files
from mnist_flax.process.signals import StopSignals
from mnist_flax.process.terminal import say, track
from mnist_flax.sweep import directory, experiment_file, results, stages, supervisor
from mnist_flax.sweep.adapt import Halving, PopulationBased
from mnist_flax.sweep.args import Args
from mnist_flax.sweep.experiment import Experiment
from mnist_flax.sweep.progress import SweepProgress
from mnist_flax.sweep.remaining import Remaining
from mnist_flax.workdir.run_info import commit

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from mnist_flax.sweep.worker import Worker

_OTHER_FILES = 256  # that a worker may need besides


def run(args: Args, signals: StopSignals) -> None:
    """Check everything that can be wrong before anything is written, then train and write the results."""
    for name, value in (("trials", args.trials), ("population", args.population), ("workers", args.workers)):
        if value is not None and not 1 <= value <= 10**6:
            raise InputError(f"{name}={value} is out of range; give a whole number from 1")
    cli.refuse_float64()
    experiment = experiment_file.load(args.experiment.expanduser(), args.trials)
    _check_adapt(args, experiment)
    path = args.workdir.expanduser().absolute()
    database = args.storage
    if database and (relative := re.fullmatch("sqlite:///([^/].*)", database)):
        database = f"sqlite:///{Path(relative[1]).resolve()}"
    identity = directory.identity(experiment, database)
    earlier = directory.check(path, identity)
    for config in experiment.configs():
        splits.check(config.dataset, config.train_split, config.eval_split)
    data_dir = (args.data_dir or datasets.default_data_dir()).expanduser().absolute()
    manual_dir = args.manual_dir.expanduser().absolute() if args.manual_dir else None
    dataset = datasets.open_dataset(experiment.base.dataset, data_dir, manual_dir, track)
    experiment.check_no_leakage(dataset.examples)

    from mnist_flax.sweep import growth
    from mnist_flax.sweep.trial_checks import check_trials
    from mnist_flax.sweep.trial_queue import TrialQueue

    names = [directory.study_names(identity, earlier, stage) for stage in ("selection", "final")]
    opened = _open(args, experiment, path, database, identity, names)
    seed = experiment.base.hparams.seed
    with TrialQueue(opened, names[0][-1], seed) as selection_queue, TrialQueue(opened, names[1][-1]) as final_queue:
        for queue in (selection_queue, final_queue):
            check_trials(queue.study.get_trials(deepcopy=False))
        sweep = stages.Sweep(experiment, path, selection_queue, final_queue)
        say(experiment.question)
        left = sweep.current().left()
        if left and earlier and not args.worker:
            say(f"BASE.epochs={experiment.base.epochs} (before {earlier[-1]}): {growth.described(sweep.current())}")
        if args.replay is not None and args.out:
            _replay(args, sweep, dataset, data_dir, signals)
            return
        if args.dry_run:
            _show_plan(args, sweep, dataset, data_dir)
            return
        if left == 0:
            say(f"{path} is finished: nothing to do.")
        elif args.workers > 1 and not args.worker:
            supervisor.train(sweep, args.workers, Remaining(sweep, dataset.examples), signals)
        else:
            _work(args, sweep, dataset, data_dir, signals)
        if not args.worker:
            results.finish(sweep, figures=args.figures, tensorboard=args.tensorboard)


def _check_adapt(args: Args, experiment: Experiment) -> None:
    """Raise `InputError` for flags that do not fit the file's `ADAPT`, or each other."""
    most, members = args.population or 10**6, len(experiment.grid) or experiment.trials
    if isinstance(experiment.adapt, PopulationBased) and most < members:
        problem = f"is less than the {members} members of the PopulationBased, which train together"
        raise wrong("population", most, problem, "leave it out, or give fewer members")
    if (args.replay is None) != (args.out is None):
        raise InputError("--replay MEMBER and --out DIR belong together; give both or neither")


def _open(
    args: Args, experiment: Experiment, path: Path, database: str | None, identity: dict[str, Any],
    names: list[list[str]],
) -> "BaseStorage":  # fmt: skip
    """Open the storage of the trials, create what is missing, and let the members of fewer epochs go on."""
    from mnist_flax.sweep import growth, storage

    opened = None
    only_read = args.dry_run or args.replay is not None
    if only_read:
        from mnist_flax.sweep import plan

        opened = plan.snapshot(path, database, sum(names, []))
    elif database:  # it may fail: before anything is written; a worker's supervisor has opened it
        opened = storage.open_database(database, wait=args.worker)
    elif len(names[0]) > 1:
        opened = storage.open_journal(path)
    if opened and len(names[0]) > 1:
        growth.check(opened, names[0], path / "members", experiment.config)
        growth.check(opened, names[1], path / "final", experiment.final_config)
    if not only_read:
        directory.create(path, identity)
    opened = opened or storage.open_journal(path)
    if len(names[0]) > 1:
        with contextlib.nullcontext() if only_read else directory.locked(path):
            for each in names:
                growth.copy_members(opened, each)
    return opened


def _prepare(args: Args, dataset: datasets.Dataset) -> Callable[[Config], int]:
    """Prepare JAX for this worker; returns how many members of a config are trained together at most."""
    from mnist_flax import placement
    from mnist_flax.sweep import members

    if args.compilation_cache:
        placement.use_compilation_cache(datasets.cache_dir() / "xla")
    placement.use_cores_as_devices(args.workers)

    @functools.cache
    def fits(config: Config) -> int:
        return args.population or max(1, members.largest(config, dataset) // args.workers)

    return fits


def _claim_size(args: Args, stage: stages.Stage) -> int:
    """How many members of a stage a worker claims at once."""
    import jax

    parts = 8 if stage.experiment.search and stage.name == "selection" else args.workers
    size = args.population or min(16 * jax.device_count(), -(-len(stage.members) // parts))
    if stage.name == "selection" and isinstance(stage.experiment.adapt, PopulationBased):
        size = len(stage.members)
    if not files.allow_open(size + _OTHER_FILES):  # each running member holds its lock
        raise wrong("population", size, "needs more open files than the system allows", "give a smaller one")
    return size


def _show_plan(args: Args, sweep: stages.Sweep, dataset: datasets.Dataset, data_dir: Path) -> None:
    """Measure a few steps of every program, and print what the command without --dry-run would do."""
    from mnist_flax.sweep import plan

    fits, claim_size = _prepare(args, dataset), functools.partial(_claim_size, args)
    say(plan.described(sweep, dataset, data_dir, claim_size, fits, args.workers, figures=args.figures))


def _replay(args: Args, sweep: stages.Sweep, dataset: datasets.Dataset, data_dir: Path, signals: StopSignals) -> None:
    """Train the lineage of one member as a lone run."""
    from mnist_flax.sweep.replay import replay
    from mnist_flax.train.__main__ import Args as TrainArgs

    assert args.replay is not None and args.out
    config = sweep.experiment.base
    info = datasets.dataset_info(dataset, config.train_split, config.eval_split, data_dir)
    flags: dict[str, Any] = {name: getattr(args, name) for name in ("data_dir", "manual_dir", "compilation_cache")}
    out = args.out.expanduser().absolute()
    train_args = TrainArgs(out, config, figures=args.figures, tensorboard=args.tensorboard, **flags)
    replay(sweep, args.replay, out, info, train_args, signals)


def _work(args: Args, sweep: stages.Sweep, dataset: datasets.Dataset, data_dir: Path, signals: StopSignals) -> None:
    """Train in this process until the sweep is finished."""
    from mnist_flax.sweep.worker import Worker

    supervisor.stop_with_it()
    commit()  # read it now, once: the repository may have another commit when a population ends
    fits = _prepare(args, dataset)
    with signals.deferred(), SweepProgress(Remaining(sweep, dataset.examples)) as progress:
        for next_stage in (sweep.selection, sweep.final):
            stage = next_stage()
            worker = _worker(Worker(stage, dataset, data_dir, fits, progress, signals))
            worker.work(_claim_size(args, stage), results.now_and_then(sweep))
    if args.worker:  # its last results; `finish` writes those of a sweep without workers
        results.write(sweep)


def _worker(plain: "Worker") -> "Worker":
    """The worker that trains a stage: the selection by the experiment's `ADAPT`."""
    from mnist_flax.sweep.decisions import Decisions
    from mnist_flax.sweep.halving import HalvingWorker
    from mnist_flax.sweep.population import PopulationWorker
    from mnist_flax.sweep.rungs import ReportLog

    stage, adapt = plain.stage, plain.stage.experiment.adapt
    if stage.name == "selection" and isinstance(adapt, Halving):
        return HalvingWorker(**vars(plain), decisions=Decisions(stage, adapt, ReportLog(stage.queue)))
    if stage.name == "selection" and isinstance(adapt, PopulationBased):
        return PopulationWorker(**vars(plain), method=adapt, seed=stage.experiment.base.hparams.seed)
    return plain


if __name__ == "__main__":
    cli.main(Args, run)

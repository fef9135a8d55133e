"""Train a network into a directory; run the same command again to resume, or to hear that it is done.

python -m mnist_flax.train --workdir exp1 --epochs 10 --learning-rate 3e-4
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_flax.config import Config, flatten
from mnist_flax.data import datasets, splits
from mnist_flax.errors import InputError, RunError
from mnist_flax.monitor.async_writer import AsyncWriter, RunFinished, RunStarted
from mnist_flax.process import cli
from mnist_flax.process.files import write_lines
from mnist_flax.process.signals import Stopped, StopSignals
from mnist_flax.process.terminal import Progress, mute, say, track, warn
from mnist_flax.workdir import claim, run_info
from mnist_flax.workdir.run_info import RunInfo, changed_versions, commit, versions

if TYPE_CHECKING:  # what needs JAX is imported when the arguments are known to be right: --help must be fast
    from jax.sharding import Mesh

    from mnist_flax.compiled import RunDriver
    from mnist_flax.monitor.run_log import RunLog
    from mnist_flax.program import Program
    from mnist_flax.state import TrainState


@dataclass(frozen=True)
class Args:
    """Train the network. The defaults are the Keras tutorial; the same command again resumes."""

    workdir: Path
    """Directory of the run; created, resumed, or found finished."""
    config: Config = field(default_factory=Config)
    data_dir: Path | None = None
    """Where prepared datasets live, laid out as TFDS does. Default: this package's directory in the user's cache."""
    manual_dir: Path | None = None
    """Directory with the four canonical files of mnist, fashion_mnist or kmnist, used instead of their URLs."""
    figures: bool = True
    """Draw the first training images, and how loss and accuracy went, into the workdir's figures/."""
    tensorboard: bool = True
    """Write event files into the workdir's tensorboard/."""
    distributed: bool = False
    """Be one of several processes that train together, on this host or many; all see the workdir, one writes it."""
    coordinator: str | None = None
    """Host and port of process 0. Default, as of the next two: what Slurm, Kubernetes, Cloud TPU or Open MPI say."""
    num_processes: int | None = None
    """How many processes train together."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache, so that the next run starts sooner."""
    traceback: bool = False  # read from sys.argv by `cli.main`, since parsing itself may fail
    """Show where an error comes from."""


def run(args: Args, signals: StopSignals) -> None:
    """The command: check everything that can be wrong, then write."""
    path, config = args.workdir.expanduser().absolute(), args.config
    claim.check(path, config)
    splits.check(config.dataset, config.train_split, config.eval_split)
    _check_processes(args)

    with AsyncWriter(figures=args.figures, tensorboard=args.tensorboard) as writer:  # starts during the imports
        from mnist_flax import placement
        from mnist_flax.placement import use_compilation_cache
        from mnist_flax.process import distributed

        if args.compilation_cache:
            use_compilation_cache(datasets.cache_dir() / "xla")
        if args.distributed:
            distributed.join(args.coordinator, args.num_processes, args.process_id)
            if not distributed.is_leader():
                mute()
                writer.cancel()
            distributed.check_same({"workdir": str(path)} | flatten(config) | versions() | {"commit": commit()})
        mesh = placement.data_mesh(config.batch_size)
        data_dir = (args.data_dir or datasets.default_data_dir()).expanduser().absolute()
        manual_dir = args.manual_dir.expanduser().absolute() if args.manual_dir else None
        dataset = datasets.open_dataset(config.dataset, data_dir, manual_dir, track)
        info = datasets.dataset_info(dataset, config.train_split, config.eval_split, data_dir)
        distributed.check_same({name: value for name, value in info.items() if name != "data_dir"})
        _check_splits(path, config, dataset)
        with contextlib.ExitStack() as stack:
            ours = run_info.new(config, info)
            recorded = stack.enter_context(claim.claim(path, ours)) if distributed.is_leader() else ours
            if changed := changed_versions(recorded):
                others = ", ".join(changed)
                warn(f"this run began under other versions, so its last digits may differ: {others}")
            distributed.wait_for_all("claimed")
            train(path, recorded, dataset, mesh, signals, writer)


def _check_processes(args: Args) -> None:
    values = args.coordinator, args.num_processes, args.process_id
    if values == (None, None, None):
        return
    if not args.distributed or args.coordinator is None or args.num_processes is None or args.process_id is None:
        given = f"coordinator={values[0]!r}, num_processes={values[1]}, process_id={values[2]}"
        raise InputError(f"{given}: give all three together with --distributed, or none of them")
    if not 0 <= args.process_id < args.num_processes:
        raise InputError(f"process_id={args.process_id} is out of range; give 0 to {args.num_processes - 1}")


def _check_splits(path: Path, config: Config, dataset: datasets.Dataset) -> None:
    """Refuse a new run that would be evaluated on examples that it is trained on; warn of an older one."""
    try:
        splits.check_disjoint(config.train_split, config.eval_split, dataset.examples)
    except InputError as error:
        if not claim.is_run(path):
            raise
        warn(str(error))


def train(
    path: Path, run: RunInfo, dataset: datasets.Dataset, mesh: "Mesh", signals: StopSignals, writer: AsyncWriter
) -> None:
    """Train from the latest checkpoint of a claimed workdir, or from the start, to the end."""
    from mnist_flax.compiled import RunDriver
    from mnist_flax.monitor.graph import training_graph
    from mnist_flax.monitor.run_log import RunLog, print_run_summary
    from mnist_flax.process import distributed
    from mnist_flax.state import inference_variables
    from mnist_flax.workdir.resume import resume

    config, leads = run.config, distributed.is_leader()
    train_split, eval_split = dataset.read(config.train_split), dataset.read(config.eval_split)
    program, start, state, history = resume(path, run, warn=warn, set_aside=leads)
    distributed.check_same({"the latest checkpoint's step": start})
    if leads:
        write_lines(claim.metrics_file(path), history["history"])
    log = RunLog(path if leads else None, config, program, history, writer)
    if start == program.total_steps:
        say(f"{path} is finished: nothing to do. {log.result()}")
        return
    driver = RunDriver(config, program, train_split, eval_split, mesh)
    state = driver.init() if state is None else driver.place(state)
    graph = training_graph(program.model, inference_variables(state), program.image_shape)
    writer.send(RunStarted(path, config, dataset, graph, start, [*history["history"]]))
    print_run_summary(run, program, start)
    _run_loop(path, config, program, driver, state, start, log, signals)
    writer.send(RunFinished())
    writer.close()
    say(f"{log.result()} Saved in {path}")
    distributed.wait_for_all("finished")


def _run_loop(
    path: Path, config: Config, program: "Program", driver: "RunDriver", state: "TrainState", start: int, log: "RunLog",
    signals: StopSignals,
) -> None:  # fmt: skip
    """Run the loop to its end: log every call, save where the plan says so, stop when a signal says so."""
    from mnist_flax.loop import fit, make_plan, not_finite
    from mnist_flax.process import distributed
    from mnist_flax.workdir import checkpoint

    directory, saved = claim.checkpoints_dir(path), start
    stop: int | None = None  # the signal that asked for it
    plan = make_plan(config, program.steps_per_epoch)
    events = fit(driver, state, start=start, plan=plan, needs_state=lambda: stop is not None)
    with signals.deferred(), Progress(program.total_steps, start) as progress:
        for call, event in enumerate(distributed.until_a_process_ends(events)):
            stop = stop or distributed.stop_signal(call, signals.received)
            if bad := not_finite(event):
                raise RunError(f"{bad.what}; {_last_good(directory, saved)}; try a smaller learning_rate")
            try:
                log.update(event, progress)
                if event.state is not None:
                    log.flush()
                    checkpoint.save(directory, event.step, event.state, log.history, keep=config.keep)
                    claim.check_still_there(path)
                    claim.mark_saved(path)
                    saved = event.step
            except OSError as error:
                raise RunError(f"step {event.step}: {error}; {_last_good(directory, saved)}") from error
            if stop and event.state is not None and event.step < program.total_steps:
                where = f"step {saved} is saved in {directory / str(saved)}; the same command goes on from there"
                raise Stopped(stop, where)


def _last_good(directory: Path, saved: int) -> str:
    return f"the last good checkpoint is {directory / str(saved)}" if saved else "no checkpoint was saved before it"


if __name__ == "__main__":
    cli.main(Args, run)

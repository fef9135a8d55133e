"""Train a network into a directory; run the same command again to resume, or to hear that it is done.

python -m mnist_flax.train --workdir exp1 --epochs 10 --learning-rate 3e-4
"""

import contextlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax import console, data, record, splits, workdir, writer
from mnist_flax.config import Config, InputError, RunError
from mnist_flax.scribe import Begin, End, Scribe

if TYPE_CHECKING:  # what needs jax is imported when the arguments are known to be right: --help must be fast
    from mnist_flax.model import MLP
    from mnist_flax.state import MakeTx


@dataclass(frozen=True)
class Args:
    """Train the network. The defaults are the Keras tutorial; the same command again resumes."""

    workdir: Path
    """Directory of the run; created, resumed, or found finished."""
    config: Config = field(default_factory=Config)
    data_dir: Path | None = None
    """Where prepared datasets live, laid out as TFDS does. Default: a directory of our own in the user's cache."""
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
    traceback: bool = False  # read from sys.argv by `console.main`, since parsing itself may fail
    """Show where an error comes from."""


def run(args: Args, signals: console.StopSignals) -> None:
    """The command: check everything that can be wrong, then write."""
    path, config = args.workdir.expanduser().absolute(), args.config
    workdir.check(path, config)
    splits.check(config.dataset, config.train_split, config.eval_split)
    _check_processes(args)

    with Scribe(figures=args.figures, tensorboard=args.tensorboard) as scribe:  # it gets ready beside the imports
        from mnist_flax import parallel

        if args.compilation_cache:
            parallel.use_compilation_cache(data.cache_dir() / "xla")
        if args.distributed:
            parallel.join(args.coordinator, args.num_processes, args.process_id)
            if not parallel.is_leader():
                console.mute()
                scribe.dismiss()
        mesh = parallel.make_mesh(config.batch_size)
        data_dir = (args.data_dir or data.default_data_dir()).expanduser().absolute()
        manual_dir = args.manual_dir.expanduser().absolute() if args.manual_dir else None
        dataset = data.open_dataset(config.dataset, data_dir, manual_dir, console.track)
        facts = data.facts(dataset, config.train_split, config.eval_split, data_dir)
        with contextlib.ExitStack() as claim:
            ours = record.Run(config, facts, record.versions())
            recorded = claim.enter_context(workdir.claim(path, ours)) if parallel.is_leader() else ours
            if changed := record.changed_versions(recorded):
                others = ", ".join(changed)
                console.warn(f"this run began under other versions, so its last digits may differ: {others}")
            parallel.wait_for_all("claimed")
            train(path, recorded, dataset, mesh, signals, scribe)


def _check_processes(args: Args) -> None:
    values = args.coordinator, args.num_processes, args.process_id
    if values == (None, None, None):
        return
    if not args.distributed or args.coordinator is None or args.num_processes is None or args.process_id is None:
        told = f"coordinator={values[0]!r}, num_processes={values[1]}, process_id={values[2]}"
        raise InputError(f"{told}: give all three together with --distributed, or none of them")
    if not 0 <= args.process_id < args.num_processes:
        raise InputError(f"process_id={args.process_id} is out of range; give 0 to {args.num_processes - 1}")


def train(
    path: Path,
    recorded: record.Run,
    dataset: data.Dataset,
    mesh: Any,
    signals: console.StopSignals,
    scribe: Scribe,
) -> None:
    """Train from the latest checkpoint of a claimed workdir, or from the start, to the end."""
    from mnist_flax import checkpoint, fit, parallel
    from mnist_flax.graph import training_graph
    from mnist_flax.log import Log, introduce
    from mnist_flax.state import as_arrays, make_model, make_optimizer

    config, shape = recorded.config, tuple(recorded.data["image_shape"])
    train_split, eval_split = dataset.read(config.train_split), dataset.read(config.eval_split)
    plan = fit.make_plan(config, len(train_split.labels))
    model = make_model(config, len(recorded.data["class_names"]))
    make_tx = make_optimizer(config, plan.steps_per_epoch)
    directory, leads = workdir.checkpoints(path), parallel.is_leader()
    start, state, info = _restore_or_init(path, recorded, model, make_tx)
    if leads:
        writer.rewrite(workdir.metrics_file(path), info["history"])
    log = Log(path if leads else None, config, make_tx, info, scribe)
    if start == plan.total_steps:
        console.say(f"{path} is finished: nothing to do. {log.result()}")
        return
    scribe.tell(Begin(path, config, dataset, training_graph(model, state, shape), start, [*info["history"]]))
    introduce(recorded, model, plan, start)

    place = partial(parallel.replicate, mesh=mesh)
    hparams, train_arrays, eval_arrays = map(place, (as_arrays(config.hparams), tuple(train_split), tuple(eval_split)))
    eval_batches = parallel.shard_batches(data.eval_batches(len(eval_split.labels), config.eval_batch_size), mesh)
    events = fit.fit(
        place(state),
        start=start,
        plan=plan,
        order=lambda epoch: data.epoch_batches(len(train_split.labels), config.batch_size, config.hparams.seed, epoch),
        train=lambda state, batches: fit.train_steps(
            state, hparams, train_arrays, parallel.shard_batches(batches, mesh), model=model, make_tx=make_tx
        ),
        evaluate=lambda state: parallel.readable(
            fit.eval_steps(state, hparams, eval_arrays, eval_batches, model=model)
        ),
        wanted=lambda: stop is not None,
    )
    saved = start
    stop: int | None = None  # the signal that asked for it
    with signals.deferred(), console.Progress(plan.total_steps, start) as progress:
        for call, event in enumerate(parallel.until_a_process_ends(events)):
            stop = stop or parallel.stop_signal(call, signals.received)
            if what := fit.not_finite(event):
                raise RunError(f"{what}; {_last_good(directory, saved)}; try a smaller learning_rate")
            try:
                log.record(event, progress)
                if event.state is not None:
                    log.settle()
                    checkpoint.save(directory, event.step, event.state, log.info, keep=config.keep)
                    workdir.check_still_there(path)
                    workdir.mark_saved(path)
                    saved = event.step
            except OSError as error:
                raise RunError(f"step {event.step}: {error}; {_last_good(directory, saved)}") from error
            if stop and event.state is not None and event.step < plan.total_steps:
                where = f"step {saved} is saved in {directory / str(saved)}; the same command goes on from there"
                raise console.Stopped(stop, where)
    scribe.tell(End())
    scribe.close()
    console.say(f"{log.result()} Saved in {path}")
    parallel.wait_for_all("finished")


def _restore_or_init(path: Path, recorded: record.Run, model: "MLP", make_tx: "MakeTx") -> tuple[int, Any, dict]:
    """Finished updates, the state behind them, and what its checkpoint knows of the run."""
    import jax

    from mnist_flax import checkpoint, parallel
    from mnist_flax.log import new_info
    from mnist_flax.state import as_arrays, init_state

    directory, hparams = workdir.checkpoints(path), as_arrays(recorded.config.hparams)
    init = partial(init_state, model=model, make_tx=make_tx, image_shape=tuple(recorded.data["image_shape"]))
    checkpoint.clean(directory)
    if checkpoint.exists(directory):
        like, identity = jax.eval_shape(init, hparams), record.identity_of(recorded)
        leads = parallel.is_leader()
        return checkpoint.restore(directory, "latest", identity=identity, like=like, warn=console.warn, set_aside=leads)
    if workdir.was_saved(path):
        raise RunError(f"{directory} had checkpoints and has none now; restore them, or start in another --workdir")
    return 0, jax.jit(init)(hparams), new_info(recorded)


def _last_good(directory: Path, saved: int) -> str:
    return f"the last good checkpoint is {directory / str(saved)}" if saved else "no checkpoint was saved before it"


if __name__ == "__main__":
    console.main(Args, run)

"""Train one run to its end: from its latest checkpoint, or from its beginning.

train(path, run_info, dataset, mesh, signals, writer)  # the directory is claimed
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from mnist_flax import loop
from mnist_flax.data import datasets
from mnist_flax.drivers import RunDriver
from mnist_flax.errors import InputError, RunError
from mnist_flax.monitor.async_writer import AsyncWriter, RunFinished, RunStarted
from mnist_flax.monitor.graph import training_graph
from mnist_flax.monitor.profile import traced
from mnist_flax.monitor.run_log import RunLog, print_run_summary
from mnist_flax.process import distributed
from mnist_flax.process.files import write_lines
from mnist_flax.process.signals import Interrupts, Stopped, StopSignals
from mnist_flax.process.terminal import Progress, say, warn
from mnist_flax.program import Program
from mnist_flax.state import TrainState, inference_variables
from mnist_flax.train import card
from mnist_flax.train.init_from import first_state
from mnist_flax.workdir import checkpoint, claim
from mnist_flax.workdir.resume import resume
from mnist_flax.workdir.run_info import RunInfo
from mnist_flax.workdir.saver import Saver


def train(
    path: Path, run: RunInfo, dataset: datasets.Dataset, mesh: Mesh, signals: StopSignals | Interrupts,
    writer: AsyncWriter, profile: Path | None,
) -> None:  # fmt: skip
    """Train from the latest checkpoint of a claimed workdir, or from the start, to the end.

    `profile`: a directory for a trace of some calls; the first of several processes writes one.
    """
    config, leads = run.config, distributed.is_leader()
    with distributed.refused_together():
        train_split, eval_split = dataset.read(config.train_split), dataset.read(config.eval_split)
        program, start, state, history = resume(path, run, warn=warn, set_aside=leads)
    distributed.check_same({"the latest checkpoint's step": start})
    if leads:
        write_lines(claim.metrics_file(path), history["history"])
    log = RunLog(path if leads else None, config, program, history, writer)
    if start == program.total_steps:
        say(f"{path} is finished: nothing to do. {log.result()}")
        if profile:
            warn(f"profile={str(profile)!r} has no trace of steps: nothing was trained")
        return
    if any(step % program.steps_per_epoch for step in run.hparams_by_step):
        raise InputError(
            f"{path}: hparams_by_step changes inside an epoch of {program.steps_per_epoch} steps; restore it"
        )
    driver = RunDriver(run.config_at(start), program, train_split, eval_split, mesh)
    log.use(run.config_at(start))
    if state is None:
        state = driver.init()
        state = driver.place(first_state(jax.device_get(state), run)) if run.initial else state
    else:
        state = driver.place(state)
    variables = inference_variables(state)
    print_run_summary(run, program, variables, start)
    graph = training_graph(program.model, variables, program.image_shape)
    writer.send(RunStarted(path, config, dataset, graph, start, [*history["history"]]))
    write_card = functools.partial(card.write, path, run, history["history"], eval_split.labels)
    write_card, profile = (write_card, profile) if leads else (None, None)
    _run_loop(path, run, program, driver, state, start, log, write_card, profile, signals)
    writer.send(RunFinished())
    writer.close()
    say(f"{log.result()} Saved in {path}")
    distributed.wait_for_all("finished")


def _run_loop(
    path: Path, run: RunInfo, program: Program, driver: RunDriver, state: TrainState, start: int, log: RunLog,
    write_card: Callable[[np.ndarray | None], None] | None, profile: Path | None, signals: StopSignals | Interrupts,
) -> None:  # fmt: skip
    """Run the loop to its end: log every call, save where the plan says so, stop when a signal says so."""
    directory, config = claim.checkpoints_dir(path), run.config
    stop: int | None = None  # the signal that asked for it
    plan = loop.make_plan(config, program.steps_per_epoch)
    events = loop.run(driver, state, start=start, plan=plan, needs_state=lambda: stop is not None)
    with signals.deferred(), Progress(program.total_steps, start) as progress, Saver(path, config.keep) as saver:
        for call, event in enumerate(distributed.until_a_process_ends(traced(events, profile))):
            stop = stop or distributed.stop_signal(call, signals.received)
            if bad := loop.not_finite(event):
                saver.wait()
                if distributed.is_leader():
                    claim.mark_diverged(path)
                raise RunError(f"{bad.what}; {checkpoint.last_good(directory)}; try a smaller learning_rate")
            try:
                log.update(event, progress)
                if event.state is not None:
                    log.flush()
                    if write_card and event.step == program.total_steps:  # first: a run that is finished has one
                        write_card(event.logits)
                    saver.save(event.step, event.state, log.history)
            except OSError as error:
                saver.wait()
                raise RunError(f"step {event.step}: {error}; {checkpoint.last_good(directory)}") from error
            if event.evaluation is not None and run.hparams_by_step:  # the next epoch's batches come after this
                driver.use(run.config_at(event.step))
                log.use(run.config_at(event.step))
            if stop and event.state is not None and event.step < program.total_steps:
                saver.wait()
                where = f"step {event.step} is saved in {directory / str(event.step)}"
                raise Stopped(stop, f"{where}; the same command goes on from there")

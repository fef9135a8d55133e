"""Train the lineage of one member of a population again, as a lone run: each ancestor's steps, and then its own.

replay(sweep, "0003", Path("replayed"), dataset_info, train_args, signals)
"""

import dataclasses
from pathlib import Path
from typing import Any

from mnist_flax.config import from_json, to_json
from mnist_flax.errors import wrong
from mnist_flax.process.signals import StopSignals
from mnist_flax.sweep.stages import Sweep
from mnist_flax.train import __main__ as command
from mnist_flax.workdir import claim, run_info
from mnist_flax.workdir.run_info import RunInfo


def replay(
    sweep: Sweep, member: str, out: Path, data: dict[str, Any], args: command.Args, signals: StopSignals
) -> None:
    """Train a finished member's lineage in `out`; the same call again resumes. `args` are those of `train`.

    Raises `InputError` unless the member is one of a population, and done, and `out` is new or this very run's.
    """
    run = run_of(sweep, member, data)
    claim.check(out, run.config)
    if claim.is_run(out) and run_info.read(out).hparams_by_step != run.hparams_by_step:
        raise wrong("out", out, "is another run", "give another --out")
    with claim.claim(out, run):  # it writes config.json, from which `train` goes on
        pass
    command.run(dataclasses.replace(args, workdir=out, config=run.config), signals)


def run_of(sweep: Sweep, member: str, data: dict[str, Any]) -> RunInfo:
    """The lone run that is a member's lineage: its own config, and the hyperparameters and seeds from each step on."""
    stage = sweep.selection()
    found = {stage.member_name(trial): trial for trial in stage.finished() if "lineage" in trial.user_attrs}
    number = member.rpartition("/")[2]
    trial = found.get(f"{int(number):04d}" if number.isdecimal() else number)
    if trial is None:
        remedy = f"give one of {', '.join(found)}" if found else "only a PopulationBased that is done has any"
        raise wrong("replay", member, "is not a finished member of a population", remedy)
    config = stage.config(trial.user_attrs["overrides"])
    lineage, where = stage.queue.attribute(trial, "lineage"), f"the lineage of {member}"
    configs = {line["step"]: from_json(to_json(config) | {"hparams": line["hparams"]}, where) for line in lineage}
    by_step = {step: each.hparams for step, each in configs.items()}
    return dataclasses.replace(run_info.new(config, data), hparams_by_step=by_step if len(by_step) > 1 else {})

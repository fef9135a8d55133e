"""What a sweep would do, before it does it: members, programs, time, memory, disk. Nothing in its directory changes.

storage = snapshot(path, database, study_names)
say(described(sweep, dataset, data_dir, claim_size, fits, workers=1))
"""

import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import jax
import optuna
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from mnist_flax import placement
from mnist_flax.config import Config
from mnist_flax.data.datasets import Dataset
from mnist_flax.sweep import growth, members, storage
from mnist_flax.sweep.adapt import PopulationBased, expected_epochs
from mnist_flax.sweep.cost import Costs, Population
from mnist_flax.sweep.experiment import Overrides, sample
from mnist_flax.sweep.progress import clock
from mnist_flax.sweep.stages import Stage, Sweep, population_key
from mnist_flax.workdir import checkpoint, claim

_MEMBER_BYTES, _EPOCH_BYTES = 4000, 1300  # in the journal and in results.jsonl


def snapshot(path: Path, database: str | None, names: list[str]) -> optuna.storages.BaseStorage:
    """A copy in memory of those studies that the sweep's storage holds."""
    copy = optuna.storages.InMemoryStorage()
    if not (_has_studies(database) if database else (path / "optuna.journal").exists()):
        return copy
    source = storage.open_database(database) if database else storage.read_journal(path)
    for name in {*names} & {*optuna.get_all_study_names(source)}:
        optuna.copy_study(from_study_name=name, from_storage=source, to_storage=copy)
    if isinstance(source, optuna.storages.RDBStorage):
        source.engine.dispose()
    return copy


def _has_studies(database: str) -> bool:
    """Whether a database has Optuna's tables, which opening it as a storage would create."""
    try:
        url = sqlalchemy.make_url(database)
        if url.drivername.startswith("sqlite") and not Path(url.database or "").exists():
            return False
        engine = sqlalchemy.create_engine(url)
        found = sqlalchemy.inspect(engine).has_table("studies")
        engine.dispose()
        return found
    except (SQLAlchemyError, ImportError):
        return True  # `open_database` says what is wrong


def claims(stage: Stage, size: int, fits: Callable[[Config], int]) -> list[list[Population]]:
    """What workers claim, `size` members at a time, and how each claim is cut into populations, as by `Worker`."""
    trials = {trial.user_attrs.get("member"): trial for trial in stage.queue.study.get_trials(deepcopy=False)}
    study, done = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), stage.queue.finished()
    left: list[tuple[Config, int]] = []
    for key, attributes in stage.members.items():
        if key not in done:
            overrides = attributes.get("overrides") or sample(stage.experiment, study.ask())
            directory = stage.member_dir(trials[key]) if key in trials else None
            saved = checkpoint.steps(claim.checkpoints_dir(directory)) if directory else []
            left.append((population_key(stage.config(overrides)), max(saved, default=0)))
    found = []
    for first in range(0, len(left), size):
        groups: dict[tuple[Config, int], int] = {}
        for each in left[first : first + size]:
            groups[each] = groups.get(each, 0) + 1
        found.append([])
        for (config, start), count in groups.items():
            most = fits(config)
            found[-1] += [Population(config, min(most, count - i), start) for i in range(0, count, most)]
    return found


def _final(sweep: Sweep) -> list[Stage]:
    """The final stage or, before its configurations are known, one for each program that may be chosen."""
    if not sweep.selection().left():
        return [sweep.final()]
    experiment = sweep.experiment
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    candidates: dict[str, dict[Config, Overrides]] = {}
    for overrides in experiment.grid or [sample(experiment, study.ask()) for _ in range(20)]:
        others = {name: value for name, value in overrides.items() if name != "seed"}
        programs = candidates.setdefault(experiment.method(overrides), {})
        programs.setdefault(population_key(experiment.config(overrides)), others)
    lists = {label: [*programs.values()] for label, programs in candidates.items()}
    rounds = range(max(map(len, lists.values())))
    return [sweep.final({label: each[i % len(each)] for label, each in lists.items()}) for i in rounds]


def described(
    sweep: Sweep, dataset: Dataset, data_dir: Path, claim_size: Callable[[Stage], int],
    fits: Callable[[Config], int], workers: int, *, figures: bool,
) -> str:  # fmt: skip
    """The plan, on lines of 80 columns; trains a few steps of every program to know the time."""
    # The imports, in each worker; figures take about as long, and the importances of a search twice as long again.
    at_the_end = (3 if sweep.experiment.search else 1) * figures
    seconds = time.process_time() * (min(workers, 2) + at_the_end)
    costs, lines = Costs(dataset, data_dir), list[tuple[str, str]]()
    everything, kept = list[Population](), 0.0
    for candidates in ([sweep.selection()], _final(sweep)):
        planned = [claims(stage, claim_size(stage), fits) for stage in candidates if stage.members]
        if not planned:  # nothing is chosen, or FINAL_SEEDS is 0
            continue
        adapt = sweep.experiment.adapt if candidates[0].name == "selection" else None
        share = expected_epochs(adapt, 0, sweep.experiment.base.epochs) / sweep.experiment.base.epochs
        seconds += share * sum(costs.makespan(each, workers, candidates[0].keeps) for each in planned) / len(planned)
        found = [population for each in planned[0] for population in each]
        everything += [population for each in planned for claim_ in each for population in claim_]
        checkpoints = [costs.of(population).checkpoint for population in found]
        number = len(candidates[0].members)
        networks = 2 * number if isinstance(adapt, PopulationBased) else min(candidates[0].keeps, number)
        kept += networks * max(checkpoints, default=0)
        lines += [(candidates[0].name, _members(candidates[0])), ("", _programs(found, len(planned)))]
        lines += [("", f"members stop on the way: about {share:.0%} of all epochs")] if share < 1 else []
    if not everything:
        return f"{sweep.path} is finished: nothing to do."
    journal = sum(p.size * (_MEMBER_BYTES + _EPOCH_BYTES * p.config.epochs) for p in everything)
    devices, needed = jax.devices(), max(_bytes_of(population, dataset) for population in everything)
    on = (
        f"{_count(workers, 'worker')}, {_count(len(devices), f'{devices[0].platform} device')}{' each' * (workers > 1)}"
    )
    lines += [
        ("time", f"about {clock(seconds)} with {on}"),
        ("memory", f"about {_shown(workers * needed)} of {_shown(placement.memory())} for arrays"),
        ("disk", f"about {_shown(kept)} for checkpoints, {_shown(journal)} for trials and results"),
    ]
    return "\n".join(
        textwrap.fill(text, 80, initial_indent=f"{name:<11}", subsequent_indent=" " * 11) for name, text in lines
    )


def _members(stage: Stage) -> str:
    """How many members a stage has, what they look at, and how many are done."""
    experiment, number, config = stage.experiment, len(stage.members), stage.config({})
    (saved, others), seeds = growth.starts(stage), experiment.final_seeds
    text = _count(number, "trial" if experiment.search and stage.name == "selection" else "member")
    if stage.name == "final":
        text += f" ({_count(number // seeds, 'chosen configuration')}, {_count(seeds, 'fresh seed')})"
    text += f", trained on {config.train_split}, evaluated on {config.eval_split}; {number - saved - others} done"
    return text + (f", {saved} go on from a checkpoint, {others} start from their first step" if saved else "")


def _programs(found: list[Population], candidates: int) -> str:
    """What is compiled."""
    programs, sizes = {each.config for each in found}, sorted({each.size for each in found}, reverse=True)
    text = f"{_count(len(programs), 'program')}, {_count(len(found), 'population')}"
    text += f" of {', '.join(map(str, sizes))}" if sizes else ""
    return text + (f"; which of {candidates} programs is known after the selection" if candidates > 1 else "")


def _bytes_of(population: Population, dataset: Dataset) -> int:
    size, data_size = members.memory_of(population.config, dataset)
    return population.size * size + data_size


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shown(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

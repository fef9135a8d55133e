"""Read an experiment file, which is data: a base config, and the members to train or a space to search.

    BASE = Config(epochs=20, train_split="train[:50000]", eval_split="train[50000:]")

    def sweep():  # a grid, or any generator of overrides
        for l2 in (0.0, 1e-3):
            for seed in range(10):
                yield {"l2": l2, "seed": seed}

    TRIALS = 128

    def search(trial):  # or, instead of `sweep`, a space for Optuna to sample
        return {"l2": trial.suggest_float("l2", 1e-6, 1e-2, log=True)}

    experiment = load(Path("experiments/regularization.py"))

Optional: `ADAPT`, a `Halving` or a `PopulationBased`, by which members stop, or copy others, while they train;
`FINAL_SEEDS`, with how many new seeds the chosen configuration is tested (default 10; 0: no test); `FINAL`,
overrides for that test (default: train on all of train, evaluate on test); `KEEP`, how many networks of the selection
stay on the disk, the best ones (default 3); `method(overrides) -> str`, a label for members: the best configuration of
each label is chosen.
"""

import difflib
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_flax.config import Config, flatten
from mnist_flax.errors import InputError, wrong
from mnist_flax.process.terminal import say
from mnist_flax.sweep.adapt import Adapt, Halving, PopulationBased
from mnist_flax.sweep.experiment import (
    DEFAULT_KEEP,
    Experiment,
    Overrides,
    located,
    override,
    overrides_key,
    sample,
    to_plain,
)

# What is read from a file.
_NAMES = ("BASE", "ADAPT", "TRIALS", "FINAL", "FINAL_SEEDS", "KEEP", "sweep", "search", "method")
_MOST_MEMBERS = 10**6


def load(path: Path, trials: int | None = None) -> Experiment:
    """Run an experiment file and check everything in it; `trials` overrides the `TRIALS` of a search.

    Raises `InputError`, with the file and the line, if it cannot be read or run, or an override is wrong.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise wrong("experiment", path, "is a pipe or a device", "give an experiment file")
    try:
        path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise wrong("experiment", path, f"cannot be read ({reason})", "give an experiment file") from None
    with located(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of what is wrong, an error tells in one line
        names = runpy.run_path(str(path))
    _check_names(path, names)
    base = names.get("BASE")
    if not isinstance(base, Config):
        raise InputError(f"{path} must define BASE = Config(...), not {base!r:.40}")
    found = [name for name in ("sweep", "search") if callable(names.get(name))]
    if len(found) != 1:
        raise InputError(f"{path} must define one of sweep() and search(trial); it has {' and '.join(found) or 'none'}")
    grid = _grid(path, base, names["sweep"]) if found == ["sweep"] else ()
    if grid and trials:
        raise InputError(f"trials={trials} is for a search; {path} lists its {len(grid)} members in sweep()")
    if trials and names.get("TRIALS", trials) != trials:
        say(f"trials={trials}, from --trials, holds; TRIALS={names['TRIALS']} in {path.name} does not")
    adapt = _adapt(path, base, names.get("ADAPT"), len(grid) or trials or names.get("TRIALS"), search=not grid)
    experiment = Experiment(
        path=path,
        question=str(names["__doc__"] or path.stem).strip().split("\n")[0],
        base=base,
        grid=grid,
        search=names["search"] if found == ["search"] else None,
        trials=len(grid) or trials or _whole(path, names, "TRIALS", 1),
        final=names.get("FINAL", {"train_split": "train", "eval_split": "test"}),
        final_seeds=_final_seeds(path, names, adapt),
        method=names.get("method", lambda overrides: ""),
        keep=_whole(path, names, "KEEP", 1) if "KEEP" in names else DEFAULT_KEEP,
        adapt=adapt,
    )
    with located(path):
        for overrides in grid or ({},):
            experiment.check(overrides)
    if experiment.search:
        _try_search(experiment)
    return experiment


def _adapt(path: Path, base: Config, adapt: Any, members: Any, *, search: bool) -> Adapt | None:
    """The file's `ADAPT`, checked against the rest of it."""
    if adapt is None:
        return None
    if not isinstance(adapt, Halving | PopulationBased):
        raise InputError(f"{path}: ADAPT={adapt!r:.60} must be a Halving(...) or a PopulationBased(...), or left out")
    try:
        adapt.check(base, search=search)
        if isinstance(adapt, PopulationBased) and members == 1:
            raise InputError("PopulationBased needs two members or more; list more, or leave ADAPT out")
    except InputError as error:
        raise InputError(f"{path}: ADAPT: {error}") from None
    return adapt


def _final_seeds(path: Path, names: dict[str, Any], adapt: Adapt | None) -> int:
    given = _whole(path, names, "FINAL_SEEDS", 0) if "FINAL_SEEDS" in names else None
    if isinstance(adapt, PopulationBased):  # what it finds are networks, whose hyperparameters change while they train
        if given:
            raise InputError(f"{path}: FINAL_SEEDS={given} cannot test a PopulationBased; give 0 or leave it out")
        return 0
    return 10 if given is None else given


def _check_names(path: Path, names: dict[str, Any]) -> None:
    """Raise `InputError` for a name that looks like a misspelt one of ours, which would be ignored."""
    for name, value in names.items():
        if name in _NAMES or not (name.isupper() or callable(value)):
            continue
        ours = [known for known in _NAMES if known.isupper() == name.isupper()]
        if near := difflib.get_close_matches(name, ours, 1, cutoff=0.85):
            raise InputError(f"{path}: no sweep reads {name}; did you mean {near[0]}? If not, give it another name")


def _grid(path: Path, base: Config, sweep: Callable[[], Any]) -> tuple[Overrides, ...]:
    """Every member of `sweep()`, checked; a message names the line that yielded a wrong one."""
    yielded: list[tuple[int, Any]] = []
    with located(path):
        generator = iter(sweep())
        line = sweep.__code__.co_firstlineno
        for overrides in generator:
            if frame := getattr(generator, "gi_frame", None):
                line = frame.f_lineno
            yielded.append((line, overrides))
            if len(yielded) > _MOST_MEMBERS:  # it may never end
                raise InputError(f"{path}:{line}: sweep() yields more than {_MOST_MEMBERS:,} members; yield fewer")
    members: dict[str, Overrides] = {}
    with located(path):
        for line, overrides in yielded:
            try:
                values = flatten(override(base, overrides))
                member = to_plain({name: values[name] for name in overrides})  # 0 and 0.0 are one
                key = overrides_key({"seed": values["seed"]} | member)  # the base's seed, given or not, is one
                if key in members:
                    raise InputError(f"{overrides} is there twice; give each member another seed")
            except InputError as error:
                raise InputError(f"{path}:{line}: {error}") from None
            members[key] = member
    if not members:
        raise InputError(f"{path}:{line}: sweep() yields no member")
    return tuple(members.values())


def _try_search(experiment: Experiment) -> None:
    """Sample 20 trials in memory, so that an error in the space is found before anything trains."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        sample(experiment, study.ask())


def _whole(path: Path, names: dict[str, Any], name: str, low: int) -> int:
    value = names.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _MOST_MEMBERS:
        shown = repr(value)[:60] if not isinstance(value, int) or abs(value) < 10**60 else "a number of many digits"
        raise InputError(f"{path}: {name}={shown} must be a whole number from {low} to {_MOST_MEMBERS}")
    return value

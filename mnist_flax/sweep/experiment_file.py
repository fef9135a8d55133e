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

Optional: `FINAL_SEEDS`, with how many new seeds the chosen configuration is tested (default 10; 0: no test); `FINAL`,
overrides for that test (default: train on all of train, evaluate on test); `method(overrides) -> str`, a label for
members: the best configuration of each label is chosen.
"""

import difflib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_flax.config import Config, flatten
from mnist_flax.errors import InputError, wrong
from mnist_flax.sweep.experiment import Experiment, Overrides, located, override, overrides_key, sample, to_plain

_NAMES = ("BASE", "TRIALS", "FINAL", "FINAL_SEEDS", "sweep", "search", "method")  # what is read from a file


def load(path: Path, trials: int | None = None) -> Experiment:
    """Run an experiment file and check everything in it; `trials` overrides the `TRIALS` of a search.

    Raises `InputError`, with the file and the line, if it cannot be read or run, or an override is wrong.
    """
    try:
        path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise wrong("experiment", path, f"cannot be read ({reason})", "give an experiment file") from None
    with located(path):
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
    experiment = Experiment(
        path=path,
        question=(names["__doc__"] or path.stem).strip().split("\n")[0],
        base=base,
        grid=grid,
        search=names["search"] if found == ["search"] else None,
        trials=len(grid) or trials or _whole(path, names, "TRIALS", 1),
        final=names.get("FINAL", {"train_split": "train", "eval_split": "test"}),
        final_seeds=_whole(path, names, "FINAL_SEEDS", 0) if "FINAL_SEEDS" in names else 10,
        method=names.get("method", lambda overrides: ""),
    )
    with located(path):
        for overrides in grid or ({},):
            experiment.check(overrides)
    if experiment.search:
        _try_search(experiment)
    return experiment


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
    members: dict[str, Overrides] = {}
    with located(path):
        generator = iter(sweep())
        line = sweep.__code__.co_firstlineno
        for overrides in generator:
            if frame := getattr(generator, "gi_frame", None):
                line = frame.f_lineno
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
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{path}: {name}={value!r} must be a whole number from {low}")
    return value

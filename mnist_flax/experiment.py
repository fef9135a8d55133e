"""An experiment file: a study as data.

    BASE = Config(epochs=20, train_split="train[:50000]", eval_split="train[50000:]")

    def sweep():                     # a grid, or any generator of overrides; or, for Optuna to sample,
        for l2 in (0.0, 1e-3):       #     def search(trial): return {"l2": trial.suggest_float("l2", 1e-6, 1e-2, log=True)}
            for seed in range(10):   #     TRIALS = 128
                yield {"l2": l2, "seed": seed}

    experiment = load(Path("experiments/regularization.py"))

Optional: `TRIALS` of a search; `FINAL_SEEDS`, how many fresh seeds the chosen configuration is trained with for the test
(0: none); `FINAL`, the overrides of that stage; `method(overrides) -> str`, within which a configuration is chosen.
"""

import contextlib
import difflib
import json
import runpy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.config import Config, InputError, flat, from_json, to_json

if TYPE_CHECKING:
    import optuna

Overrides = dict[str, Any]
_BASE_ONLY = {"dataset", "eval_split", "steps_per_call", "eval_batch_size", "checkpoint_every", "keep"}
_FIRST_FINAL_SEED = 1000  # far from those that a study counts from 0: fresh ones


@dataclass(frozen=True)
class Experiment:
    """What a file says."""

    path: Path
    question: str
    """The first line of its docstring."""
    base: Config
    grid: tuple[Overrides, ...]
    """The members of a `sweep()`; empty for a search."""
    search: "Callable[[optuna.Trial], Overrides] | None"
    trials: int
    """Members of the selection stage."""
    final: Overrides
    final_seeds: int
    method: Callable[[Overrides], str]

    def config(self, overrides: Overrides) -> Config:
        """The config of a member.

        Raises:
          InputError: an override is unknown or wrong; names the field, the value and the remedy.
        """
        return override(self.base, overrides)

    def final_config(self, overrides: Overrides) -> Config:
        """The config of a member of the final stage: trained on all of train, evaluated on test, if not said otherwise."""
        return _override(self.config(overrides), self.final, base_only=set())

    def fresh_seeds(self) -> range:
        """The seeds of the final stage."""
        return range(_FIRST_FINAL_SEED, _FIRST_FINAL_SEED + self.final_seeds)


def load(path: Path, trials: int | None = None) -> Experiment:
    """Run an experiment file and check everything in it.

    Args:
      path: the file.
      trials: overrides the `TRIALS` of a search.

    Raises:
      InputError: it cannot be read or run, or an override is wrong: names the file and the line.
    """
    try:
        path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"experiment={str(path)!r} cannot be read ({reason}); give an experiment file") from None
    with _located(path):
        names = runpy.run_path(str(path))
    base = names.get("BASE")
    if not isinstance(base, Config):
        raise InputError(f"{path} must define BASE = Config(...), not {base!r:.40}")
    found = [name for name in ("sweep", "search") if callable(names.get(name))]
    if len(found) != 1:
        raise InputError(f"{path} must define one of sweep() and search(trial); it has {' and '.join(found) or 'none'}")
    grid = _grid(path, base, names["sweep"]) if "sweep" in names else ()
    if grid and trials:
        raise InputError(f"trials={trials} is for a search; {path} lists its {len(grid)} members in sweep()")
    experiment = Experiment(
        path=path,
        question=(names["__doc__"] or path.stem).strip().split("\n")[0],
        base=base,
        grid=grid,
        search=names.get("search"),
        trials=len(grid) or trials or _whole(path, names, "TRIALS", 1),
        final=names.get("FINAL", {"train_split": "train", "eval_split": "test"}),
        final_seeds=_whole(path, names, "FINAL_SEEDS", 0) if "FINAL_SEEDS" in names else 10,
        method=names.get("method", lambda overrides: ""),
    )
    with _located(path):
        experiment.final_config({})
        for overrides in grid:
            _label(experiment, overrides)
    if experiment.search:
        _try_search(experiment)
    return experiment


def override(base: Config, overrides: Overrides) -> Config:
    """A config with some fields changed, hyperparameters among them.

    Raises:
      InputError: a field is unknown, wrong, or the same for all members of a study.
    """
    return _override(base, overrides, _BASE_ONLY)


def key_of(overrides: Overrides) -> str:
    """The same text for the same overrides, whatever their order."""
    return json.dumps(overrides, sort_keys=True)


def plain(overrides: Overrides) -> Overrides:
    """As JSON gives them back: numpy scalars as numbers, tuples as lists."""
    values = {name: value.item() if hasattr(value, "item") else value for name, value in overrides.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _override(base: Config, overrides: Overrides, base_only: set[str]) -> Config:
    if not isinstance(overrides, dict):
        raise InputError(f"overrides must be a dict such as {{'l2': 0.001}}, not {overrides!r:.60}")
    fields = flat(base)
    for name in overrides:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            remedy = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(fields)}"
            raise InputError(f"there is no field {name!r} to override; {remedy}")
        if name in base_only:
            raise InputError(f"{name}={overrides[name]!r} cannot differ between members; set it in BASE")
    tree = to_json(base)
    for name, value in plain(overrides).items():
        (tree["hparams"] if name in tree["hparams"] else tree)[name] = value
    return from_json(tree, "overrides", remedy="give a value of the field's type")


def _grid(path: Path, base: Config, sweep: Callable[[], Any]) -> tuple[Overrides, ...]:
    """Every member of `sweep()`, checked, with the line that yielded it in the message."""
    members: dict[str, Overrides] = {}
    with _located(path):
        generator = iter(sweep())
        line = sweep.__code__.co_firstlineno
        for overrides in generator:
            if frame := getattr(generator, "gi_frame", None):
                line = frame.f_lineno
            try:
                override(base, overrides)
                if key_of(plain(overrides)) in members:
                    raise InputError(f"{overrides} is there twice; give each member a seed of its own")
            except InputError as error:
                raise InputError(f"{path}:{line}: {error}") from None
            members[key_of(plain(overrides))] = plain(overrides)
    if not members:
        raise InputError(f"{path}:{line}: sweep() yields no member")
    return tuple(members.values())


def _try_search(experiment: Experiment, tries: int = 20) -> None:
    """Sample the space in memory, so that what is wrong with it is said before anything trains."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(tries):
        sample(experiment, study.ask())


def sample(experiment: Experiment, trial: "optuna.Trial") -> Overrides:
    """The checked overrides of one trial of a search.

    Raises:
      InputError: one is wrong; names the file and the line.
    """
    assert experiment.search
    with _located(experiment.path):
        overrides = experiment.search(trial)
        try:
            experiment.config(overrides)
        except InputError as error:
            code = experiment.search.__code__
            lines = experiment.path.read_text().splitlines()
            named = [n for n in range(code.co_firstlineno, len(lines) + 1) if _names(error, overrides, lines[n - 1])]
            raise InputError(f"{experiment.path}:{(named or [code.co_firstlineno])[0]}: {error}") from None
        _label(experiment, overrides)
    return plain(overrides)


def _names(error: InputError, overrides: object, line: str) -> bool:
    """Whether a line of source speaks of the override that an error is about."""
    return isinstance(overrides, dict) and any(f'"{name}"' in line and str(name) in str(error) for name in overrides)


def _label(experiment: Experiment, overrides: Overrides) -> None:
    label = experiment.method(overrides)
    if not isinstance(label, str):
        raise InputError(f"{experiment.path}: method({overrides}) must be a string, not {label!r:.40}")


def _whole(path: Path, names: dict[str, Any], name: str, low: int) -> int:
    value = names.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{path}: {name}={value!r} must be a whole number from {low}")
    return value


@contextlib.contextmanager
def _located(path: Path) -> Iterator[None]:
    """Turn what goes wrong in a file into one line with the file's name and line."""
    try:
        yield
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        if isinstance(error, InputError) and str(error).startswith(str(path)):
            raise
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{frames[-1].lineno}" if frames else f"{path}"
        what = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"{where}: {what}{error}") from error

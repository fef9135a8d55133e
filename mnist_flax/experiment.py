"""An experiment file: a study as data.

    BASE = Config(epochs=20, train_split="train[:50000]", eval_split="train[50000:]")

    def sweep():  # a grid, or any generator of overrides
        for l2 in (0.0, 1e-3):
            for seed in range(10):
                yield {"l2": l2, "seed": seed}

    TRIALS = 128

    def search(trial):  # or, instead of `sweep`, a space for Optuna to sample
        return {"l2": trial.suggest_float("l2", 1e-6, 1e-2, log=True)}

    experiment = load(Path("experiments/regularization.py"))

Optional: `FINAL_SEEDS`, how many fresh seeds the chosen configuration is tested with (10; 0: none); `FINAL`, overrides
for that (all of train, evaluated on test); `method(overrides) -> str`, a label: the best of each is chosen.
"""

import contextlib
import runpy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax import splits
from mnist_flax.config import Config, InputError
from mnist_flax.overrides import Overrides, key_of, override, plain

if TYPE_CHECKING:
    import optuna

_FIXED = frozenset({"dataset", "eval_split", "steps_per_call", "eval_batch_size", "checkpoint_every", "keep"})
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
        return override(self.base, overrides, fixed=_FIXED)

    def final_config(self, overrides: Overrides) -> Config:
        """The config of a member of the final stage: `FINAL` on top."""
        return override(self.config(overrides), self.final)

    def configs(self) -> list[Config]:
        """A config for each pair of splits that members use."""
        configs = [self.base, *map(self.config, self.grid), self.final_config({})]
        return list({(config.train_split, config.eval_split): config for config in configs}.values())

    def check_honest(self, examples: dict[str, int]) -> None:
        """Raise `InputError` where members would be selected, or tested, on examples that they had seen.

        Args:
          examples: how many each of the dataset's splits has.
        """
        remedy = "such as train_split='train[:50000]', eval_split='train[50000:]'"
        for config in self.configs():
            if splits.overlap(config.train_split, config.eval_split, examples):
                text = f"eval_split={config.eval_split!r} shares examples with train_split={config.train_split!r}"
                raise InputError(f"{self.path}: {text}; carve one from the other, {remedy}")
        test = self.final_config({}).eval_split
        if self.final_seeds and splits.overlap(self.base.eval_split, test, examples):
            text = f"eval_split={self.base.eval_split!r} of BASE shares examples with the test's, {test!r}"
            raise InputError(f"{self.path}: {text}; select on a validation split, {remedy}")

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
                override(base, overrides, fixed=_FIXED)
                if key_of(plain(overrides)) in members:
                    raise InputError(f"{overrides} is there twice; give each member a seed of its own")
            except InputError as error:
                raise InputError(f"{path}:{line}: {error}") from None
            members[key_of(plain(overrides))] = plain(overrides)
    if not members:
        raise InputError(f"{path}:{line}: sweep() yields no member")
    return tuple(members.values())


def _try_search(experiment: Experiment) -> None:
    """Sample the space in memory, so that what is wrong with it is said before anything trains."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
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
            first = experiment.search.__code__.co_firstlineno
            lines = experiment.path.read_text().splitlines()
            names = overrides if isinstance(overrides, dict) else {}
            wrong = [f'"{name}"' for name in names if str(name) in str(error)]
            named = [n for n in range(first, len(lines) + 1) if any(name in lines[n - 1] for name in wrong)]
            raise InputError(f"{experiment.path}:{(named or [first])[0]}: {error}") from None
        _label(experiment, overrides)
    return plain(overrides)


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

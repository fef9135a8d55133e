"""An experiment: its base config, its members or its search space, and how the chosen ones are tested."""

import ast
import contextlib
import difflib
import inspect
import itertools
import json
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.config import Config, Hyperparams, flatten, from_json, to_json
from mnist_flax.data import splits
from mnist_flax.errors import InputError
from mnist_flax.settings import SHARED, settings_of
from mnist_flax.sweep.adapt import Adapt

if TYPE_CHECKING:
    import optuna

Overrides = dict[str, Any]
SHARED_SETTINGS = frozenset(name for name, setting in settings_of(Config).items() if SHARED in setting.marks)
DEFAULT_KEEP = 3  # never changes: a sweep that kept so many does not say so
_COMPARED = frozenset({"BASE", "ADAPT", "TRIALS", "FINAL", "FINAL_SEEDS", "KEEP"})  # each by itself, see `directory`
_FIRST_FINAL_SEED = 1000  # experiments count their seeds from 0, so that these are unused


def override(base: Config, overrides: Overrides, *, fixed: frozenset[str] = SHARED_SETTINGS) -> Config:
    """A config with some fields changed, hyperparameters among them.

    Raises `InputError` if a field is unknown, wrong or one of `fixed`; names it, its value and the remedy.
    """
    if not isinstance(overrides, dict):
        raise InputError(f"overrides must be a dict such as {{'l2': 0.001}}, not {overrides!r:.60}")
    fields = flatten(base)
    for name in overrides:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            remedy = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(fields)}"
            raise InputError(f"there is no field {name!r} to override; {remedy}")
        if name in fixed:
            raise InputError(f"{name}={overrides[name]!r} cannot differ between members; set it in BASE")
    tree = to_json(base)
    for name, value in to_plain(overrides).items():
        (tree["hparams"] if name in settings_of(Hyperparams) else tree)[name] = value
    return from_json(tree, "overrides", remedy="give a value of the field's type")


def _defined_by(node: ast.stmt) -> set[str]:
    """The names that a statement of a file defines, but for imported ones and those that a sweep compares itself."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    stored = (each for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))
    return {each.id for each in stored} - _COMPARED


def overrides_key(overrides: Overrides) -> str:
    """The overrides as canonical JSON: the same text whatever their order."""
    return json.dumps(overrides, sort_keys=True)


def to_plain(overrides: Overrides) -> Overrides:
    """The overrides as JSON gives them back: numpy scalars as numbers, tuples as lists."""
    values = {name: value.item() if hasattr(value, "item") else value for name, value in overrides.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment file."""

    path: Path
    question: str  # the first line of its docstring
    base: Config
    grid: tuple[Overrides, ...]  # the members of a `sweep()`; empty for a search
    search: "Callable[[optuna.Trial], Overrides] | None"
    trials: int  # members of the selection stage
    final: Overrides
    final_seeds: int
    method: Callable[[Overrides], str]
    keep: int = DEFAULT_KEEP  # networks of the selection, the best ones
    adapt: Adapt | None = None  # of the selection stage

    def config(self, overrides: Overrides) -> Config:
        """The config of a member; raises `InputError` if an override is unknown or wrong."""
        return override(self.base, overrides, fixed=SHARED_SETTINGS | ({"train_split"} if self.search else set()))

    def check(self, overrides: Overrides) -> None:
        """Raise `InputError` unless a member's overrides are right for both stages, and `method` gives it a string."""
        self.config(overrides)
        if self.adapt:
            self.adapt.check_member(overrides)
        if self.final_seeds:
            self.final_config(overrides)
        label = self.method(to_plain(overrides))
        if not isinstance(label, str):
            raise InputError(f"method({to_plain(overrides)}) must be a string, not {label!r:.40}")

    def final_config(self, overrides: Overrides) -> Config:
        """The config of a member of the final stage: its own, with `FINAL` applied last."""
        config = self.config(overrides)
        if "seed" in self.final:
            raise InputError("FINAL cannot set seed: its seeds are new ones, and FINAL_SEEDS says how many")
        if both := ", ".join(sorted(self.final.keys() & overrides.keys())):
            raise InputError(f"FINAL cannot set {both}, in which members differ; leave it to sweep or search")
        return override(config, self.final, fixed=frozenset({"dataset"}))

    def configs(self) -> list[Config]:
        """A config for each pair of splits that members of both stages use."""
        members = self.grid or ({},)
        stages = (self.config, self.final_config) if self.final_seeds else (self.config,)
        configs = [each(overrides) for each in stages for overrides in members]
        return list({(config.train_split, config.eval_split): config for config in configs}.values())

    def source(self) -> str:
        """The code of `search`, then that of what it uses of this file; it must not change while the search runs.

        Empty for a `sweep()`, which may grow.
        """
        defined: dict[str, list[ast.stmt]] = {}
        for node in ast.parse(self.path.read_text()).body:
            for name in _defined_by(node):
                defined.setdefault(name, []).append(node)
        found: dict[ast.stmt, None] = {}
        names = ["search"]
        for name in names:  # grows meanwhile
            for node in defined.get(name, []):
                if node not in found:
                    found[node] = None
                    names += [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
        return "".join(map(ast.unparse, found))

    def check_no_leakage(self, examples: dict[str, int]) -> None:
        """Raise `InputError` where members would be selected or tested on examples that they have seen.

        `examples` maps each split of the dataset to its number of examples.
        """
        for config in self.configs():
            with located(self.path):
                splits.check_disjoint(config.train_split, config.eval_split, examples)
        if not self.final_seeds and not self.adapt:
            return
        test = self.final_config({}).eval_split
        for split in sorted({self.config(each).train_split for each in self.grid or ({},)} | {self.base.eval_split}):
            if splits.overlap(split, test, examples):
                text = f"split={split!r} of the selection shares examples with the test's, {test!r}"
                remedy = "select on a validation split, such as train_split='train[:50000]', eval_split='train[50000:]'"
                raise InputError(f"{self.path}: {text}; {remedy}")

    def fresh_seeds(self, used: Collection[int]) -> list[int]:
        """The seeds of the final stage: none of them is among those `used` in the selection."""
        unused = (seed for seed in itertools.count(_FIRST_FINAL_SEED) if seed not in used)
        return list(itertools.islice(unused, self.final_seeds))


def sample(experiment: Experiment, trial: "optuna.Trial") -> Overrides:
    """The checked overrides of one trial of a search; raises `InputError` with the file and the line of a wrong one."""
    assert experiment.search
    with located(experiment.path):
        overrides = experiment.search(trial)
        try:
            experiment.check(overrides)
        except InputError as error:
            lines, first = inspect.getsourcelines(experiment.search)
            names = overrides if isinstance(overrides, dict) else {}
            wrong = [f'"{name}"' for name in names if str(name) in str(error)]
            named = [first + i for i, line in enumerate(lines) if any(name in line for name in wrong)]
            raise InputError(f"{experiment.path}:{(named or [first])[0]}: {error}") from None
    return to_plain(overrides)


@contextlib.contextmanager
def located(path: Path) -> Iterator[None]:
    """Turn any error in an experiment file into an `InputError` of one line, with the file and the line."""
    try:
        yield
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""  # a null byte is in none
        raise InputError(f"{error.filename or path}{line}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, InputError) and str(error).startswith(str(path)):
            raise
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{frames[-1].lineno}" if frames else f"{path}"
        what = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"{where}: {what}{error}") from error

"""Choose networks of a finished sweep by its results, without JAX or Optuna.

chosen = choose(Path("sweeps/x"), 10, stage=None)  # {"final/0000": RunInfo(...), ...}: the best by validation first
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any, Literal

from mnist_flax.errors import InputError, wrong
from mnist_flax.process import files
from mnist_flax.workdir import run_info
from mnist_flax.workdir.run_info import RunInfo

SWEEP, RESULTS = "sweep.json", "results.jsonl"
FINISHED = "finished"  # in `sweep.json`: how many results there were when the sweep was done
Stage = Literal["final", "selection"]
_Row = dict[str, Any]  # of RESULTS
_FIELDS = {"stage": str, "method": str, "overrides": dict, "value": (int, float, type(None))}
_SAME = ("image_shape", "class_names", "sha256")  # of all networks' data


def choose(sweep: Path, number: int, stage: Stage | None) -> tuple[Stage, dict[str, RunInfo]]:
    """The stage, and the best `number` of its networks, the best first, by their directories below the sweep's.

    Only validation decides: networks of the selection are ordered by their own accuracy, those of the final test by the
    mean of their configuration in the selection, and within a configuration as they were planned, seed by seed.

    Args:
      sweep: the sweep's absolute directory.
      number: at least 2; of networks with the same overrides, seed and all, one counts.
      stage: None is `final` where the sweep has a final test, else `selection`.

    Raises `InputError`: it is not a finished sweep, has fewer networks, or networks of several datasets.
    """
    if number < 2:
        raise InputError(f"ensemble={number} is out of range; give a whole number from 2")
    rows = _read(sweep)
    stage = stage or ("final" if any(row["stage"] == "final" for row in rows) else "selection")
    names = _ranked(rows, stage)
    if number > len(names):
        more = "raise FINAL_SEEDS and run the sweep's command again"
        more = more if stage == "final" else "begin another sweep with a larger KEEP"
        remedy = f"give from 2 to {len(names)}, or {more}" if len(names) > 1 else more
        problem = f"is more than the {len(names)} networks that the {stage} stage of {sweep} has kept"
        raise wrong("ensemble", number, problem, remedy)
    runs = {name: run_info.read(sweep / name) for name in names[:number]}
    first = runs[names[0]]
    for name, run in runs.items():
        differ = ["dataset"] if run.config.dataset != first.config.dataset else []
        differ += [field for field in _SAME if run.data[field] != first.data[field]]
        if differ:
            problem = f"takes in {name}, whose data is not that of {names[0]} ({', '.join(differ)} differ)"
            raise wrong("ensemble", number, problem, "give a --workdir in which all networks have the same data")
    return stage, runs


def _ranked(rows: list[_Row], stage: Stage) -> list[str]:
    """The directories of a stage's networks, the best by validation first."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["stage"] == "selection" and row["value"] is not None:
            scores.setdefault(_configuration(row), []).append(row["value"])

    def score(row: _Row) -> float:
        return row["value"] if stage == "selection" else statistics.fmean(scores.get(_configuration(row), [0.0]))

    kept = [row for row in rows if row["stage"] == stage and row["value"] is not None and row["workdir"]]
    found: dict[str, str] = {}
    for row in sorted(kept, key=lambda row: -score(row)):  # of equals, the first planned
        found.setdefault(json.dumps(row["overrides"], sort_keys=True), row["workdir"])
    return [*found.values()]


def _configuration(row: _Row) -> str:
    overrides = {name: value for name, value in row["overrides"].items() if name != "seed"}
    return json.dumps([row["method"], overrides], sort_keys=True)


def _read(sweep: Path) -> list[_Row]:
    """The results of a finished sweep, checked: somebody else may have written them."""
    damaged = "run the sweep's command again, which writes it"
    try:
        tree = files.read_json(sweep / SWEEP)
        text = files.read_text(sweep / RESULTS) if (sweep / RESULTS).exists() else ""
        rows = [json.loads(line) for line in text.splitlines()]
    except (FileNotFoundError, NotADirectoryError):
        remedy = "give the --workdir of a sweep, or leave --ensemble out"
        raise wrong("workdir", sweep, f"is not a sweep (it has no {SWEEP})", remedy) from None
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); give another --workdir") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{sweep}: {SWEEP} or {RESULTS} is damaged ({error}); {damaged}") from None
    if not isinstance(tree, dict) or tree.get(FINISHED) != len(rows):
        problem, remedy = "is not a sweep that is known to be finished", "run the sweep's command again"
        raise wrong("workdir", sweep, problem, f"{remedy}, which goes on or finds that it is finished")
    for number, row in enumerate(rows, start=1):
        ok = files.has_fields(row, _FIELDS) and (row["value"] is None or 0 <= row["value"] <= 1)
        if not ok or not re.fullmatch(r"(members|final)/\d+|None", str(row.get("workdir")), re.ASCII):
            raise InputError(f"{sweep / RESULTS} is damaged (line {number}); {damaged}")
    return rows

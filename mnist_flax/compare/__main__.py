"""Compare runs, or list the runs below a directory.

python -m mnist_flax.compare exp1 exp2 --split test
python -m mnist_flax.compare runs
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from mnist_flax.compare import runs
from mnist_flax.compare.runs import Run
from mnist_flax.data import splits
from mnist_flax.errors import InputError, wrong
from mnist_flax.process import cli
from mnist_flax.process.signals import StopSignals
from mnist_flax.process.terminal import no_track, say, track
from mnist_flax.workdir import claim


@dataclass(frozen=True)
class Args:
    """Compare runs: settings, scores on one split, and tests whether the networks differ by more than chance.

    Two runs, or up to ten that differ in more than the seed: McNemar's exact test. Groups of runs that differ in the
    seed alone: paired t tests over the seeds that two groups share. Several tests are corrected by Holm's method. Given
    directories that are not runs, list the runs below them. Nothing is written to the runs' directories.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of two runs or more; or directories that hold runs, to list them."""
    split: str | None = None
    """TFDS split to evaluate on, such as test. Default: each run's evaluation split."""
    step: str = "latest"
    """The checkpoints: latest, best (by accuracy on the run's evaluation split) or a step."""
    out: Path | None = None
    """Also draw the accuracy and the cross-entropy after each epoch, of all runs, into this PNG file."""
    all: bool = False
    """List every member of a sweep, not only the newest five."""
    json: bool = False
    """Print one JSON object."""
    data_dir: Path | None = None
    """Where prepared datasets live. Default: where each run found them, or else the user's cache."""


def run(args: Args, signals: StopSignals) -> None:
    """The command: check everything that can be wrong, then evaluate, or list."""
    paths = [path.expanduser() for path in args.runs]
    _check_paths(paths)
    are_runs = [claim.is_run(path) for path in paths]
    if not any(are_runs):
        _list(args, paths)
        return
    if not all(are_runs):
        other = paths[are_runs.index(False)]
        raise wrong(
            "runs", other, "is not a run (it has no config.json)", "give runs only, or only directories of runs"
        )
    if len(paths) == 1:
        raise wrong("runs", paths[0], "is one run", "give two or more, or a directory that holds runs")
    if args.out:
        _check_out(args.out.expanduser())
    _compare(args, [path.absolute() for path in paths])


def _check_paths(paths: list[Path]) -> None:
    """Raise `InputError` unless all are different directories that exist."""
    if not paths:
        raise InputError("runs is empty; give the directories of two runs, or one that holds runs")
    seen = set()
    for path in paths:
        if not path.is_dir():
            raise wrong(
                "runs", path, "is not a directory" if path.exists() else "does not exist", "give a run's directory"
            )
        if path.resolve() in seen:
            raise wrong("runs", path, "is given twice", "give each run once")
        seen.add(path.resolve())


def _check_out(out: Path) -> None:
    """Raise `InputError` if the figure could not be written."""
    if out.suffix != ".png":
        raise wrong("out", out, "is not the name of a PNG file", "give one ending in .png")
    if not out.parent.is_dir() or out.is_dir():
        problem = "is a directory" if out.is_dir() else f"cannot be written: {out.parent} is not a directory"
        raise wrong("out", out, problem, "give the name of a file in a directory that exists")
    if not os.access(out.parent, os.W_OK):
        raise wrong("out", out, f"cannot be written: no permission to write in {out.parent}", "give another")


def _list(args: Args, paths: list[Path]) -> None:
    """List the runs below directories."""
    from mnist_flax.compare import listing

    for flag, value in (("out", args.out), ("split", args.split)):
        if value:
            raise wrong(flag, value, f"is for a comparison, and {paths[0]} is not a run", "name the runs themselves")
    listed = [run for path in paths for run in listing.find(path.absolute())]
    listed.sort(key=lambda run: -run.changed)
    if args.json:
        say(json.dumps({"runs": [run.as_json() for run in listed]}))
    elif listed:
        listing.print_runs(listed, args.all)
    if not listed:
        raise wrong("runs", paths[0], "holds no run, and is none", "give runs, or a directory that holds some")


def _compare(args: Args, paths: list[Path]) -> None:
    """Evaluate and compare runs."""
    found: dict[str, Run] = dict(zip(runs.short_names(paths), map(runs.read, paths), strict=True))
    for each in found.values():
        splits.check(each.info.config.dataset, args.split or each.info.config.eval_split)

    from mnist_flax.compare.comparison import compare
    from mnist_flax.compare.evaluation import evaluate

    progress = no_track if args.json else track
    evaluations = {
        name: evaluate(found[name], args.step, args.split, args.data_dir)
        for name in progress(found, "evaluating runs", len(found))
    }
    if all(isinstance(evaluation, str) for evaluation in evaluations.values()):
        problems = "; ".join(f"{name} {problem}" for name, problem in evaluations.items())
        raise InputError(f"none of the runs can be evaluated: {problems}")
    about = compare(found, evaluations)
    if args.out:
        from mnist_flax.compare.figure import curves
        from mnist_flax.figures.axes import save

        save(curves(found), args.out.expanduser())
    if args.json:
        say(json.dumps(about | {"figure": args.out and str(args.out)}))
        return
    from mnist_flax.compare.report import print_comparison

    print_comparison(about)
    if args.out:
        say(f"\nThe curves are in {args.out}")


if __name__ == "__main__":
    cli.main(Args, run)

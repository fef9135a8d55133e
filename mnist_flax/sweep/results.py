"""What a sweep leaves in its directory: tables, figures, TensorBoard files; and the line that says what was chosen."""

import hashlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

from mnist_flax.analysis import labels, tables
from mnist_flax.analysis.summaries import Summary, choose, summarize
from mnist_flax.process import files
from mnist_flax.process.terminal import say
from mnist_flax.sweep import directory
from mnist_flax.sweep.adapt import PopulationBased
from mnist_flax.sweep.stages import Sweep

Rows = list[dict[str, Any]]


def write(sweep: Sweep) -> Rows:
    """Write the tables of the results so far, one process at a time."""
    with directory.locked(sweep.path):
        rows = sweep.rows()
        tables.write_tables(sweep.path, rows, _title(sweep, rows))
    return rows


def now_and_then(sweep: Sweep, share: float = 0.02) -> Callable[[], None]:
    """A function that writes these tables, unless it has just done so: it takes at most a share of the time."""
    earliest = 0.0

    def call() -> None:
        nonlocal earliest
        if (began := time.monotonic()) >= earliest:
            write(sweep)
            earliest = time.monotonic() + (time.monotonic() - began) / share

    return call


def _title(sweep: Sweep, rows: Rows) -> str:
    """What the experiment asks, the command, and the commits that have trained its members, as Markdown."""
    words = [directory.without_password(word) for word in sys.argv[1:] if word != "--worker"]
    commits = dict.fromkeys(row["commit"] for row in rows if row["commit"])
    made = f"`{shlex.join(['python', '-m', 'mnist_flax.sweep', *words])}`"
    made += f"; commit {', '.join(f'`{commit}`' for commit in commits)}" if commits else ""
    return f"# {sweep.experiment.path.name}: {sweep.experiment.question}\n\n{made}"


def finish(sweep: Sweep, *, figures: bool, tensorboard: bool) -> None:
    """Write everything, mark the sweep as finished, and print the main result."""
    sweep.selection().prune()  # what a worker left that was killed before it did
    rows = write(sweep)
    if figures:
        _draw(sweep, rows)
    if tensorboard:
        from mnist_flax.monitor.tensorboard import write_members

        with directory.locked(sweep.path):
            write_members(sweep.path / "tensorboard", rows)
    directory.mark_finished(sweep.path, len(rows))
    _print(sweep, rows)
    more = ", figures/" * figures + ", tensorboard/" * tensorboard
    say(f"results in {sweep.path}: summary.md, summary.csv, results.jsonl{more}")


def _draw(sweep: Sweep, rows: Rows) -> None:
    """Draw the figures, unless they are all there and show these very results."""
    figures = sweep.path / "figures"
    note = figures / ".drawn"  # the hash of the results in the figures, then their names
    key = hashlib.sha256((sweep.path / "results.jsonl").read_bytes()).hexdigest()
    try:
        drawn, *names = files.read_text(note).split("\n")
    except (OSError, ValueError):  # missing or damaged
        drawn, names = "", []
    if drawn == key and names and all((figures / name).exists() for name in names):
        return
    from mnist_flax.analysis.search_figures import Search
    from mnist_flax.analysis.sweep_figures import sweep_figures

    queue, search = sweep.selection_queue, None
    if sweep.experiment.search:
        search = Search(queue.importances(), queue.logarithmic())
    with directory.locked(sweep.path):
        figures.mkdir(exist_ok=True)
        paths = sweep_figures(figures, rows, search)
        files.write_text(note, "\n".join([key, *(path.name for path in paths)]))


def _print(sweep: Sweep, rows: Rows) -> None:
    """Print each chosen configuration with its validation and its test accuracy; of a population its best member."""
    done = [row for row in rows if row["value"] is not None]
    if isinstance(sweep.experiment.adapt, PopulationBased) and done:
        best = max(done, key=lambda row: row["value"])
        copies, more = len(best["lineage"]) - 1, "its hyperparameters over time are in its lineage.jsonl"
        say(f"best {best['workdir']}: validation {best['value']:.3%}, {copies} copies in its lineage; {more}")
        return
    chosen = choose(rows)
    for method, overrides in chosen.items():
        scores = [_score(s) for s in summarize(rows) if (s.method, s.overrides) == (method, overrides)]
        say(f"{method + ': ' if method else ''}chosen {labels.described(overrides, overrides)}: {', '.join(scores)}")
    if not chosen:
        say("nothing could be chosen: in every configuration a member diverged or was stopped")


def _score(s: Summary) -> str:
    text = "validation " if s.stage == "selection" else "test "
    text += "" if s.mean is None else f"{100 * s.mean:.3f} % (n={s.n})"
    return text + (f" ({s.diverged} diverged)" if s.diverged else "")

"""Print a comparison of runs, as tables that fit the terminal."""

import shutil
from typing import Any

from mnist_flax.analysis.labels import shown
from mnist_flax.compare.runs import described
from mnist_flax.process.terminal import say, table

_MOST_TESTS = 45  # lines; --json has all
_NUMBERS = {"accuracy", "cross-entropy", "epochs", "seconds", "step", "seeds", "difference", "p", "p (Holm)", "runs"}
_NUMBERS |= {"first alone right", "second alone right", "mean", "deviation"}


def say_table(rows: list[list[str]]) -> None:
    """Print a table with a header; where it is wider than the terminal, in parts."""
    say(table(rows, _NUMBERS, shutil.get_terminal_size().columns))


def print_comparison(about: dict[str, Any]) -> None:
    """Print what `comparison.compare` gives: settings, scores, groups, tests, notes."""
    _print_settings(about)
    _print_scores(about["runs"])
    if about["groups"]:
        say()
        _print_groups(about["groups"])
    if about["tests"]:
        say()
        tests = sorted(about["tests"], key=lambda test: 2 if test["p"] is None else test["p"])
        if about["test"] == "mcnemar":
            _print_mcnemar(tests)
        else:
            _print_paired_t(tests)
    if about["notes"]:
        say()
        for note in about["notes"]:
            say(f"note: {note}")


def _print_settings(about: dict[str, Any]) -> None:
    runs, same = about["runs"], about["same"]
    names = [*runs[0]["settings"]]
    if names:
        groups = [["group", *(run["group"] or "-" for run in runs)]] if about["groups"] else []
        settings = [[name, *(shown(run["settings"][name]) for run in runs)] for name in names]
        columns = [["run", *(run["name"] for run in runs)], *groups, *settings]
        say_table([[*line] for line in zip(*columns, strict=True)])
    else:
        say("The settings of all runs are the same.")
    if same:
        say(f"In all of them, unlike the defaults: {described(same, same)}")


def _print_scores(runs: list[dict[str, Any]]) -> None:
    """A table for each set of examples; what has no network has no line."""
    rows: dict[str, list[list[str]]] = {}
    for run in runs:
        if "step" in run:
            numbers = [f"{run['accuracy']:.2%}", _interval(run["accuracy_interval"]), f"{run['cross_entropy']:.4f}"]
            numbers += [str(run["epochs"]), f"{run['seconds']:.1f}", f"{run['step']:,}"]
            examples = f"{run['dataset']} {run['split']}, {run['examples']:,} examples"
            rows.setdefault(examples, []).append([run["name"], *numbers])
    for examples, lines in rows.items():
        say(f"\nOn {examples}:")
        say_table([["run", "accuracy", "95 % interval", "cross-entropy", "epochs", "seconds", "step"], *lines])


def _interval(interval: list[float | None]) -> str:
    low, high = interval
    return "-" if low is None or high is None else f"{low:.2%} to {high:.2%}"


def _print_groups(groups: list[dict[str, Any]]) -> None:
    say("Groups that differ in the seed alone; deviation and interval are over their seeds:")
    names = [*groups[0]["settings"]]
    rows = [["group", "runs", "mean", "deviation", "95 % interval", *names]]
    for group in groups:
        deviation = "-" if group["standard_deviation"] is None else f"{group['standard_deviation']:.2%}"
        numbers = [str(len(group["runs"])), f"{group['mean']:.2%}", deviation, _interval(group["interval"])]
        rows.append([group["group"], *numbers, *(shown(group["settings"][name]) for name in names)])
    say_table(rows)


def _print_mcnemar(tests: list[dict[str, Any]]) -> None:
    if len(tests) == 1:
        [test] = tests
        counts = [f"{test[who]} alone right: {test[f'only_{who}']:,}" for who in ("first", "second")]
        say(f"McNemar's exact test: p = {_p(test['p'])} ({', '.join(counts)})")
        return
    say(f"McNemar's exact tests; p (Holm) is corrected for the {len(tests)} pairs:")
    rows = [["first", "second", "first alone right", "second alone right", "p", "p (Holm)"]]
    for test in tests:
        counts = [f"{test[name]:,}" for name in ("only_first", "only_second")]
        rows.append([test["first"], test["second"], *counts, _p(test["p"]), _p(test["p_holm"])])
    say_table(rows)


def _print_paired_t(tests: list[dict[str, Any]]) -> None:
    count = sum(test["p"] is not None for test in tests)
    several = f"\np (Holm) is corrected for {count} pairs, the intervals are not" if count > 1 else ""
    say(f"Paired t tests over shared seeds; differences in points, first minus second{several}:")
    rows = [["groups", "seeds", "difference", "95 % interval", "p", "p (Holm)"]]
    for test in tests[:_MOST_TESTS]:
        numbers = [str(test["seeds"]), f"{test['difference']:+.3f}"]
        if test["p"] is None:
            numbers += ["all are equal", "-", "-"]
        else:
            numbers += [f"{test['low']:+.3f} to {test['high']:+.3f}", _p(test["p"]), _p(test["p_holm"])]
        rows.append([f"{test['first']} - {test['second']}", *numbers])
    say_table(rows)
    if len(tests) > _MOST_TESTS:
        say(f"{len(tests) - _MOST_TESTS:,} more pairs, with larger p, are in --json")
    if any(test["p"] is None for test in tests[:_MOST_TESTS]):
        say("Where the differences of all seeds are equal, there is nothing to test with.")
    if any(test["seeds"] == 2 for test in tests):
        say("A difference over two seeds is a hint, not a result.")
    left_out: dict[str, str] = {}  # by what is left out, so that each is said once
    for test in tests[:_MOST_TESTS]:
        for group, other in ((test["first"], test["second"]), (test["second"], test["first"])):
            if seeds := test["seeds_left_out"][group]:
                text = f"{group}'s {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
                left_out[text] = f"{left_out[text]}, {other}" if text in left_out else other
    for text, others in left_out.items():
        say(f"Left out: {text}, not in {others}")


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"

"""Say what differs between evaluated runs, and test whether they are equally good."""

import itertools
import json
from typing import Any

from mnist_flax.analysis.summaries import spread
from mnist_flax.compare.evaluation import Evaluation, most_common_examples
from mnist_flax.compare.runs import Run, differing, shared
from mnist_flax.compare.statistics import holm, mcnemar, paired_t

MOST_IN_PAIRS = 10  # runs
_Tested = dict[str, Evaluation]  # by the run's name


def compare(runs: dict[str, Run], evaluations: dict[str, Evaluation | str]) -> dict[str, Any]:
    """Compare runs by name, in JSON values.

    runs: name, directory, state, group, not_tested (the reason; None where the run is tested), settings (those that
      differ), and the scores of `evaluation.evaluate`.
    same: what is not a default, and the same in all runs.
    groups: the runs that differ in their seed alone, with their mean accuracy; empty if no two do.
    test, tests: `mcnemar` of two runs or of all pairs, or `paired_t` of all pairs of groups; p_holm is for all of them.
    notes: what else there is to know, a sentence each.
    """
    settings = {name: run.settings for name, run in runs.items()}
    differ = differing([*settings.values()])
    reasons = _not_tested(evaluations)
    tested = {n: e for n, e in evaluations.items() if isinstance(e, Evaluation) and not reasons[n]}
    members = _group({name: settings[name] for name in tested})
    rows = []
    for name, run in runs.items():
        evaluation = evaluations[name]
        group = next((letter for letter, names in members.items() if name in names), None)
        row = {"name": name, "directory": str(run.path), "state": run.state, "group": group}
        row["not_tested"] = reasons[name]
        row["settings"] = {setting: settings[name][setting] for setting in differ}
        rows.append(row | (evaluation.scores if isinstance(evaluation, Evaluation) else {}))
    notes = [f"{name} is not tested: {reason}" for name, reason in reasons.items() if reason]
    for name, run in runs.items():
        if run.state != "finished":
            notes.append(f"{name} is {run.state}: {run.last_epoch} of {run.info.config.epochs} epochs are done")
    of_seen = [row["name"] for row in rows if row.get("trained_on_it")]
    if of_seen:
        notes.append(f"{', '.join(of_seen)}: trained on examples of this split, so the accuracy says little")
    if chosen := [row["name"] for row in rows if row.get("chosen_on_it")]:
        notes.append(f"{', '.join(chosen)}: the step was chosen by its accuracy on this split, which is too good")
    kind, tests, more = _tests(tested, members, settings)
    same = shared([*settings.values()])
    groups = _groups(members, settings, [n for n in differ if n != "seed"], tested)
    return {"same": same, "runs": rows, "groups": groups, "test": kind, "tests": tests, "notes": notes + more}


def _not_tested(evaluations: dict[str, Evaluation | str]) -> dict[str, str | None]:
    """Why each run is not tested: its network is missing, or it was evaluated on other examples than most."""
    known = [e for e in evaluations.values() if isinstance(e, Evaluation)]
    common = most_common_examples(known) if known else ()
    most = next((e.scores for e in known if e.examples == common), {})
    reasons: dict[str, str | None] = {}
    for name, evaluation in evaluations.items():
        if isinstance(evaluation, str):
            reasons[name] = evaluation
        elif evaluation.examples != common:
            texts = [f"{scores['dataset']} {scores['split']}" for scores in (evaluation.scores, most)]
            other = f"those of {texts[1]}" if texts[0] != texts[1] else "another copy's"
            reasons[name] = f"its examples, of {texts[0]}, are not {other}"
        else:
            reasons[name] = None
    return reasons


def _group(settings: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The names of runs whose settings differ in the seed alone, by a letter; nothing if no two runs do."""
    groups: dict[str, list[str]] = {}
    for name, values in settings.items():
        groups.setdefault(json.dumps(values | {"seed": None}), []).append(name)
    if all(len(names) == 1 for names in groups.values()):
        return {}
    return {_letter(index): names for index, names in enumerate(groups.values())}


def _letter(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return ("" if index < 26 else _letter(index // 26 - 1)) + chr(ord("A") + index % 26)


def _groups(
    members: dict[str, list[str]], settings: dict[str, dict[str, Any]], differ: list[str], tested: _Tested
) -> list[dict[str, Any]]:
    """Each group with the settings in which groups differ, and its mean accuracy."""
    groups = []
    for letter, several in members.items():
        names = [*_by_seed(several, settings, []).values()]
        mean, deviation, low, high = spread([tested[name].scores["accuracy"] for name in names])
        about = {"group": letter, "runs": names, "settings": {name: settings[names[0]][name] for name in differ}}
        groups.append(about | {"mean": mean, "standard_deviation": deviation, "interval": [low, high]})
    return groups


def _tests(
    tested: _Tested, members: dict[str, list[str]], settings: dict[str, dict[str, Any]]
) -> tuple[str | None, list[dict[str, Any]], list[str]]:
    """The test, its results, and notes: pairs of runs if there are two, or few and no groups; else pairs of groups."""
    if len(tested) == 2 or (not members and 2 < len(tested) <= MOST_IN_PAIRS):
        tests = []
        for one, other in itertools.combinations(tested, 2):
            result = mcnemar(tested[one].hits, tested[other].hits)
            tests.append({"first": one, "second": other, **result._asdict()})
        return "mcnemar", _with_holm(tests), []
    if not members:
        several = f"more than {MOST_IN_PAIRS} runs, no two of which differ in their seed alone: pairs are not tested"
        return None, [], [several if len(tested) > 2 else "nothing is tested: that takes two runs on the same examples"]
    tests, notes, unpaired = [], [], []
    by_seed = {letter: _by_seed(names, settings, notes) for letter, names in members.items()}
    for one, other in itertools.combinations(by_seed, 2):
        seeds = [seed for seed in by_seed[one] if seed in by_seed[other]]
        if len(seeds) < 2:
            unpaired.append(f"{one} and {other}")
            continue
        first, second = ([tested[by_seed[g][s]].scores["correct"] for s in seeds] for g in (one, other))
        result = paired_t(first, second, next(iter(tested.values())).scores["examples"])
        left_out = {group: [seed for seed in by_seed[group] if seed not in seeds] for group in (one, other)}
        tests.append({"first": one, "second": other, **result._asdict(), "seeds_left_out": left_out})
    if unpaired:
        notes.append(f"not tested, as they share fewer than two seeds: {', '.join(unpaired)}")
    if len(members) == 1:
        notes.append("the runs differ in their seed alone: there is nothing to test")
    return "paired_t", _with_holm(tests), notes


def _by_seed(names: list[str], settings: dict[str, dict[str, Any]], notes: list[str]) -> dict[int, str]:
    """A group's runs by seed, ascending; of two with one seed the first, which a note says."""
    found: dict[int, str] = {}
    for name in sorted(names, key=lambda name: settings[name]["seed"]):
        if (first := found.setdefault(settings[name]["seed"], name)) != name:
            notes.append(f"{name} has the settings and the seed of {first}, which alone is in the tests")
    return found


def _with_holm(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tests with their p values adjusted for how many there are."""
    adjusted = iter(holm([test["p"] for test in tests if test["p"] is not None]))
    return [test | {"p_holm": None if test["p"] is None else next(adjusted)} for test in tests]

"""A sweep's report against scipy's intervals, a t test, and least squares on the design matrix."""

import csv
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from mnist_flax.analysis import summaries, tables


def row(value: float | None, stage: str = "selection", method: str = "", member: int = 0, **overrides: Any) -> dict:
    return {"stage": stage, "member": member, "method": method, "overrides": overrides, "value": value,
            "diverged_at": 7 if value is None else None, "history": [], "seconds": 2.0}  # fmt: skip


def factorial(levels: dict[str, list], counts: list[int]) -> list[dict]:
    """Random accuracies, as many in a cell as `counts` says in turn."""
    rng, cells = np.random.default_rng(0), list(itertools.product(*levels.values()))
    many = zip(cells, itertools.cycle(counts), strict=False)
    rows = [
        row(float(rng.uniform(0.9, 1)), seed=seed, **dict(zip(levels, cell, strict=True)))
        for cell, count in many
        for seed in range(count)
    ]
    random.Random(0).shuffle(rows)
    return rows


FACTORS = {"l2": [0, 0.001], "batch_norm_layers": [[], [2]], "schedule": ["constant", "cosine"]}


def test_summaries_are_those_of_scipy() -> None:
    values = [0.91, 0.95, 0.94, 0.97]
    rows = [row(value, l2=0.1, seed=i) for i, value in enumerate(values)] + [row(None, seed=4, l2=0.1)]
    rows = [row(0.5, "final", l2=0.1), row(0.9, l2=0.2), *rows, row(None, l2=0.3)]
    many, one, none, final = summaries.summarize(rows)
    assert (many.stage, many.method, many.overrides, many.n, many.diverged) == ("selection", "", {"l2": 0.1}, 4, 1)
    assert many.mean == pytest.approx(np.mean(values))
    assert many.standard_deviation == pytest.approx(np.std(values, ddof=1))
    want = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (many.low, many.high) == pytest.approx(want)
    assert many.seconds == 10
    assert one[2:] == ({"l2": 0.2}, 1, 0, 0.9, None, None, None, 2, 0)
    assert none[2:] == ({"l2": 0.3}, 0, 1, None, None, None, None, 2, 0)
    assert (final.stage, final.mean) == ("final", 0.5)


def test_members_that_were_stopped_did_not_diverge() -> None:
    stopped = row(None, seed=1, l2=0.2) | {"diverged_at": None, "stopped": {"epoch": 1, "rank": 3, "of": 4, "kept": 1}}
    rows = [row(0.9, l2=0.2), stopped, row(None, seed=2, l2=0.2)]
    [found] = summaries.summarize(rows)
    assert (found.n, found.diverged, found.stopped, found.mean) == (1, 1, 1, 0.9)
    assert "| n | diverged | stopped | mean (%) |" in tables.markdown(rows)
    assert "stopped" not in tables.markdown(rows[:1])


def test_an_interval_of_accuracies_ends_where_they_do() -> None:
    assert summaries.spread([1.0, 0.99])[2:] == (pytest.approx(0.995 - 12.7062 * 0.005, rel=1e-5), 1.0)
    assert summaries.spread([0.0, 0.01])[2] == 0.0


def test_a_configuration_that_a_search_draws_again_is_no_second_seed() -> None:
    rows = [row(0.8, l2=0.1), row(0.9, l2=0.0), row(0.8, l2=0.1), row(0.9, l2=0.0), row(0.7, l2=0.1, seed=1)]
    assert [(s.overrides, s.n) for s in summaries.summarize(rows)] == [({"l2": 0.0}, 1), ({"l2": 0.1}, 2)]
    assert summaries.summarize(rows)[0].standard_deviation is None
    assert not summaries.effects(rows[:4])  # two values in a cell, but of one run


def test_the_order_of_overrides_is_nothing() -> None:
    [summary] = summaries.summarize([row(0.9, l2=0, b1=0.5, seed=0), row(0.8, seed=1, b1=0.5, l2=0)])
    assert summary.n == 2


def test_the_best_mean_is_chosen() -> None:
    rows = [row(0.99, l2=0.1, seed=0), row(0.93, l2=0.1, seed=1), row(0.97, l2=0.2, seed=0), row(0.96, l2=0.2, seed=1)]
    assert summaries.choose(rows) == {"": {"l2": 0.2}}


def test_of_equals_the_first_is_chosen() -> None:
    rows = [row(0.9, l2=0.2, seed=0), row(0.9, l2=0.1, seed=0), row(0.8, l2=0.1, seed=1), row(0.8, l2=0.2, seed=1)]
    assert summaries.choose(rows) == {"": {"l2": 0.2}}
    assert summaries.choose(rows[1:] + rows[:1]) == {"": {"l2": 0.1}}


def test_what_diverged_once_is_not_chosen() -> None:
    rows = [row(0.9, l2=0.1), row(0.99, l2=0.2, seed=0), row(None, l2=0.2, seed=1)]
    rows += [row(0.8, method="b", l2=0.2), row(None, method="c", l2=0.1), row(1.0, "final", l2=0.5)]
    assert summaries.choose(rows) == {"": {"l2": 0.1}, "b": {"l2": 0.2}}


def test_levels_are_in_order() -> None:
    values = [[2, 3], 0.01, 3, "off", [], [9], 0, None, 0.01]
    rows = [row(0.9, x=value, same=1, seed=i) for i, value in enumerate(values)] + [row(0.9, "final", same=2, x=99)]
    assert summaries.factors(rows) == {"x": [None, 0, 0.01, 3, "off", [], [9], [2, 3]]}


def test_one_effect_is_a_t_test() -> None:
    rows = factorial({"l2": [0.001, 0]}, [3, 5])
    low, high = ([100 * r["value"] for r in rows if r["overrides"]["l2"] == level] for level in (0, 0.001))
    want = scipy.stats.ttest_ind(high, low).confidence_interval(0.95)
    [effect] = summaries.effects(rows)
    assert effect.factors == ("l2",)
    assert effect[1:] == pytest.approx((np.mean(high) - np.mean(low), *want))


@pytest.mark.parametrize("counts", [[4], [2, 3, 5]])
def test_effects_are_twice_the_coefficients_of_least_squares(counts: list[int]) -> None:
    rows = factorial(FACTORS, counts)
    signs = np.array(
        [[1 if r["overrides"][name] == levels[1] else -1 for name, levels in FACTORS.items()] for r in rows]
    )
    terms = [c for size in range(4) for c in itertools.combinations(range(3), size)]  # the mean first
    design = np.stack([signs[:, list(term)].prod(1) for term in terms], 1)
    y = np.array([100 * r["value"] for r in rows])
    coefficients, residual, *_ = np.linalg.lstsq(design, y)
    freedom = len(y) - 8
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * residual[0] / freedom)
    half = scipy.stats.t.ppf(0.975, freedom) * errors
    want = 2 * np.stack([coefficients, coefficients - half, coefficients + half], 1)[1:]
    found = summaries.effects(rows)
    assert [e.factors for e in found] == [tuple(list(FACTORS)[i] for i in term) for term in terms[1:]]
    np.testing.assert_allclose([e[1:] for e in found], want, rtol=1e-9, atol=1e-9)


def test_effects_need_the_full_design() -> None:
    rows = factorial(FACTORS, [2])
    assert len(summaries.effects(rows)) == 7
    assert not summaries.effects(
        [r for r in rows if r["overrides"] | {"seed": 0} != rows[0]["overrides"] | {"seed": 0}]
    )
    assert not summaries.effects(rows[1:])  # a cell of one value
    assert not summaries.effects([*rows[1:], rows[0] | {"value": None}])
    assert not summaries.effects(factorial(FACTORS | {"l2": [0, 0.1, 0.2]}, [2]))
    assert not summaries.effects([r | {"method": r["overrides"]["schedule"]} for r in rows])
    assert not summaries.effects([r for r in rows if r["stage"] == "final"])


def test_the_tables_of_a_grid() -> None:
    cells = [(0, [1, 2], (0.90, 0.92)), (0.001, [1, 2], (0.95, None)), (0.001, [], (0.8, 0.81))]
    rows = [
        row(v, l2=l2, batch_norm_layers=layers, seed=i) for l2, layers, values in cells for i, v in enumerate(values)
    ]
    rows += [row(v, "final", l2=0, batch_norm_layers=[1, 2], seed=9 + i) for i, v in enumerate((0.9, 0.8, 0.85))]
    assert (
        tables.markdown(rows)
        == """\
Selection: validation accuracy after the last epoch:

| l2 | batch_norm_layers | n | diverged | mean (%) | standard deviation | 95 % interval |
|---|---|---|---|---|---|---|
| 0.001 | 1 2 | 1 | 1 | 95.000 |  |  |
| 0 | 1 2 | 2 |  | 91.000 | 1.414 | 78.294 to 100.000 |
| 0.001 | none | 2 |  | 80.500 | 0.707 | 74.147 to 86.853 |

Final: test accuracy over fresh seeds, next to the validation accuracy that chose:

| configuration | n | mean (%) | standard deviation | 95 % interval | validation mean (%) |
|---|---|---|---|---|---|
| l2=0, batch_norm_layers=1 2 | 3 | 85.000 | 5.000 | 72.579 to 97.421 | 91.000 |
"""
    )


def test_the_table_of_effects() -> None:
    cells = ((0.001, (0.95, 0.97)), (0.0, (0.9, 0.92)))
    rows = [row(v, l2=l2, seed=seed) for l2, values in cells for seed, v in enumerate(values)]
    assert "| l2 | 0 to 0.001 | +5.000 | -1.085 to +11.085 |\n" in tables.markdown(rows)


def test_methods_are_named() -> None:
    rows = [row(0.9, method="L2 | dropout", l2=0.1), row(0.8, method="none"), row(0.7, "final", "none")]
    lines = tables.markdown(rows).splitlines()
    assert lines[2] == "| method | l2 | n | mean (%) |"
    assert lines[4:6] == ["| L2 \\| dropout | 0.1 | 1 | 90.000 |", "| none | base | 1 | 80.000 |"]
    assert lines[-1] == "| none | base | 1 | 70.000 | 80.000 |"


def test_long_tables_are_cut() -> None:
    searched = [row(0.9 + i / 1000, learning_rate=1 / (i + 1), l2=i / 7) for i in range(50)]
    lines = tables.markdown(searched).splitlines()
    assert sum(line.endswith("|") for line in lines) == 12 and lines[4].endswith("94.900 |")
    assert lines[-1] == "40 more in summary.csv."
    grid = [row(0.9, l2=i, batch_size=j) for i in range(7) for j in range(8)]
    lines = tables.markdown(grid).splitlines()
    assert sum(line.endswith("|") for line in lines) == 42 and lines[-1] == "16 more in summary.csv."


def test_files_hold_everything(tmp_path: Path) -> None:
    rows = factorial(FACTORS, [2]) + [row(None, method="b", widths=[64, 32]), row(0.987654321, "final", l2=0)]
    rows = [r | {"member": i} for i, r in enumerate(rows)]
    shuffled = random.Random(1).sample(rows, len(rows))
    tables.write_tables(tmp_path, shuffled, "# study.py: which?")
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "summary.csv", "summary.md"}
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == rows
    assert (tmp_path / "summary.md").read_text() == "# study.py: which?\n\n" + tables.markdown(rows)
    lines = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    summarized = summaries.summarize(rows)
    assert len(lines) == len(summarized) == 10
    for line, s in zip(lines, summarized, strict=True):
        assert (line["stage"], line["method"], int(line["n"]), int(line["diverged"])) == (s.stage, s.method, *s[3:5])
        assert line["mean"] == ("" if s.mean is None else repr(s.mean))
    assert {line["batch_norm_layers"] for line in lines} == {"none", "2", ""}
    assert [line["widths"] for line in lines if line["method"] == "b"] == ["64 32"]
    assert "seed" not in lines[0] and math.isclose(float(lines[-1]["mean"]), 0.987654321)


def test_nothing_is_no_table(tmp_path: Path) -> None:
    tables.write_tables(tmp_path, [], "")
    assert tables.markdown([]) == "" and summaries.choose([]) == {} and summaries.effects([]) == []

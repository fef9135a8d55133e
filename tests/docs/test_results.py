"""No number in the README stands there by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_flax.analysis import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
INCLUDED = re.findall(r"<!-- (experiments/results/\S+\.md) -->\n(.*?)\n?<!-- end -->", README, re.DOTALL)


RESULTS = ROOT / "experiments" / "results"
STUDIES = ["regularization", "srivastava2014", "time_to_accuracy", "learning_rate", "precision"]


@pytest.mark.parametrize(("file", "text"), INCLUDED, ids=[file for file, _ in INCLUDED])
def test_tables_are_those_of_the_result_files(file: str, text: str) -> None:
    assert text.strip() == (ROOT / file).read_text().strip()


@pytest.mark.parametrize("name", ["tutorial", "faults", "population", "bench_train", "cost"])
def test_tables_are_made_from_the_measurements(name: str) -> None:
    code = f"import json, {name} as n; print(n.table([*map(json.loads, n.LINES.read_text().splitlines())]), end='')"
    cwd = ROOT / "experiments"
    made = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "experiments" / "results" / f"{name}.md").read_text()


def test_the_two_programs_are_less_than_two_standard_errors_apart() -> None:
    rows = [json.loads(row) for row in (ROOT / "experiments/results/tutorial.jsonl").read_text().splitlines()][1:]
    ours, theirs = ([r["accuracy"][-1] for r in rows if r["program"] == p] for p in ("mnist_flax", "keras-tensorflow"))
    assert len(ours) == len(theirs) >= 10
    mean = [sum(v) / len(v) for v in (ours, theirs)]
    variance = [sum((x - m) ** 2 for x in v) / (len(v) - 1) / len(v) for v, m in zip((ours, theirs), mean, strict=True)]
    assert abs(mean[0] - mean[1]) < 2 * sum(variance) ** 0.5


def test_nothing_was_lost() -> None:
    rows = [json.loads(row) for row in (ROOT / "experiments/results/faults.jsonl").read_text().splitlines()][1:]
    runs = [row for row in rows if row["kind"] == "kills"]
    assert sum(len(row["kills"]) for row in runs) >= 200 and all(row["bit_for_bit"] for row in runs)
    assert not [row for row in rows if row["kind"] == "damage" and "WRONG" in row["outcome"]]
    inputs = [row for row in rows if row["kind"] == "bad input"]
    assert len(inputs) >= 60 and all(row["exit_code"] == 2 and row["untouched"] for row in inputs)


def test_modules_named_in_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", STUDIES)
def test_studies_are_told_as_they_came_out(name: str) -> None:
    rows = [json.loads(row) for row in (RESULTS / name / "results.jsonl").read_text().splitlines()]
    told = (RESULTS / f"{name}.md").read_text()
    assert told.startswith(tables.markdown(rows))
    answer = (ROOT / "experiments" / f"{name}.py").read_text().split("Answer: ")[1].split('"""')[0]
    known = [float(number) for number in re.findall(r"\d+\.\d+", told)]
    for number in re.findall(r"\d+\.\d\d+", answer):
        digits = len(number.split(".")[1])
        assert any(round(value, digits) == float(number) for value in known), number

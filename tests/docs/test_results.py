"""No number on the pages stands there by hand: each is that of a result file."""

import collections
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_flax.analysis import tables

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
README = (ROOT / "README.md").read_text()
STUDIES = ["regularization", "srivastava2014", "time_to_accuracy", "fewest_images", "learning_rate", "precision"]
BENCHMARKS = ["tutorial", "faults", "population", "bench_train", "cost", "device", "crash_states", "mutants",
              "install_size", "compile_accelerators", "random_input", "step_parts", "halving", "start_end",
              "population_based", "many_members", "ensemble", "settings_price"]  # fmt: skip
COPIES = [
    (path.name, *copy)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for copy in re.findall(r"<!-- (experiments/results/\S+\.md) -->\n(.*?)\n?<!-- end -->", path.read_text(), re.DOTALL)
]


def measured(name: str) -> list[dict]:
    """The lines of a benchmark's file; the provenance first."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("page", "file", "text"), COPIES, ids=[f"{page}-{file}" for page, file, _ in COPIES])
def test_tables_are_those_of_the_result_files(page: str, file: str, text: str) -> None:
    assert text.strip() == (ROOT / file).read_text().strip()


def test_the_pages_hold_tables() -> None:
    files = {Path(file).stem for _, file, _ in COPIES}
    in_studies = {"regularization"}
    assert files == {*BENCHMARKS, *in_studies} - {"cost"}


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """Each benchmark's table, made again from its measurements."""
    code = (
        f"import json, {', '.join(BENCHMARKS)}; from provenance import load_results; "
        f"print(json.dumps({{m.__name__: m.table(load_results(m.LINES)) for m in ({', '.join(BENCHMARKS)})}}))"
    )
    cwd = ROOT / "experiments" / "benchmarks"
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_tables_are_made_from_the_measurements(name: str, made: dict[str, str]) -> None:
    assert made[name] == (RESULTS / f"{name}.md").read_text()


def test_one_command_measures_every_table_again() -> None:
    line = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "all.py"), "--dry-run"]
    listed = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    commits = {name: measured(name)[0]["commit"] for name in BENCHMARKS}
    assert {name: commit for name, commit, *_ in map(str.split, listed) if name in commits} == commits
    assert all("minute" in line or "hour" in line for line in listed)
    assert {line.split()[0] for line in listed} >= {*BENCHMARKS}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_the_speeds_of_the_readme_are_those_of_the_benchmark() -> None:
    header, _, *all_rows = cells((RESULTS / "bench_train.md").read_text())
    programs = {row[0]: dict(zip(reversed(header), reversed(row), strict=True)) for row in all_rows}
    [said_header, _, *said], *_ = [cells(part) for part in README.split("\n\n") if part.startswith("| program |")]
    for row in said:
        assert row == [programs[row[0]][name] for name in said_header]
    peers = [name for name in programs if not name.startswith("mnist_flax")]
    fastest = [min(peers, key=lambda peer: float(programs[peer][name])) for name in said_header[1:3]]
    assert ["mnist_flax", *fastest] == [row[0] for row in said]
    assert len(peers) == 5 and measured("bench_train")[0]["cores"] == 2  # as the README says in words


def test_the_checks_of_the_readme_are_those_of_the_measurements() -> None:
    tutorial, faults = measured("tutorial")[1:], measured("faults")[1:]
    programs = ("mnist_flax", "keras-tensorflow")
    ours, theirs = ([100 * r["accuracy"][-1] for r in tutorial if r["program"] == p] for p in programs)
    means = statistics.mean(ours), statistics.mean(theirs)
    error = (statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs)) ** 0.5
    assert len(ours) == len(theirs)
    runs = [row for row in faults if row["kind"] in ("kills", "distributed")]
    sweeps = [row for row in faults if row["kind"] == "sweep"]
    lost = sum(r["exit_code"] != 0 for r in runs) + sum(row["lost"] for row in sweeps)
    other = sum(not r["bit_for_bit"] for r in runs if not r["exit_code"]) + sum(row["differing"] for row in sweeps)
    damaged = [row["outcome"] for row in faults if row["kind"] == "damage" and "already" not in row["outcome"]]
    detected = damaged.count("named, set aside, the one before loaded")
    for text in (
        f"over {len(ours)} seeds",
        f"{means[0]:.3f} % and {means[1]:.3f} %: {abs(means[0] - means[1]) / error:.2f} standard errors apart",
        f"random moments, {sum(len(row['kills']) for row in runs + sweeps)} times",
        f"{lost} lost, {other} with other bits",
        f"damaged, {len(damaged)} times | {detected} times detected",
    ):
        assert text in README


def test_the_two_programs_are_less_than_two_standard_errors_apart() -> None:
    rows = measured("tutorial")[1:]
    ours, theirs = ([r["accuracy"][-1] for r in rows if r["program"] == p] for p in ("mnist_flax", "keras-tensorflow"))
    assert len(ours) == len(theirs) >= 10
    variance = sum(statistics.variance(values) / len(values) for values in (ours, theirs))
    assert abs(statistics.mean(ours) - statistics.mean(theirs)) < 2 * variance**0.5


def test_nothing_was_lost() -> None:
    rows = measured("faults")[1:]
    of = collections.defaultdict(list)
    for row in rows:
        of["skipped" if "skipped" in row else row["kind"]].append(row)
    for kind in ("kills", "distributed", "disk"):
        assert all(row["bit_for_bit"] for row in of[kind])
    for row in of["sweep"] + of["database"] + of["halving"] + of["population"]:
        assert (row["lost"], row["twice"], row["differing"]) == (0, 0, 0)
    assert not [row for row in of["damage"] if "WRONG" in row["outcome"]]
    assert len(of["bad input"]) >= 60 and all(row["exit_code"] == 2 and row["untouched"] for row in of["bad input"])
    assert sum(len(row["kills"]) for row in of["kills"]) >= 200
    assert all(sum(len(row["kills"]) for row in of[kind]) >= 50 for kind in ("halving", "population"))


def test_no_power_cut_lost_anything_and_a_loss_would_have_been_noticed() -> None:
    rows = {row["kind"]: row for row in measured("crash_states")[1:]}
    assert rows.keys() == {"run", "run without sync", "sweep"}
    assert all(row["states"] > row["distinct"] >= 1000 for row in rows.values())
    assert rows["run"]["broken"] == rows["sweep"]["broken"] == 0 < rows["run without sync"]["broken"]


def assert_known(text: str, results: str) -> None:
    """Every number with two decimals or more in a text is one of the results, rounded."""
    known = [float(number) for number in re.findall(r"\d+\.\d+", results)]
    for number in re.findall(r"\d+\.\d\d+", text):
        digits = len(number.split(".")[1])
        assert any(round(value, digits) == float(number) for value in known), number


@pytest.mark.parametrize("name", STUDIES)
def test_studies_are_told_as_they_came_out(name: str) -> None:
    rows = [json.loads(row) for row in (RESULTS / name / "results.jsonl").read_text().splitlines()]
    results = (RESULTS / f"{name}.md").read_text()
    assert results.startswith(tables.markdown(rows))
    assert_known((ROOT / "experiments" / f"{name}.py").read_text().split("Answer: ")[1].split('"""')[0], results)


def test_the_list_of_studies_is_whole_and_true() -> None:
    rows = {row[0].partition("]")[0].strip("["): row for row in cells((ROOT / "experiments/README.md").read_text())[2:]}
    files = {path.stem: path.read_text() for path in (ROOT / "experiments").glob("*.py")}
    assert sorted(rows) == sorted(STUDIES) == sorted(name for name, text in files.items() if "Answer: " in text)
    assert all("\nNot finished." in text for name, text in files.items() if name not in STUDIES)
    for name, (_, _, answer, link) in rows.items():
        assert f"(results/{name}.md)" in link
        assert_known(answer, (RESULTS / f"{name}.md").read_text())

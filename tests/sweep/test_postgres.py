"""A sweep whose trials are in PostgreSQL, as hosts without a common file system have it."""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from conftest import Command
from test_sweep import ONE_PROGRAM, rows_of, write

_SPEC = importlib.util.spec_from_file_location(
    "faults_database", Path(__file__).parents[2] / "experiments" / "benchmarks" / "faults_database.py"
)
assert _SPEC and _SPEC.loader
faults_database = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(faults_database)


@pytest.fixture
def url() -> Iterator[str]:
    """An empty database of a server that ends with the test."""
    if why := faults_database.missing():
        pytest.skip(why)
    directory = Path(tempfile.mkdtemp())  # not in pytest's, which the user postgres may not enter
    try:
        with faults_database.Postgres(directory / "server") as server:
            yield server.new_database("sweeps")
    finally:
        shutil.rmtree(directory)


def test_two_hosts_share_one_sweep(url: str, tmp_path: Path, command: Command) -> None:
    study, quiet = write(tmp_path / "study.py", ONE_PROGRAM, epochs=1), ("--no-figures", "--no-tensorboard")
    one, other = tmp_path / "one", tmp_path / "other"
    plan = command("sweep", study, "--workdir", one, "--storage", url, "--dry-run")
    assert plan.returncode == 0 and "6 members" in plan.stdout and not one.exists(), plan.stderr
    engine = sqlalchemy.create_engine(url)
    assert not sqlalchemy.inspect(engine).get_table_names()  # nothing was written there either
    engine.dispose()
    first = command("sweep", study, "--workdir", one, "--storage", url, "--workers", "2", *quiet)
    assert (first.returncode, first.stderr) == (0, "")
    assert len(rows_of(one)) == 6 and not (one / "optuna.journal").exists()
    second = command("sweep", study, "--workdir", other, "--storage", url, *quiet)
    assert second.returncode == 0 and "is finished: nothing to do" in second.stdout, second.stderr
    assert [row["value"] for row in rows_of(other)] == [row["value"] for row in rows_of(one)]
    assert (one / "results.jsonl").read_bytes() == (other / "results.jsonl").read_bytes()
    write(study, ONE_PROGRAM, epochs=2)  # members are pruned but for the best four (KEEP), which are on the first host
    grown = command("sweep", study, "--workdir", one, "--storage", url, *quiet)
    assert grown.returncode == 0 and "4 members of the selection go on" in grown.stdout, grown.stderr
    assert {len(row["history"]) for row in rows_of(one)} == {4}

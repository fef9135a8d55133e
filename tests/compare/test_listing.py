"""`python -m mnist_flax.compare runs/` lists the runs below a directory, without JAX and without touching them."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Command
from test_layers import HEAVY, imported_by

from mnist_flax.compare import listing, runs
from mnist_flax.config import Hyperparams
from mnist_flax.errors import InputError
from mnist_flax.process import files
from mnist_flax.workdir import claim
from mnist_flax.workdir.run_info import RunInfo

DATA: dict[str, Any] = {"image_shape": [28, 28, 1], "class_names": [*"0123456789"], "train_examples": 200,
                        "eval_examples": 9, "sha256": {"train": "abc"}, "data_dir": "/"}  # fmt: skip


def info(**hparams: Any) -> RunInfo:
    return RunInfo(dataclasses.replace(TINY, epochs=4, hparams=Hyperparams(**hparams)), DATA, {"jax": "1"})


def make(path: Path, epochs: int, when: int, **hparams: Any) -> Path:
    """A run of four epochs that has finished some; its files were written at `when`."""
    with claim.claim(path, info(**hparams)):
        pass
    numbers = {"loss": 0.5, "cross_entropy": 0.4, "l2_penalty": 0.1, "learning_rate": 0.001, "seconds": 1.5}
    lines = [
        {"step": 13 * epoch, "epoch": epoch, "split": split, "accuracy": (90 + epoch) / 100, "examples": 9, **numbers}
        for epoch in range(1, epochs + 1)
        for split in ("train", "eval")
    ]
    if lines:
        files.write_lines(claim.metrics_file(path), lines)
    for file in path.iterdir():
        os.utime(file, (1_700_000_000 + when,) * 2)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Runs in all states; members of a sweep; and what is not a run."""
    base = tmp_path / "runs"
    make(base / "finished", 4, 1)
    make(base / "deep" / "er" / "stopped", 3, 2, seed=5)
    make(base / "new", 0, 3, l2=0.1)
    bad = make(base / "nan", 2, 4)
    texts = {bad / "metrics.jsonl": (bad / "metrics.jsonl").read_text(), bad / ".diverged": ""}
    texts[make(base / "cut", 2, 5) / "metrics.jsonl"] = '{"step"\n{}\n'
    texts[make(base / "newer", 1, 6) / "config.json"] = json.dumps({"format": 9})
    (base / "text").mkdir()
    texts[base / "text" / "config.json"] = "hello"
    for file, text in texts.items():
        file.write_text(text)
        os.utime(file, (1_700_000_007,) * 2)
    (base / ".hidden").mkdir()
    make(base / ".hidden" / "exp", 4, 9)
    sweep = base / "sweep"
    for member in range(8):
        make(sweep / "members" / f"{member:04}", 4 if member != 7 else 0, 100 + member, seed=member)
    files.write_text(sweep / "sweep.json", "{}\n")
    (sweep / "members" / "0007" / ".diverged").touch()
    return base


def contents(path: Path) -> dict[str, tuple[int, bytes | None]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in path.rglob("*")}


def test_states(base: Path) -> None:
    before = contents(base)
    found = {run.name: run for run in listing.find(base)}
    states = {name: (run.state, run.epochs_done, run.accuracy) for name, run in found.items() if not run.sweep}
    assert states == {
        "finished": ("finished", 4, 0.94),
        "deep/er/stopped": ("stopped", 3, 0.93),
        "new": ("stopped", 0, None),
        "nan": ("diverged", 2, None),
        "cut": ("damaged", None, None),
        "newer": ("damaged", None, None),
        "text": ("damaged", None, None),
    }
    assert "format 9, and this one knows 1" in str(found["newer"].problem)
    assert "metrics.jsonl is damaged; train it again" in str(found["cut"].problem)
    assert "is damaged" in str(found["text"].problem)
    assert {found[f"sweep/members/{i:04}"].state for i in range(7)} == {"finished"}
    assert found["sweep/members/0007"].state == "diverged"
    assert contents(base) == before
    with claim.claim(base / "deep" / "er" / "stopped", info(seed=5)):
        [running] = listing.find(base / "deep")
        assert (running.name, running.state) == ("er/stopped", "running")


def test_the_last_line_may_be_half_written(base: Path) -> None:
    with claim.metrics_file(base / "finished").open("a") as file:
        file.write('{"step": 65, "ep')
    assert runs.read(base / "finished").last_epoch == 4
    (base / "finished" / ".lock").unlink()
    assert runs.read(base / "finished").state == "finished" and not (base / "finished" / ".lock").exists()
    with pytest.raises(InputError, match="is not a run"):
        runs.read(base)


def test_what_is_printed(base: Path, command: Command) -> None:
    env = {"COLUMNS": "80", "TZ": "UTC"}
    result = command("compare", "runs", cwd=base.parent, env=env)
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and re.split(" {2,}", lines[0]) == ["run", "state", "accuracy", "when", "settings"]
    assert [line.split()[0] for line in lines[1:]] == [
        *(f"sweep/members/000{i}" for i in (7, 6, 5, 4, 3)), "cut", "nan", "newer", "text", "new", "deep/er/stopped",
        "finished", "runs/sweep:", "In"
    ]  # fmt: skip
    assert re.fullmatch(r"deep/er/stopped +stopped, 3 of 4 +93.00%  14 Nov  2023  seed=5", lines[11])
    assert lines[-2] == "runs/sweep: 3 more members (3 finished); --all lists them"
    assert lines[-1] == "In all of them, unlike the defaults: widths=16 16, batch_size=16, steps_per_call=4"
    assert max(map(len, lines[:-1])) <= 80
    warnings = sorted(line.split(" cannot")[0] for line in result.stderr.splitlines())
    assert warnings == ["warning: cut", "warning: newer", "warning: text"]
    everything = command("compare", "runs", "--all", cwd=base.parent, env=env).stdout
    assert everything.count("sweep/members/") == 8 and "more members" not in everything


def test_json_and_several_directories(base: Path, command: Command) -> None:
    result = command("compare", "deep", "sweep", "--json", cwd=base)
    found = json.loads(result.stdout)["runs"]
    assert len(found) == 9 and found[-1]["name"] == "er/stopped" and found[-1]["settings"]["seed"] == 5
    assert found[0]["sweep"] == str(base / "sweep") and found[0]["directory"] == str(base / "sweep/members/0007")
    assert "dropout_rate" not in found[0]["settings"] and found[0]["changed"].startswith("2023-11-14T")


def test_jax_is_not_imported(base: Path) -> None:
    start = "import runpy; runpy.run_module('mnist_flax.compare', run_name='__main__')"
    assert not HEAVY & imported_by(f"sys.argv = ['compare', {str(base)!r}]; {start}")

"""A trace of a training names the operations of its steps, and a missing one is said."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import TINY_FLAGS, Command

from mnist_flax.monitor.profile import CALLS, traced


def events(directory: Path) -> list[str]:
    """The names in the one trace of a directory, in Chrome's format, which Perfetto reads."""
    (file,) = directory.glob("plugins/profile/*/*.trace.json.gz")
    with gzip.open(file) as text:
        return [event.get("name", "") for event in json.load(text)["traceEvents"]]


def test_some_calls_are_traced_but_the_first(tmp_path: Path) -> None:
    names = [f"call_{number}" for number in range(CALLS + 3)]

    def calls() -> None:
        for name in traced(names, tmp_path):
            yielded.append(name)
            with jax.profiler.TraceAnnotation(f"after_{name}"):
                jnp.ones(3).block_until_ready()

    yielded: list[str] = []
    calls()
    assert yielded == names
    seen = {name for name in events(tmp_path) if name.startswith("after_")}
    assert seen == {f"after_{name}" for name in names[1 : CALLS + 1]}


def test_no_trace_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [*traced([1], tmp_path / "a")] == [1]
    assert "has no trace of steps: there was no call of steps after the first" in capsys.readouterr().err
    assert [*traced([1, 2, 3], Path("/proc/missing"))] == [1, 2, 3]
    assert "profile='/proc/missing' has no trace of steps: " in capsys.readouterr().err
    assert [*traced([1, 2, 3], None)] == [1, 2, 3] and capsys.readouterr().err == ""


def test_the_command(command: Command, tmp_path: Path) -> None:
    path, trace = tmp_path / "exp", tmp_path / "trace"
    assert command("train", "--workdir", path, *TINY_FLAGS, "--profile", trace).returncode == 0
    assert any("dot" in name for name in events(trace))  # an operation of XLA
    again = command("train", "--workdir", path, *TINY_FLAGS, "--profile", trace)
    assert again.returncode == 0 and "has no trace of steps: nothing was trained" in again.stderr
    (file := tmp_path / "file").touch()
    refused = command("train", "--workdir", tmp_path / "other", *TINY_FLAGS, "--profile", file)
    assert refused.returncode == 2 and not (tmp_path / "other").exists()
    assert refused.stderr == f"error: profile='{file}' is not a directory; give another --profile\n"

"""The flags that all commands have, and a file whose settings are the defaults of the flags."""

import importlib.metadata
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY, TINY_FLAGS, Command

import mnist_flax
from mnist_flax.config import to_json
from mnist_flax.process import cli


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "sweep", "export", "compare", "data"])
def test_every_command_tells_its_version(name: str, command: Command) -> None:
    result = command(name, "--version")
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith(f"mnist_flax {importlib.metadata.version('mnist_flax')}")
    assert mnist_flax.__version__ == importlib.metadata.version("mnist_flax")


def test_quiet_prints_nothing(command: Command, finished: Path) -> None:
    result = command("train", "--workdir", finished, *TINY_FLAGS, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    result = command("train", "--workdir", finished, "--quiet")
    assert result.returncode == 2 and result.stderr.startswith("error: workdir=")


def test_a_config_gives_the_defaults_and_flags_win(command: Command, finished: Path, tmp_path: Path) -> None:
    flags = ["--config", finished / "config.json", "--epochs", "1", "--seed", "7", "--no-figures", "--no-tensorboard"]
    result = command("train", "--workdir", tmp_path / "run", *flags)
    assert result.returncode == 0, result.stderr
    want = json.loads((finished / "config.json").read_text())["config"]
    want |= {"epochs": 1, "hparams": want["hparams"] | {"seed": 7}}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"] == want
    (tmp_path / "settings.json").write_text(json.dumps(to_json(TINY)))  # a file of settings alone
    result = command("train", f"--config={tmp_path / 'settings.json'}", "--help")
    assert result.returncode == 0 and "(default: 16 16)" in result.stdout


WRONG = {
    "missing.json": (None, r"config='missing.json' cannot be read \(No such file or directory\); give a run's config"),
    "text.json": ("text", "config='text.json' is not JSON"),
    "list.json": ("[]", r"list.json must be an object of fields, not \[\]; give a run's config.json"),
    "part.json": ('{"config": {"epochs": 3}}', "part.json lacks field .*; give a run's config.json"),
    "kind.json": (
        json.dumps(to_json(TINY) | {"epochs": "3"}),
        "kind.json: epochs='3' has the wrong type, not a whole number; give a run's config.json",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_config_that_is_not_one_is_one_line(name: str, command: Command, tmp_path: Path) -> None:
    content, want = WRONG[name]
    if content:
        (tmp_path / name).write_text(content)
    result = command("train", "--workdir", "run", "--config", name, cwd=tmp_path)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    [line] = result.stderr.splitlines()
    assert re.search(want, line), line


def test_an_error_in_a_librarys_thread_is_one_line(capsys: pytest.CaptureFixture) -> None:
    """And what orbax's threads complain of, after a save that found no space, is none."""
    cli._unraisable(SimpleNamespace(exc_value=ValueError("odd\nthings")))
    cli._unraisable(SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))
    assert capsys.readouterr().err == "warning: ValueError: odd things\n"

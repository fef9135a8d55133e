"""A run that begins with another's weights."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import TINY_FLAGS, Command, assert_trees_equal

import mnist_flax
from mnist_flax.errors import InputError
from mnist_flax.train import init_from
from mnist_flax.workdir import resume, run_info


def state_of(path: Path, step: int) -> Any:
    return resume.load(path, run_info.read(path), step, warn=print).state


def train(command: Command, path: Path, *flags: object) -> str:
    result = command("train", "--workdir", path, *TINY_FLAGS, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_weights_are_taken_and_recorded(finished: Path, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    flags = "--init-from", finished, "--learning-rate", 1e-30, "--l2", 0  # so that the weights stay what they are
    out = train(command, path, *flags)
    assert f"begins with the weights of {finished} at step 26\n" in out
    assert_trees_equal(state_of(path, 26).params, state_of(finished, 26).params)
    recorded = json.loads((path / "config.json").read_text())["initial"]
    assert recorded["workdir"] == str(finished) and recorded["step"] == 26 and len(recorded["sha256"]) == 64
    assert f"began with the weights of {finished}" in (path / "README.md").read_text()
    assert "nothing to do" in train(command, path, *flags)


def test_killed_in_its_first_epoch_it_begins_again_with_the_same_weights(
    finished: Path, command: Command, tmp_path: Path
) -> None:
    source = shutil.copytree(finished, tmp_path / "source")
    flags = "--init-from", source
    train(command, tmp_path / "straight", *flags)
    shutil.copytree(tmp_path / "straight", tmp_path / "exp")
    for name in ("checkpoints", ".saved", "metrics.jsonl"):
        entry = tmp_path / "exp" / name
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    command("train", "--workdir", source, *TINY_FLAGS, "--epochs", 3)  # its latest step is another now
    assert "at step 26" in train(command, tmp_path / "exp", *flags)
    assert_trees_equal(state_of(tmp_path / "exp", 26), state_of(tmp_path / "straight", 26))


def other_classes(finished: Path, tmp_path: Path, **data: Any) -> run_info.RunInfo:
    run = run_info.read(finished)
    initial = init_from.find(finished, tmp_path / "none", run.data)
    return dataclasses.replace(run, data=run.data | data, initial=initial)


def test_another_number_of_classes_gets_a_new_output_layer(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = other_classes(finished, tmp_path, class_names=list("abc"))
    saved = resume.resume(tmp_path / "none", run, warn=print, set_aside=False)
    hparams = mnist_flax.Hyperparams()
    from mnist_flax.state import as_arrays, init_state

    fresh = jax.device_get(init_state(as_arrays(hparams), program=saved.program))
    state, theirs = init_from.first_state(fresh, run), state_of(finished, 26)
    assert "its 10 classes are others, so the output layer is new" in capsys.readouterr().out
    assert_trees_equal(state.params["dense_3"], fresh.params["dense_3"])
    for name in ("dense_1", "dense_2", "batch_norm_2"):
        assert_trees_equal(state.params[name], theirs.params[name])
    assert_trees_equal(state.batch_stats, theirs.batch_stats)
    assert_trees_equal(state.opt_state, fresh.opt_state)
    assert not np.asarray(state.step)


def test_what_is_wrong_is_named(finished: Path, command: Command, tmp_path: Path) -> None:
    cases: list[tuple[list[object], str]] = [
        (["--init-from", tmp_path / "none"], "is not a run"),
        (
            ["--init-from", finished, "--widths", 16, 17],
            r"has widths=\(16, 16\) \(here \(16, 17\)\); give --widths 16 16",
        ),
        (["--init-from", finished, "--batch-norm-layers"], r"has batch_norm_layers=\(2,\).*give --batch-norm-layers 2"),
    ]
    for flags, text in cases:
        result = command("train", "--workdir", tmp_path / "exp", *TINY_FLAGS, *flags)
        assert result.returncode == 2 and not (tmp_path / "exp").exists()
        [line] = result.stderr.splitlines()
        assert re.search(text, line), line
    result = command("train", "--workdir", finished, *TINY_FLAGS, "--init-from", finished)
    assert result.returncode == 2 and "began with (random weights); leave it out" in result.stderr


def test_it_is_not_evaluated_on_what_the_source_or_its_source_has_seen(
    finished: Path, command: Command, tmp_path: Path
) -> None:
    flags = ["--train-split", "train[300:400]", "--eval-split"]
    train(command, tmp_path / "tuned", "--init-from", finished, *flags, "test[:203]")
    for source in (finished, tmp_path / "tuned"):  # `finished` was trained on train[:200]
        words = [
            *TINY_FLAGS,
            "--init-from",
            source,
            "--train-split",
            "train[500:600]",
            "--eval-split",
            "train[150:250]",
        ]
        result = command("train", "--workdir", tmp_path / "exp", *words)
        assert result.returncode == 2 and not (tmp_path / "exp").exists()
        assert f"shares examples with train[:200], on which init_from={str(source)!r} was trained" in result.stderr
    other = run_info.read(finished)
    with pytest.raises(InputError, match=r"has images of another size: \[28, 28, 1\], here \[8, 8, 1\]"):
        init_from.find(finished, tmp_path / "none", other.data | {"image_shape": [8, 8, 1]})


def test_a_source_that_has_changed_is_refused(finished: Path, tmp_path: Path) -> None:
    run = other_classes(finished, tmp_path)
    run = dataclasses.replace(run, initial=run.initial | {"sha256": "0" * 64})
    with pytest.raises(InputError, match="holds another step 26 than this run began with"):
        init_from.first_state(state_of(finished, 26), run)
    run = other_classes(finished, tmp_path, image_shape=[14, 14, 1])
    with pytest.raises(InputError, match="has images of another size: params/dense_1/kernel"):
        small = state_of(finished, 26)
        small.params["dense_1"]["kernel"] = np.zeros((196, 16), np.float32)
        init_from.first_state(small, run)

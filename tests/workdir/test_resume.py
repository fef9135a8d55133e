"""Nothing is lost: real processes are killed, stopped and starved, and the rerun ends where a straight run ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, TINY_FLAGS, Command, assert_trees_equal

import mnist_flax
from mnist_flax import inference
from mnist_flax.config import Config
from mnist_flax.errors import InputError, RunError
from mnist_flax.monitor.async_writer import AsyncWriter
from mnist_flax.process import cli, files
from mnist_flax.train import __main__ as train
from mnist_flax.workdir import checkpoint, claim, run_info

FLAGS = [*TINY_FLAGS, "--epochs", "12", "--checkpoint-every", "5", "--keep", "3"]
TOTAL = 12 * 13


def start(path: Path, *flags: str, **kwargs) -> subprocess.Popen:
    line = [sys.executable, "-m", "mnist_flax.train", "--workdir", str(path), *FLAGS, *flags]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **kwargs)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return process.returncode, stdout, stderr


def kill(process: subprocess.Popen) -> None:
    process.kill()
    finish(process)


def wait_for_step(process: subprocess.Popen, path: Path, step: int) -> None:
    """Return as soon as a checkpoint of `step` or later is there."""
    while max(checkpoint.steps(path / "checkpoints"), default=0) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def result_of(path: Path) -> tuple[dict, list[dict]]:
    """The final state, and the metrics without their timings."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    step, state, info = checkpoint.restore(path / "checkpoints", "latest", warn=pytest.fail)
    assert step == TOTAL and info["history"] == lines
    return state, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("straight") / "exp"
    assert finish(start(path))[0] == 0
    return path


def assert_same_run(path: Path, straight: Path) -> None:
    (state, lines), (want_state, want_lines) = result_of(path), result_of(straight)
    assert lines == want_lines
    assert_trees_equal(state, want_state)
    assert not list((path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("seed", range(1))
def test_killed_anywhere_it_ends_bit_for_bit_where_a_straight_run_ends(
    straight: Path, tmp_path: Path, seed: int
) -> None:
    rng, path = np.random.default_rng(seed), tmp_path / "exp"
    for step in sorted(rng.integers(1, TOTAL, size=2)):
        process = start(path)
        wait_for_step(process, path, int(step))
        time.sleep(rng.uniform(0, 0.05))
        kill(process)
    assert finish(start(path))[0] == 0
    assert_same_run(path, straight)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_the_rerun_goes_on(straight: Path, tmp_path: Path, signum: int, code: int) -> None:
    path = tmp_path / "exp"
    process = start(path)
    wait_for_step(process, path, 30)
    process.send_signal(signum)
    got, _, stderr = finish(process)
    assert got == code
    saved = checkpoint.steps(path / "checkpoints")[-1]
    assert stderr.count("\n") == 1 and f"step {saved} is saved in {path}/checkpoints/{saved}" in stderr
    if signum != signal.SIGTERM:
        return
    got, stdout, stderr = finish(start(path))
    assert got == 0 and f"resumed at step {saved}" in stdout and stderr == ""
    assert_same_run(path, straight)


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    """In a call that would take minutes: the first signal waits for its end, the second does not."""
    path = tmp_path / "exp"
    process = start(path, "--widths", "4096", "4096", "--batch-size", "8", "--train-split", "train",
                    "--steps-per-call", "100000", "--checkpoint-every", "0", bufsize=1)  # fmt: skip
    assert process.stdout
    while "12 epochs of 7,500 steps" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 143
    finish(process)


def test_a_vanished_config_costs_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "exp"
    process = start(path, "--epochs", "2000")
    wait_for_step(process, path, 20)
    (path / "config.json").rename(tmp_path / "config.json")
    code, _, stderr = finish(process)
    assert code == 1 and "config.json has vanished" in stderr and stderr.count("\n") == 1
    assert len(checkpoint.steps(path / "checkpoints")) >= 3


def test_a_second_process_is_told_who_holds_the_workdir(tmp_path: Path) -> None:
    path = tmp_path / "exp"
    first = start(path, "--epochs", "2000")
    wait_for_step(first, path, 5)
    code, _, stderr = finish(start(path, "--epochs", "2000"))
    assert code == 2 and stderr.count("\n") == 1
    assert f"in use by pid {first.pid} on host {os.uname().nodename} since 20" in stderr
    kill(first)
    third = start(path, "--epochs", "2000")  # a killed holder blocks nobody
    wait_for_step(third, path, checkpoint.steps(path / "checkpoints")[-1] + 5)
    kill(third)


@pytest.mark.parametrize("note", [b"\xff", b"", b"x" * 1000])
def test_a_holder_may_have_left_any_note(note: bytes, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "exp")
    (tmp_path / "exp" / ".lock").write_bytes(note)
    run = run_info.read(tmp_path / "exp")
    with (
        files.lock(tmp_path / "exp" / ".lock"),
        pytest.raises(claim.InUse, match="in use by (another process|x{200});"),
        claim.claim(tmp_path / "exp", run),
    ):
        pass


@pytest.mark.parametrize("left", ["checkpoint", "nothing"])
def test_a_damaged_checkpoint_is_set_aside(straight: Path, tmp_path: Path, command: Command, left: str) -> None:
    path = tmp_path / "exp"
    shutil.copytree(straight, path)
    steps = checkpoint.steps(path / "checkpoints")
    for step in steps[-1:] if left == "checkpoint" else steps:
        file = max((path / "checkpoints" / str(step)).rglob("*"), key=lambda f: f.stat().st_size)
        content = bytearray(file.read_bytes())
        content[-100] ^= 4
        file.write_bytes(content)
    code, stdout, stderr = finish(start(path))
    assert f"checkpoints/{TOTAL} is damaged (changed: " in stderr and f"corrupt-{TOTAL}" in stderr
    if left == "checkpoint":
        assert code == 0 and f"resumed at step {steps[-2]}" in stdout
        assert_same_run(path, straight)
    else:
        assert code == 1 and "error: no sound checkpoint is left" in stderr
        assert command("train", "--workdir", path, *FLAGS).returncode == 1  # and never a silent fresh start
        with pytest.raises(RunError, match="no sound checkpoint is left"):
            mnist_flax.load(path)


def test_metrics_are_restored_whatever_happened_to_them(straight: Path, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    shutil.copytree(straight, path)
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 169, "half a li')
    shutil.copytree(path, tmp_path / "without")
    (tmp_path / "without" / "metrics.jsonl").unlink()
    processes = [start(path), start(tmp_path / "without")]
    assert [finish(process)[0] for process in processes] == [0, 0]
    assert_same_run(tmp_path / "without", straight)
    assert_same_run(path, straight)


def test_not_finite_stops_and_keeps_the_last_good_checkpoint(command: Command, tmp_path: Path) -> None:
    result = command("train", "--workdir", tmp_path / "exp", *FLAGS, "--learning-rate", "1e30")
    assert result.returncode == 1 and result.stderr.startswith("error: not finite ")
    assert result.stderr.count("\n") == 1 and "learning_rate" in result.stderr
    for step in checkpoint.steps(tmp_path / "exp" / "checkpoints"):
        _, state, _ = checkpoint.restore(tmp_path / "exp" / "checkpoints", step, warn=pytest.fail)
        assert all(np.isfinite(leaf).all() for leaf in [*state["params"]["dense_1"].values()])


def test_a_vanished_workdir_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "exp"
    process = start(path, "--epochs", "2000")
    wait_for_step(process, path, 5)
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    code, _, stderr = finish(process)
    assert code == 1
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert not (path / "config.json").exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    """A file system of 700 kB, room for a few checkpoints."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "none", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_one_line_and_keeps_the_last_good_checkpoint(full_disk: Path, command: Command) -> None:
    path = full_disk / "exp"
    result = command("train", "--workdir", path, *FLAGS, "--keep", "1000")
    assert result.returncode == 1, result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and "No space left" in result.stderr
    saved = checkpoint.steps(path / "checkpoints")
    assert f"the last good checkpoint is {path}/checkpoints/{saved[-1]}" in result.stderr
    assert checkpoint.restore(path / "checkpoints", "latest", warn=pytest.fail)[0] == saved[-1]


@pytest.mark.parametrize("delay", [0.3, 0.9])
def test_a_signal_at_any_time_is_one_line(tmp_path: Path, delay: float) -> None:
    """Before Python has read our code, in imports, in compilation, between calls, at the end."""
    process = start(tmp_path / "exp")
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    code, _, stderr = finish(process)
    assert (code, stderr.count("\n")) in ((-signal.SIGTERM, 0), (143, 1), (0, 0)), stderr


def test_a_kill_before_the_first_write_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "exp"
    path.mkdir()
    (path / ".lock").touch()
    (path / ".config.json.tmp").write_text('{"half')
    claim.check(path, Config())  # does not refuse it
    (path / "thesis.tex").touch()
    with pytest.raises(InputError):
        claim.check(path, Config())


def test_removed_checkpoints_are_no_fresh_start(straight: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "exp"
    shutil.copytree(straight, path)
    shutil.rmtree(path / "checkpoints")
    result = command("train", "--workdir", path, *FLAGS)
    assert result.returncode == 1 and "had checkpoints and has none now" in result.stderr
    assert (path / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def test_reading_while_training_goes_on(tmp_path: Path) -> None:
    """Checkpoints come and go under the reader's eyes; it sees whole ones only."""
    path = tmp_path / "exp"
    process = start(path, "--epochs", "2000", "--keep", "1", "--checkpoint-every", "2")
    wait_for_step(process, path, 5)
    for _ in range(15):
        _, variables = mnist_flax.load(path)
        assert variables["params"]["dense_1"]["kernel"].shape == (784, 16)
    assert process.poll() is None and not list((path / "checkpoints").glob("corrupt-*"))
    kill(process)


def test_a_full_disk_at_the_start_leaves_nothing(full_disk: Path, command: Command) -> None:
    (full_disk / "filler").write_bytes(bytes(690 * 1024))
    result = command("train", "--workdir", full_disk / "exp", *FLAGS)
    assert result.returncode in (1, 2) and result.stderr.count("\n") == 1 and "No space left" in result.stderr


def test_not_finite_in_evaluation_alone(command: Command, tmp_path: Path) -> None:
    flags = ["--batch-norm-layers", "--l2-layers", "--batch-size", "200", "--epochs", "1", "--learning-rate", "1e12"]
    result = command("train", "--workdir", tmp_path / "exp", *TINY_FLAGS, *flags)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "not finite after step 1: ['evaluation'].cross_entropy has" in result.stderr


def test_a_straight_run_records_its_versions(straight: Path) -> None:
    assert run_info.read(straight).versions == run_info.versions()


def test_a_renamed_checkpoint_is_refused(finished: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "exp")
    saved = tmp_path / "exp" / "checkpoints"
    shutil.rmtree(saved / "26")
    (saved / "13").rename(saved / "26")
    with pytest.raises(RunError, match="checkpoints/26 holds step 13: it has been renamed; give it its name back"):
        mnist_flax.load(tmp_path / "exp")
    result = command("train", "--workdir", tmp_path / "exp", *TINY_FLAGS)
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
    assert checkpoint.steps(saved) == [26]


@pytest.mark.parametrize("field", ["precision", "image_shape"])
def test_a_setting_that_only_the_checkpoint_has_is_missed(field: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "exp"
    assert command("train", "--workdir", path, *TINY_FLAGS, "--epochs", "1", "--precision", "bfloat16").returncode == 0
    file = path / "config.json"
    if field == "precision":  # older files lack it, so that nothing else notices
        file.write_text(file.read_text().replace('"precision": "bfloat16"', '"keep": 2'))
    else:
        file.write_text(file.read_text().replace("28,\n      28,", "14,\n      56,"))
    for line in (
        ["evaluate"],
        ["train", *TINY_FLAGS, "--epochs", "1", *["--precision", "bfloat16"] * (field != "precision")],
    ):
        result = command(line[0], "--workdir", path, *line[1:])
        assert result.returncode == 2, result
        assert f"whose config.json was another: {field} differs" in result.stderr or "other data" in result.stderr


def test_a_run_is_not_evaluated_on_what_it_is_trained_on(command: Command, tmp_path: Path) -> None:
    flags = [*TINY_FLAGS, "--epochs", "1", "--eval-split", "train[199:300]"]
    refused = command("train", "--workdir", tmp_path / "exp", *flags)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and not (tmp_path / "exp").exists()
    assert "eval_split='train[199:300]' shares examples with train_split='train[:200]'" in refused.stderr
    assert command("train", "--workdir", tmp_path / "exp", *TINY_FLAGS, "--epochs", "1").returncode == 0
    config = tmp_path / "exp" / "config.json"  # as an older version would have begun it
    tree = json.loads(config.read_text())
    tree["config"]["eval_split"], tree["data"]["eval_examples"] = "train[199:300]", 101
    config.write_text(json.dumps(tree))
    for leftover in ("checkpoints", ".saved", "metrics.jsonl"):
        files.remove(tmp_path / "exp" / leftover)
    older = command("train", "--workdir", tmp_path / "exp", *flags)
    assert older.returncode == 0 and older.stderr.count("\n") == 1
    assert older.stderr.startswith("warning: eval_split='train[199:300]' shares examples with train_split=")


def test_no_commit_of_a_repository_around_an_installed_package(tmp_path: Path) -> None:
    site = tmp_path / "project" / ".venv"
    shutil.copytree(Path(mnist_flax.__file__).parent, site / "mnist_flax")
    (site.parent / ".gitignore").write_text(".venv\n")
    git = ["git", "-C", str(site.parent), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for line in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *line], check=True)
    code = "from mnist_flax.workdir.run_info import commit; print(repr(commit()))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=site,
        capture_output=True,
        text=True,
    )
    assert run.stdout == "''\n", run


def test_a_newer_directory_is_refused(finished: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "exp")
    config = tmp_path / "exp" / "config.json"
    config.write_text(config.read_text().replace('"format": 1', '"format": 2'))
    result = command("evaluate", "--workdir", tmp_path / "exp")
    assert result.returncode == 2 and "was written by a newer version (format 2, and this one knows 1)" in result.stderr


@pytest.mark.parametrize(
    "name", ["figures", "tensorboard", "evaluation.json", "metrics.jsonl", "checkpoints/13", ".saved"]
)
def test_a_link_inside_leads_nowhere(name: str, finished: Path, command: Command, tmp_path: Path) -> None:
    path, outside = tmp_path / "exp", tmp_path / "outside"
    shutil.copytree(finished, path)
    files.remove(path / name)
    if name.endswith(("jsonl", "json")):
        outside.write_text("mine")
    else:
        outside.mkdir()
        (outside / "mine").touch()
    (path / name).symlink_to(outside)
    for line in (["train", *TINY_FLAGS, "--tensorboard", "--figures"], ["evaluate"]):
        result = command(line[0], "--workdir", path, *line[1:])
        assert result.returncode == 2 and result.stderr.count("\n") == 1, result
        assert f"has a symbolic link, {Path(name).name}; put what it points to in its place" in result.stderr
    assert outside.read_text() == "mine" if outside.is_file() else [p.name for p in outside.iterdir()] == ["mine"]


def test_the_writer_has_every_message_before_a_checkpoint_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before a checkpoint are not trained, so not sent, again."""
    seen: list[str] = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *args, **kwargs: (seen.append("save"), save(*args, **kwargs)))
    for name in ("send", "flush"):
        monkeypatch.setattr(AsyncWriter, name, lambda self, *_, name=name: seen.append(name))
    flags = [*TINY_FLAGS, "--batch-size", "40", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["train", "--workdir", str(tmp_path / "exp"), *flags])
    with pytest.raises(SystemExit):
        cli.main(train.Args, train.run)
    saves = [index for index, what in enumerate(seen) if what == "save"]
    assert saves and all(seen[index - 2 : index] == ["send", "flush"] for index in saves)


def test_other_data_than_the_runs_is_refused(finished: Path) -> None:
    run = run_info.read(finished)
    assert inference.find_dataset(run, None).sha256 == run.data["sha256"]
    other = replace(run, data=run.data | {"sha256": run.data["sha256"] | {"test-images.npy": "0" * 64}})
    with pytest.raises(InputError, match="holds another mnist than the run's; give its --data-dir"):
        inference.find_dataset(other, None)


def test_a_new_directory_is_on_the_disk_and_so_are_those_above_it(
    finished: Path, tmp_path: Path, synced: set[int]
) -> None:
    """Else a power cut can lose it with all the checkpoints in it, though those were synced."""
    path = tmp_path / "sweep" / "members" / "0000"
    with claim.claim(path, run_info.read(finished)):
        assert {each.stat().st_ino for each in (tmp_path, path.parent.parent, path.parent, path)} <= synced

"""A run's directory is one process's at a time, keeps what it was begun with, and is never a stranger's."""

import dataclasses
import errno
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from mnist_flax.config import Hyperparams
from mnist_flax.errors import InputError, RunError
from mnist_flax.workdir import claim, run_info
from mnist_flax.workdir.run_info import RunInfo

DATA: dict[str, Any] = {"image_shape": [28, 28, 1], "class_names": [*"0123456789"], "train_examples": 200,
                        "eval_examples": 9, "sha256": {"train": "abc"}, "data_dir": "/"}  # fmt: skip
RUN = RunInfo(TINY, DATA, {"jax": "1"})


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """The directory of a run, not in use."""
    with claim.claim(tmp_path / "exp", RUN):
        pass
    return tmp_path / "exp"


def test_a_new_directory_holds_the_run(exp: Path) -> None:
    assert sorted(path.name for path in exp.iterdir()) == [".lock", "config.json"]
    assert claim.is_run(exp) and run_info.read(exp) == RUN and not claim.was_saved(exp)


def test_what_began_a_run_stays_recorded(exp: Path) -> None:
    """Newer libraries, or the data in another place: it is the same run."""
    later = dataclasses.replace(RUN, versions={"jax": "2"}, data=DATA | {"data_dir": "/elsewhere"})
    with claim.claim(exp, later) as recorded:
        assert recorded == RUN
    assert run_info.read(exp) == RUN


def test_one_process_at_a_time(exp: Path) -> None:
    assert not claim.is_held(exp)
    with claim.claim(exp, RUN):
        assert claim.is_held(exp)
        holder = f"pid {os.getpid()} on host {socket.gethostname()} since 2.*"
        with pytest.raises(claim.InUse, match=f"exp' is in use by {holder}; wait for it"), claim.claim(exp, RUN):
            pass
    assert not claim.is_held(exp)
    with claim.claim(exp, RUN):
        assert len((exp / ".lock").read_text().splitlines()) == 1


def test_other_settings_are_listed(exp: Path) -> None:
    other = dataclasses.replace(RUN, config=dataclasses.replace(TINY, hparams=Hyperparams(l2=0.0, seed=3)))
    text = r"exp' is a run with other settings: l2=0.0 \(there 0.001\), seed=3 \(there 0\); give the same"
    with pytest.raises(InputError, match=text), claim.claim(exp, other):
        pass
    assert run_info.read(exp) == RUN
    claim.check(exp, TINY)


def test_other_data_is_refused(exp: Path) -> None:
    other = dataclasses.replace(RUN, data=DATA | {"sha256": {"train": "def"}, "data_dir": "/there"})
    text = r"data_dir='/there' holds other data than the run began with \(sha256\); give its --data-dir"
    with pytest.raises(InputError, match=text), claim.claim(exp, other):
        pass


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    claim.check(tmp_path / "new", TINY)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file' cannot be used \(Not a directory\); give another --workdir"):
        claim.check(tmp_path / "file", TINY)
    (tmp_path / "foreign").mkdir()
    claim.check(tmp_path / "foreign", TINY)  # empty
    (tmp_path / "foreign" / "thesis.tex").write_text("precious")
    text = r"foreign' exists and is not a run \(it has no config.json\); give another --workdir"
    with pytest.raises(InputError, match=text), claim.claim(tmp_path / "foreign", RUN):
        pass
    assert not claim.is_run(tmp_path / "foreign") and (tmp_path / "foreign" / "thesis.tex").exists()


def test_what_a_kill_leaves_before_the_first_write_is_not_in_the_way(tmp_path: Path) -> None:
    for name in (".lock", ".saving-config.json"):
        (tmp_path / name).touch()
    with claim.claim(tmp_path, RUN) as recorded:
        assert recorded == RUN


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_what_was_there(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_info, "write", full)
    path = tmp_path / "exp"
    if there:
        path.mkdir()
    text = r"exp' cannot be written \(No space left on device\); give another --workdir"
    with pytest.raises(InputError, match=text), claim.claim(path, RUN):
        pass
    assert path.exists() == there


VANISHED = "exp' has vanished while it was in use, and what was saved with it"


def test_a_directory_that_is_there_is_there(exp: Path) -> None:
    claim.check_still_there(exp)
    (exp / "config.json").unlink()
    with pytest.raises(RunError, match="config.json has vanished while it was in use; restore it"):
        claim.check_still_there(exp)
    assert exp.exists()


@pytest.mark.parametrize("saved", [None, [], ["5"]])
def test_a_removed_directory_does_not_come_back(saved: list[str] | None, tmp_path: Path) -> None:
    """With the save of step 5 alone it could not be evaluated."""
    for name in saved or ():
        (tmp_path / "exp" / "checkpoints" / name).mkdir(parents=True)
    if saved == []:
        (tmp_path / "exp").mkdir()
    with pytest.raises(RunError, match=VANISHED):
        claim.check_still_there(tmp_path / "exp")
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("rest", [["checkpoints/5", "checkpoints/10"], ["checkpoints/5", "figures"], ["figures"]])
def test_anything_more_in_it_is_kept(rest: list[str], tmp_path: Path) -> None:
    for name in rest:
        (tmp_path / "exp" / name).mkdir(parents=True)
    with pytest.raises(RunError, match="config.json has vanished .*restore it, the checkpoints are there"):
        claim.check_still_there(tmp_path / "exp")
    assert all((tmp_path / "exp" / name).is_dir() for name in rest)


def test_whoever_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    """`compare` and a waiting worker ask whether a directory is in use, by taking its lock for a moment."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            claim.is_held(tmp_path / "exp")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(100):
            with claim.claim(tmp_path / "exp", RUN):
                assert claim.is_held(tmp_path / "exp")
    finally:
        done.set()
        looking.join()

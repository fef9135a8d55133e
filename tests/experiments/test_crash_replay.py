"""The states that a power cut can leave, of a few calls whose states one can count."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "crash_replay", Path(__file__).parents[2] / "experiments" / "benchmarks" / "crash_replay.py"
)
crash_replay = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(crash_replay)
Call, Disk = crash_replay.Call, crash_replay.Disk

OLD = [Call("open", "a"), Call("write", "a", b"old"), Call("sync", "a"), Call("sync", ".")]
NEW = [
    Call("open", ".a"),
    Call("write", ".a", b"new!"),
    Call("sync", ".a"),
    Call("rename", "a", ".a"),
    Call("sync", "."),
]


def contents(calls: list, name: str = "a") -> set[bytes | None]:
    """What the file may hold after a power cut at any time once the old content is reported; None: it is not there."""
    disk, found = Disk(), set()
    for number, call in enumerate(calls):
        disk.apply(call)
        if number + 1 >= len(OLD):
            found |= {dict(tree).get(name) for _, tree in disk.after_power_cut()}
    return found


def test_a_file_that_is_synced_and_then_renamed_is_the_old_or_the_new() -> None:
    assert contents(OLD + NEW) == {b"old", b"new!"}
    assert contents(OLD + NEW[:2]) == {b"old"}


def test_a_rename_before_the_sync_is_found() -> None:
    unsynced = [call for call in NEW if call != ("sync", ".a", "")]
    assert contents(OLD + unsynced) == {b"old", b"new!", b"ne", b""}
    late = [*unsynced, Call("sync", "a")]
    assert contents(OLD + late) == {b"old", b"new!", b"ne", b""}


def test_a_name_that_is_not_synced_is_found() -> None:
    disk = Disk()
    for call in [*OLD, *NEW[:-1]]:
        disk.apply(call)
    assert {dict(tree)["a"] for _, tree in disk.after_power_cut()} == {b"old", b"new!"}
    disk.apply(NEW[-1])
    assert {tree for _, tree in disk.after_power_cut()} == {(("a", b"new!"),)}


def test_what_is_in_a_directory_is_lost_with_the_directory() -> None:
    inside = [
        Call("mkdir", "d"),
        Call("open", "d/x"),
        Call("write", "d/x", b"1"),
        Call("sync", "d/x"),
        Call("sync", "d"),
    ]
    assert contents([*OLD, *inside], "d") == {None, (), (("x", b""),), (("x", b"1"),)}
    assert contents([*OLD, *inside, Call("sync", ".")], "d") >= {None}
    disk = Disk()
    for call in [*inside, Call("sync", ".")]:
        disk.apply(call)
    assert {tree for _, tree in disk.after_power_cut()} == {(("d", (("x", b"1"),)),)}


def test_a_removal_that_is_not_synced_may_be_undone_and_what_is_appended_may_be_torn() -> None:
    assert contents([*OLD, Call("remove", "a")]) == {b"old", None}
    assert contents([*OLD, Call("write", "a", b"er!!")]) == {b"old", b"older", b"older!!"}
    assert contents([*OLD, Call("open", "a", "truncate")]) == {b"old", b""}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_calls_of_a_real_process_and_its_threads_are_recorded(tmp_path: Path) -> None:
    code = f"""
import os, threading
root = {str(tmp_path)!r}
os.mkdir(root + "/d")
def write(name):
    with open(f"{{root}}/d/{{name}}", "w") as file:
        file.write("x" * 9)
        file.flush()
        os.fsync(file.fileno())
threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
[t.start() for t in threads]
[t.join() for t in threads]
directory = os.open(root + "/d", os.O_RDONLY)
os.rename("a", "e", src_dir_fd=directory, dst_dir_fd=directory)
os.truncate(root + "/d/b", 4)
os.symlink("/nowhere", root + "/d/link")
os.utime(root + "/d/b")
os.remove(root + "/d/c")
os.fsync(directory)
"""
    calls = crash_replay.record([sys.executable, "-c", code], tmp_path)
    assert [call.name for call in calls].count("sync") == 4
    assert calls[-6:] == [
        ("rename", "d/e", "d/a"),
        ("truncate", "d/b", 4),
        ("symlink", "d/link", "/nowhere"),
        ("touch", "d/b", ""),
        ("remove", "d/c", ""),
        ("sync", "d", ""),
    ]
    seek = f"file = open({str(tmp_path / 'f')!r}, 'wb'); file.write(b'12'); file.seek(0); file.write(b'3')"
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(ValueError, match="do not give what is in"):
        crash_replay.record([sys.executable, "-c", seek], tmp_path)

"""Does a power cut lose anything? Every state of the disk that one can leave, of a real run and of a real sweep.

    python experiments/benchmarks/crash_states.py            # 7 minutes on 2 cores; needs strace
    python experiments/benchmarks/crash_states.py --table    # only the table, from results/crash_states.jsonl

The commands are recorded and replayed call by call (see `crash_replay`). In each state that a power cut can leave, the
package looks for what the next command would go on from. TMPDIR=/dev/shm makes it faster.
"""

import argparse
import collections
import functools
import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crash_checks import RunCheck, SweepCheck, digest
from crash_replay import Call, Disk, record
from faults_processes import command
from provenance import RESULTS, as_markdown, load_results, save_results

from mnist_flax.workdir import checkpoint, claim, run_info
from mnist_flax.workdir.resume import load

LINES, TABLE = RESULTS / "crash_states.jsonl", RESULTS / "crash_states.md"
FLAGS = ["--widths", "8", "--batch-norm-layers", "--l2-layers", "--train-split", "train[:500]", "--eval-split",
         "test[:100]", "--epochs", "4", "--no-figures", "--no-tensorboard"]  # fmt: skip
EXPERIMENT = '''"""What does a power cut leave of a sweep?"""

from mnist_flax import Config

BASE = Config(widths=(8,), batch_norm_layers=(), l2_layers=(), epochs=1, train_split="train[:500]",
              eval_split="train[500:600]")
FINAL_SEEDS = 0


def sweep():
    yield from ({"seed": seed} for seed in range(5))
'''


def judge(kind: str, calls: list[Call], check: RunCheck | SweepCheck) -> dict:
    """Cut the power after every call; a line with what was broken, by what was lost."""
    disk, states, distinct, broken = Disk(), 0, set(), collections.Counter()
    for call in calls:
        disk.apply(call)
        check.see(call, disk)
        for lost, tree in disk.after_power_cut():
            states += 1
            distinct.add(tree)
            if problem := check.problem(tree):
                broken[f"{lost}: {problem}"] += 1
    line = {"kind": kind, "calls": len(calls), "states": states, "distinct": len(distinct)}
    return line | {"broken": broken.total(), "most often": broken.most_common(10)}


def runs(root: Path) -> Iterator[dict]:
    """A run with four saves, and the same without its syncs."""
    train = functools.partial(command, "train", *FLAGS)
    subprocess.run(train("--keep", "9", "--workdir", str(root / "straight")), check=True, stdout=subprocess.DEVNULL)
    run, steps = run_info.read(root / "straight"), checkpoint.steps(claim.checkpoints_dir(root / "straight"))
    straight = {step: digest(load(root / "straight", run, step, warn=print)) for step in steps}
    calls = record(train("--keep", "1", "--workdir", str(root / "disk" / "run")), root / "disk")
    yield judge("run", calls, RunCheck(straight)) | {"saves": len(straight)}
    yield judge("run without sync", [call for call in calls if call.name != "sync"], RunCheck(straight))


def sweeps(root: Path) -> Iterator[dict]:
    """A sweep of five members, of which the best three keep their checkpoints."""
    (file := root / "study.py").write_text(EXPERIMENT)
    flags = ["--population", "2", "--no-figures", "--no-tensorboard", "--workdir"]
    sweep = functools.partial(command, "sweep", str(file), *flags)
    subprocess.run(sweep(str(root / "straight")), check=True, stdout=subprocess.DEVNULL)
    calls = record(sweep(str(root / "disk" / "sweep")), root / "disk")
    check = SweepCheck(file, root / "straight", calls)
    yield judge("sweep", calls, check) | {"members": len(check.finished)}


def table(rows: list[dict]) -> str:
    """What was found, counted."""
    about, run, unsynced, sweep = rows
    lines = [
        "| a power cut after each file system call of | states of the disk | what came of it |",
        "|---|---|---|",
        f"| a run with {run['saves']} saves: {run['calls']} calls | {run['states']:,}, {run['distinct']:,} distinct "
        f"| {run['broken']} without the last save, or with other bits than a straight run |",
        f"| a sweep of {sweep['members']} members: {sweep['calls']:,} calls | {sweep['states']:,}, "
        f"{sweep['distinct']:,} distinct | {sweep['broken']} without a finished member, its result or its checkpoint |",
        f"| the run without its `fsync` calls, to see that a loss is noticed | {unsynced['states']:,}, "
        f"{unsynced['distinct']:,} distinct | {unsynced['broken']:,} without the last save, or refused |",
        "",
        f"{as_markdown(about)}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Record, replay, and save each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table")
    if not parser.parse_args().table:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            for root in (Path(one), Path(other)):
                (root / "disk").mkdir()
            save_results(LINES, itertools.chain(runs(Path(one)), sweeps(Path(other))))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

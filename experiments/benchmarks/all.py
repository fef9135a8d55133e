"""Measure every table of the README and the docs again, one program after another; the same command goes on.

    python experiments/benchmarks/all.py --dry-run                 # what takes how long, and which commit it shows now
    python experiments/benchmarks/all.py                           # whatever this commit has not measured yet
    python experiments/benchmarks/all.py --only halving start_end

Each program measures ours and its peers in turn. One that fails, for want of a library or a device, does not keep the
next from running. Studies are not among them: each names its own command.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from provenance import RESULTS, commit

from mnist_flax.process.terminal import say, table

HERE = Path(__file__).parent
MEASURED = HERE / ".measured.json"  # by program: the commit at which it last came to its end
PROGRAMS = (
    "install_size", "step_parts", "settings_price", "start_end", "tutorial", "crash_states", "cost", "population",
    "bench_train", "compile_accelerators", "ensemble", "population_based", "many_members", "halving", "faults",
    "random_input", "mutants", "device",
)  # fmt: skip


def time_of(program: str) -> str:
    """How long a program takes and what it needs, as the first command in its docstring says."""
    text = ast.get_docstring(ast.parse((HERE / f"{program}.py").read_text())) or ""
    found = re.search(rf"benchmarks/{program}\.py\b[^#\n]*# (.*)", text)
    assert found, program
    return found[1]


def shown(program: str) -> str:
    """The commit that a program's results name."""
    lines = RESULTS / f"{program}.jsonl"
    return json.loads(lines.read_text().splitlines()[0])["commit"] if lines.exists() else "never measured"


def measure(program: str) -> bool:
    """Run a program to its end; whether it got there. One that goes on where it stopped begins anew at a new commit."""
    lines = RESULTS / f"{program}.jsonl"
    if lines.exists() and shown(program) != commit() and program not in ("faults", "mutants"):  # those keep their parts
        lines.rename(lines.with_suffix(".before"))
    done = subprocess.run([sys.executable, str(HERE / f"{program}.py")]).returncode == 0
    before = lines.with_suffix(".before")
    if before.exists():
        before.unlink() if done else before.replace(lines)
    return done


def main() -> None:
    """Measure what was asked for and is not measured, or list it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS, metavar="PROGRAM")
    parser.add_argument("--dry-run", action="store_true", help="only say what takes how long")
    args = parser.parse_args()
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    left = [program for program in args.only if measured.get(program) != commit()]
    if args.dry_run:
        rows = [[name, shown(name), "" if name in left else "done", time_of(name)] for name in args.only]
        say(table([["program", "results are of", "here", "takes"], *rows], set()))
        return
    failed = []
    for program in left:
        say(f"== {program}: {time_of(program)}")
        if measure(program):
            measured[program] = commit()
            MEASURED.write_text(json.dumps(measured))
        else:
            failed.append(program)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}; the same command tries again")


if __name__ == "__main__":
    main()

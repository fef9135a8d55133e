"""Would the tests notice? Small mistakes, put into the core and into what keeps results, one at a time.

    python experiments/benchmarks/mutants.py               # 4 hours on 2 cores; goes on where it stopped
    python experiments/benchmarks/mutants.py --count 100   # the next 100 of the sample
    python experiments/benchmarks/mutants.py --survivors   # those that survived, with slow tests and new ones too
    python experiments/benchmarks/mutants.py --table       # only the table, from results/mutants.jsonl

Each mutant is tested in a clone, so only what is committed counts. One that needs longer than `TIMEOUT` counts as
killed. `mutants_equivalent.json` says which survivors change nothing, and why.
"""

import argparse
import ast
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provenance import RESULTS, as_markdown, commit, load_results, save_results

LINES, TABLE = RESULTS / "mutants.jsonl", RESULTS / "mutants.md"
EQUIVALENT = Path(__file__).parent / "mutants_equivalent.json"
ROOT = Path(__file__).parents[2]
NUMBER, TIMEOUT = 400, 900  # mutants in the sample; seconds
TESTS = {  # by module: the tests that matter, first those of one process, then those that start commands
    "steps": (["test_steps", "test_drivers", "test_model"], ["test_keras"]),
    "model": (["test_model", "test_steps"], ["test_keras", "export/test_fold_batch_norm"]),
    "optimizer": (["test_steps", "test_model", "test_drivers"], ["test_keras"]),
    "state": (["test_steps", "test_drivers", "test_config"], ["workdir/test_resume"]),
    "metrics": (["test_metrics", "test_steps"], ["train/test_train"]),
    "compiled": (["test_drivers", "sweep/test_members", "test_placement"], ["train/test_train"]),
    "placement": (["test_placement", "test_drivers"], ["process/test_distributed", "sweep/test_sweep"]),
    "loop": (["test_loop", "sweep/test_members"], ["workdir/test_resume", "process/test_signals"]),
    "program": (["test_loop", "test_steps", "test_placement", "test_drivers"], ["test_keras"]),
    "workdir/checkpoint": (["workdir/test_checkpoint"], ["workdir/test_resume"]),
    "workdir/resume": (["workdir/test_history", "sweep/test_members"], ["workdir/test_resume"]),
    "workdir/claim": (["workdir/test_claim", "sweep/test_members"], ["workdir/test_resume", "test_inputs"]),
    "sweep/members": (["sweep/test_members"], ["sweep/test_sweep"]),
    "sweep/trial_queue": (
        ["sweep/test_lost_workers", "sweep/test_trial_queue", "sweep/test_members"],
        ["sweep/test_sweep"],
    ),
    "sweep/worker": (["sweep/test_worker", "sweep/test_members"], ["sweep/test_halving", "sweep/test_sweep"]),
    "sweep/stages": (["sweep/test_stages", "sweep/test_worker", "sweep/test_experiment"], ["sweep/test_sweep"]),
    "monitor/run_log": (["monitor/test_run_log", "monitor/test_tensorboard"], ["train/test_train"]),
}
OTHER: dict[Any, Any] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.RShift: ast.LShift,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
Mutation = tuple[
    str, ast.expr | ast.stmt | ast.keyword, str | None
]  # the operator, what is replaced, and with what; None: nothing


def mutations(node: ast.AST) -> Iterator[Mutation]:
    """All mutations of a node and of what is in it; not of annotations, texts and imports."""
    typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    if typing or isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    yield from _mutations_here(node)
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from mutations(child)


def _mutations_here(node: ast.AST) -> Iterator[Mutation]:
    match node:
        case ast.BinOp(a, op, b) if type(op) in OTHER:
            yield "arithmetic", node, ast.unparse(ast.BinOp(a, OTHER[type(op)](), b))
        case ast.Compare(a, [op], b) if type(op) in OTHER:
            yield "comparison", node, ast.unparse(ast.Compare(a, [OTHER[type(op)]()], b))
        case ast.BoolOp(op, values):
            yield "and/or", node, ast.unparse(ast.BoolOp(OTHER[type(op)](), values))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "not or minus removed", node, ast.unparse(operand)
        case ast.If(test) | ast.IfExp(test) | ast.While(test):
            yield "condition negated", test, f"not ({ast.unparse(test)})"
        case ast.Constant(bool() as value):
            yield "constant", node, str(not value)
        case ast.Constant(int() | float() as value):
            yield "constant", node, str(value + 1)
        case ast.Call(ast.Name("min" | "max" as name) as function):
            yield "min/max", function, "max" if name == "min" else "min"
        case ast.Raise() | ast.Continue() | ast.AugAssign() | ast.Expr(ast.Call()):
            yield "statement deleted", node, None
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "statement deleted", node, None
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg:
                yield "keyword dropped", keyword, None


def mutants() -> list[dict[str, Any]]:
    """Every mutant of every module: where it is, its operator, what stands there before and after."""
    found = []
    for module in TESTS:
        source = (ROOT / "mnist_flax" / f"{module}.py").read_text()
        starts = [0]
        for line in source.encode().splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        for operator, node, after in mutations(ast.parse(source)):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            text = ("pass" if isinstance(node, ast.stmt) else "") if after is None else f"({after})"
            before = source.encode()[begin:end].decode()
            if isinstance(node, ast.keyword) and source.encode()[end : end + 1] == b",":
                end += 1
            what = {"module": module, "line": node.lineno, "operator": operator, "before": before, "after": text}
            found.append(what | {"begin": begin, "end": end})
    return found


def is_harmless(mutant: dict[str, Any]) -> bool:
    """Whether it reaches no other process: another signal for `os.kill` would."""
    file = ROOT / "mnist_flax" / f"{mutant['module']}.py"
    return "os.kill" not in file.read_text().splitlines()[mutant["line"] - 1]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells two mutants apart."""
    return tuple(row[name] for name in ("module", "line", "operator", "before", "after", "begin"))


def test(mutant: dict[str, Any], clone: Path, slow: bool) -> dict[str, Any]:
    """Put a mutant into the clone and run its tests until one fails."""
    original = (path := clone / "mnist_flax" / f"{mutant['module']}.py").read_bytes()
    path.write_bytes(original[: mutant["begin"]] + mutant["after"].encode() + original[mutant["end"] :])
    files = [f"tests/{name}.py" for part in TESTS[mutant["module"]][: 1 + slow] for name in part]
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb=line", *files]
    env = os.environ | {"PYTHONPATH": str(clone), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(clone.parent)}
    process = subprocess.Popen(
        command, cwd=clone, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
        outcome = "killed" if process.returncode else "survived"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, outcome = process.communicate()[0], "timeout"
    finally:
        path.write_bytes(original)
    if process.returncode < 0 and outcome != "timeout":
        sys.exit("the tests were ended from outside; run this again")
    by = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return mutant | {"outcome": outcome, "by": by and by[1], "slow": slow, "tests": commit()}


def table(rows: list[dict[str, Any]]) -> str:
    """How many mutants were killed, by part of the package, when they were tested first and when last."""
    about, rows = rows[0], rows[1:]
    first, last = ({key(row): row for row in order} for order in (reversed(rows), rows))
    there = [k for k in first if last[k]["outcome"] != "gone"]
    why = {key(row) for row in json.loads(EQUIVALENT.read_text())}
    head = "| mutants in | tested | killed by the quick tests | by slower or new ones | equivalent | survived |"
    lines = [head, "|---|---|---|---|---|---|"]
    for part in ("the core", "workdir", "sweep", "monitor", "all"):
        mine = [k for k in there if part in ("all", k[0].split("/")[0] if "/" in k[0] else "the core")]
        quickly = sum(first[k]["outcome"] != "survived" for k in mine)
        left = [k for k in mine if last[k]["outcome"] == "survived"]
        counts = len(mine), quickly, len(mine) - len(left) - quickly, (equal := sum(k in why for k in left))
        lines.append(f"| {part} | {' | '.join(map(str, counts))} | {len(left) - equal} |")
    gone = len(first) - len(there)
    lines += ["", f"{gone} more survived, in lines that have been removed since."] if gone else []
    return "\n".join([*lines, "", f"{as_markdown(about)}."]) + "\n"


def main() -> None:
    """Test the mutants that were asked for, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (("--count", NUMBER, "of mutants now"), ("--seed", 0, "of the sample")):
        parser.add_argument(name, type=int, default=default, help=text)
    parser.add_argument("--survivors", action="store_true", help="test the survivors again")
    parser.add_argument("--table", action="store_const", dest="count", const=0, help="only make the table")
    args = parser.parse_args()
    if not LINES.exists():
        save_results(LINES, [])
    last, known = ({key(row): row for row in rows} for rows in (load_results(LINES)[1:], mutants()))
    drawn = random.Random(args.seed).sample([*known], NUMBER)
    sample = [known[k] for k in drawn if is_harmless(known[k]) and k not in last]
    if args.survivors:
        sample = [row for row in last.values() if row["outcome"] == "survived" and key(row) in known]
    with tempfile.TemporaryDirectory() as directory:
        clone = Path(directory) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        for mutant in sample[: args.count]:
            result = test(mutant, clone, args.survivors)
            print(json.dumps(result), flush=True)
            with LINES.open("a") as lines:
                lines.write(json.dumps(result) + "\n")
    TABLE.write_text(table(load_results(LINES)))


if __name__ == "__main__":
    main()

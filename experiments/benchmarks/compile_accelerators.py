"""Do the drivers compile for TPUs and GPUs, and what do they take there?

XLA's compilers run on a host without the chips, see `compile_program.py`. What they report of each program (memory of a
chip, collectives, operations) goes to results/compile_accelerators.jsonl and, from it, to compile_accelerators.md. They
do not tell how fast a program runs.

    python experiments/benchmarks/compile_accelerators.py            # 25 minutes on 2 cores; needs both compilers
    python experiments/benchmarks/compile_accelerators.py --table    # only the table, from the file
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE = RESULTS / "compile_accelerators.jsonl", RESULTS / "compile_accelerators.md"
PLACES = {  # the batch, the members
    "v5e:2x2": (128, 64),
    "v5e:16x16": (1024, 4096),
    "v6e:2x2": (1024, 4096),
    "H100:1": (128, 64),
    "H100:8": (1024, 4096),
}
MEMORY = {"v5e": 16, "v6e": 32, "H100": 80}  # GB a chip, as the makers say
DRIVERS = ("train", "eval", "train_members", "eval_members")
Result = dict[str, Any]


def cases() -> Iterator[Result]:
    """Every driver in both precisions, at every place."""
    for topology, (batch, members) in PLACES.items():
        for driver in DRIVERS:
            for precision in ("float32", "bfloat16"):
                population = driver.endswith("members")
                config = {"precision": precision} | ({} if population else {"batch_size": batch})
                yield {"topology": topology, "driver": driver, "config": config, "members": members * population or 1}


def compiled(case: Result) -> Result:
    """What a separate process finds of a case: a compiler that crashes takes only its own case with it."""
    program = Path(__file__).with_name("compile_program.py")
    found = subprocess.run([sys.executable, str(program), json.dumps(case)], capture_output=True, text=True)
    if found.returncode:
        return case | {"failed": found.stderr.strip().splitlines()[-1]}
    return json.loads(found.stdout)


def memory(row: Result) -> int:
    """Bytes of a chip's memory while the program runs."""
    sizes = {name: row[name] for name in ("arguments", "outputs", "temporaries", "code")}
    return sum(sizes.values()) - row["aliased"]


def defects(row: Result) -> list[str]:
    """What no program may do."""
    found = ["it is in float64"] * row["float64"] + [f"it calls the host: {name}" for name in row["host_calls"]]
    if row["driver"].startswith("train") and row["donated"] != list(range(row["state_leaves"])):
        found.append("its state is not donated")
    if row["driver"].endswith("members") and (row["collectives_each_step"] or row["collectives_once"]):
        found.append("its members exchange something")
    if memory(row) > MEMORY[row["topology"].partition(":")[0]] * 1e9:
        found.append("it does not fit")
    return found


def table(rows: list[Result]) -> str:
    """A line for each program, and what holds for all."""
    about, *rows = rows
    lines = [
        "| chips | driver | size | precision | memory of a chip (MB) | of it arguments, temporaries | collectives "
        "| their bytes | MFLOP | to compile (CPU s) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    said = []
    for row in rows:
        train, population = row["driver"].startswith("train"), row["driver"].endswith("members")
        batch = row["config"].get("batch_size", 128)
        a_chip = row["members"] // math.prod(int(side) for side in row["topology"].partition(":")[2].split("x"))
        many = f"{row['members']:,} members, {a_chip:,} a chip"
        size = many if population else f"batch {batch:,}" if train else "10,000 examples"
        name = f"{row['topology']} | `{row['driver']}` | {size} | {row['config']['precision']}"
        if "failed" in row:
            said.append(f"{name.replace(' | ', ', ')}: {row['failed']}")
            continue
        said += [f"{name.replace(' | ', ', ')}: {defect}" for defect in defects(row)]
        moved = row["collectives_each_step"].items()
        kinds = ", ".join(f"{count} {kind}" for kind, (count, _) in moved) or "none"
        parts = f"{row['arguments'] / 1e6:,.0f}, {row['temporaries'] / 1e6:,.0f}"
        flops = "" if row["flops"] is None else f"{row['flops'] / 1e6:,.0f}"
        numbers = f"{sum(size for _, (_, size) in moved):,} | {flops}"
        lines.append(
            f"| {name} | {memory(row) / 1e6:,.0f} | {parts} | {kinds} | {numbers} | {row['compile_cpu_seconds']:.0f} |"
        )
    good = "fit a chip's memory, have no float64 and do not call the host"
    more = "Training donates its whole state. Members of a population exchange nothing."
    lines += ["", f"All {len(rows)} programs compile, {good}. {more}" if not said else ""]
    lines += [f"- {line}" for line in said]
    compilers = ", ".join(sorted({row["compiler"] for row in rows if "compiler" in row}))
    return "\n".join([*lines, "", f"{compilers}; {as_markdown(about)}."]) + "\n"


def main() -> None:
    """Compile all, saving each result as it comes, or only make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table")
    if not parser.parse_args().table:
        save_results(LINES, map(compiled, cases()))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

"""How large is an installation, and what of it does the default command import?

python experiments/benchmarks/install_size.py   # a minute; measures the environment of this Python: give it a fresh one
"""

import argparse
import collections
import importlib.metadata
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE = RESULTS / "install_size.jsonl", RESULTS / "install_size.md"
SHOWN = 10
HOOK = """
import atexit, os, runpy, sys
atexit.register(lambda: print(*sys.modules, file=open({names!r}, "w")))
os._exit = lambda code: sys.exit(code)  # how a command ends
sys.argv = ["train", "--workdir", {workdir!r}, "--epochs", "1", "--train-split", "train[:500]"]
runpy.run_module("mnist_flax.train", run_name="__main__")
"""


def sizes() -> dict[str, float]:
    """Megabytes of each package, with the libraries that belong to it, and of all."""
    found: collections.Counter[str] = collections.Counter()
    for path in Path(sysconfig.get_paths()["purelib"]).rglob("*"):
        if path.is_file() and not path.is_symlink():
            top = path.relative_to(sysconfig.get_paths()["purelib"]).parts[0]
            found[top.partition(".")[0].partition("-")[0].lower()] += path.stat().st_size
    return {name: size / 1e6 for name, size in found.most_common()}


def imported() -> set[str]:
    """The top-level modules that a short training imports."""
    with tempfile.TemporaryDirectory() as directory:
        names = Path(directory) / "names"
        code = HOOK.format(names=str(names), workdir=f"{directory}/run")
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        return {name.partition(".")[0].lower() for name in names.read_text().split()}


def required_by(package: str) -> list[str]:
    """The installed packages that require another."""
    wanted = package.replace("_", "-")
    return sorted(
        each.name
        for each in importlib.metadata.distributions()
        for line in each.requires or ()
        if line.split(";")[0].split("[")[0].split("<")[0].split(">")[0].split("=")[0].strip().lower() == wanted
        and "extra" not in line
    )


def table(rows: list[dict]) -> str:
    """The largest packages."""
    about, everything, *rows = rows
    lines = ["| package | MB | imported by `train` | required by |", "|---|---|---|---|"]
    for row in rows[:SHOWN]:
        who = ["mnist_flax"] if "mnist_flax" in row["required_by"] else row["required_by"]
        cells = row["package"], f"{row['mb']:.0f}", "yes" if row["imported"] else "no", ", ".join(who)
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| all {len(rows)} | {everything['mb']:,.0f} | | |")
    return "\n".join([*lines, "", f"{as_markdown(about)}."]) + "\n"


def main() -> None:
    """Measure, or only make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table")
    if not parser.parse_args().table:
        found, used = sizes(), imported()
        rows: list[dict] = [{"package": "all", "mb": round(sum(found.values()), 1)}]
        for name, size in found.items():
            row = {"package": name, "mb": round(size, 1), "imported": name in used}
            rows.append(row | {"required_by": sorted(set(required_by(name)))})
        save_results(LINES, rows)
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

"""What does a sweep of 5,000 members spend besides training?

Members of width 32, of two epochs on 50,000 images: the time of the whole command without that of the steps and
evaluations, open files, and bytes on the disk.

    python experiments/benchmarks/many_members.py            # 20 minutes on 2 cores
    python experiments/benchmarks/many_members.py --table    # only the table, from results/many_members.jsonl
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE = RESULTS / "many_members.jsonl", RESULTS / "many_members.md"
STUDY = """
from mnist_flax import Config

BASE = Config(
    widths=(32,), batch_norm_layers=(), l2_layers=(), epochs=2, train_split="train[:50000]", eval_split="train[50000:]"
)
FINAL_SEEDS = 0


def sweep():
    yield from ({"seed": seed} for seed in range(MEMBERS))
"""


def measure(counts: list[int]) -> Iterator[dict[str, Any]]:
    """A sweep of each size."""
    for members in counts:
        with tempfile.TemporaryDirectory() as directory:
            file, path = Path(directory, "study.py"), Path(directory, "sweep")
            file.write_text(STUDY.replace("MEMBERS", f"{members}"))
            line = [sys.executable, "-m", "mnist_flax.sweep", str(file), "--workdir", str(path), "--no-figures"]
            began, most = time.perf_counter(), 0
            with subprocess.Popen([*line, "--no-tensorboard"], stdout=subprocess.DEVNULL) as process:
                while process.poll() is None:
                    most = max(most, _open_files(process.pid))
                    time.sleep(0.2)
            wall = time.perf_counter() - began
            assert process.returncode == 0
            rows = [json.loads(row) for row in (path / "results.jsonl").read_text().splitlines()]
            yield {
                "members": len(rows),
                "wall": round(wall, 2),
                "training": round(sum(row["seconds"] for row in rows), 2),
                "open_files": most,
                "journal_bytes": (path / "optuna.journal").stat().st_size,
                "results_bytes": (path / "results.jsonl").stat().st_size,
                "all_bytes": sum(each.stat().st_size for each in path.rglob("*") if each.is_file()),
            }


def _open_files(pid: int) -> int:
    try:
        return len([*Path(f"/proc/{pid}/fd").iterdir()])
    except OSError:
        return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Per member, and the share of the bookkeeping."""
    about, rows = rows[0], rows[1:]
    lines = [
        "| members | command | training | all else, a member | all else / training | open files | journal | results |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        number, rest = row["members"], row["wall"] - row["training"]
        sizes = [f"{row[name] / number / 1000:.1f} kB a member" for name in ("journal_bytes", "results_bytes")]
        times = f"{row['wall']:,.0f} s", f"{row['training']:,.0f} s", f"{1000 * rest / number:.1f} ms"
        cells = f"{number:,}", *times, f"{rest / row['training']:.3f}", str(row["open_files"]), *sizes
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{as_markdown(about)}."]) + "\n"


def main() -> None:
    """Run what was asked for, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    if not args.table:
        save_results(LINES, measure(args.members))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

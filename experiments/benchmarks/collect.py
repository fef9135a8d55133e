"""Keep a finished sweep's results: copies them to results/NAME and its tables, with where they come from, to NAME.md.

python experiments/benchmarks/collect.py sweeps/regularization
"""

import argparse
import json
import shutil
from pathlib import Path

from provenance import RESULTS, as_markdown, provenance


def about(rows: list[dict], name: str) -> dict:
    """Where the rows come from; this must be the machine that made them."""
    commits = dict.fromkeys(row["commit"] for row in rows)
    command = f"python -m mnist_flax.sweep experiments/{name}.py --workdir sweeps/{name}"
    return provenance() | {"versions": rows[0]["versions"], "commit": "`, `".join(commits), "command": command}


def main() -> None:
    """Copy what stands for the sweep; checkpoints stay where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="its workdir")
    sweep = parser.parse_args().sweep
    target = RESULTS / sweep.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(sweep / "figures", target, ignore=shutil.ignore_patterns(".*"))
    for name in ("results.jsonl", "summary.csv"):
        shutil.copy(sweep / name, target / name)
    rows = [json.loads(row) for row in (sweep / "results.jsonl").read_text().splitlines()]
    text = (sweep / "summary.md").read_text()
    text = text[text.index("Selection: ") :]  # without its title
    seconds = sum(row["seconds"] for row in rows)
    done = f"{len(rows)} networks trained in {seconds / 60:.0f} minutes of population time."
    (RESULTS / f"{sweep.name}.md").write_text(f"{text}\n{done} {as_markdown(about(rows, sweep.name))}.\n")


if __name__ == "__main__":
    main()

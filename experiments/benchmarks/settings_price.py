"""What does a training step cost with each setting that the tutorial does not have?

    python experiments/benchmarks/settings_price.py            # 3 minutes on 2 cores
    python experiments/benchmarks/settings_price.py --table    # only the table, from results/settings_price.jsonl

The default step with one setting switched on; all take their turn in each round, see `step_parts.py`.
"""

import argparse
from typing import Any

from provenance import RESULTS, load_results, save_results
from step_parts import in_turn, table, variant

from mnist_flax.config import Config

LINES, TABLE = RESULTS / "settings_price.jsonl", RESULTS / "settings_price.md"
SETTINGS: dict[str, dict[str, Any]] = {
    "the whole step": {},
    "with `noise_at` both": {"noise_at": "both"},
    "with `virtual_adversarial`": {"virtual_adversarial": True},
    "with `average_weights`": {"average_weights": True},
    "with `distort` affine": {"distort": "affine"},
    "with `distort` elastic": {"distort": "elastic"},
    "with `distort` both": {"distort": "both"},
}


def main() -> None:
    """Measure, or make the table from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--table", action="store_true", help="only make the table again")
    args = parser.parse_args()
    if not args.table:
        calls = {name: variant(changes, [], Config()) for name, changes in SETTINGS.items()}
        save_results(LINES, in_turn(calls, args.rounds))
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()

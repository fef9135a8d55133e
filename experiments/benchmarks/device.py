"""How does it run on an accelerator?

Products, steps beside PyTorch's, populations, a resumed run's bits, two workers on one card, and the tests: each part
is a process of its own; what fails says so and the next part goes on. Writes results/device.jsonl and, from it,
results/device.md.

    python experiments/benchmarks/device.py                  # 5 minutes on one card; needs PyTorch for the peer
    python experiments/benchmarks/device.py --parts resume   # some parts only
    python experiments/benchmarks/device.py --table          # only the table, from the file
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from device_parts import PARTS, Result
from device_table import table
from provenance import RESULTS, load_results, provenance

LINES, TABLE = RESULTS / "device.jsonl", RESULTS / "device.md"


def card() -> Result:
    """What XLA calls the device, and its memory."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
    platform, kind = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split("|")
    return {"device": kind.strip(), "platform": platform, "devices": 1}


def in_order(parts: list[str], limit: float) -> Iterator[Result]:
    """Each part as a process of its own, until the minutes are over."""
    ends = time.monotonic() + limit
    for part in parts:
        began = time.monotonic()
        if (left := min(ends - began, 170)) < 10:
            yield {"part": part, "failed": "no time was left"}
            continue
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("device_parts.py")), part],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, errors = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            errors = f"over after {left:.0f} s"
        for line in output.splitlines():
            if line.startswith("{"):
                yield {"part": part} | json.loads(line)
        if process.returncode:
            yield {"part": part, "failed": errors.strip()[-1500:]}
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Run the parts, saving each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=float, default=480, help="seconds, for all parts")
    parser.add_argument("--commit", help="of this code, where git cannot say it")
    parser.add_argument("--out", type=Path, default=LINES)
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    if not args.table:
        args.out.write_text("")
        about = provenance() | card() | ({"commit": args.commit} if args.commit else {})
        for result in itertools.chain([about], in_order(args.parts, args.limit)):
            with args.out.open("a") as lines:
                lines.write(json.dumps(result) + "\n")
    if args.out == LINES:
        TABLE.write_text(table(load_results(LINES)))
        print(TABLE.read_text())


if __name__ == "__main__":
    main()

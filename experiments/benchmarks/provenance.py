"""Where a number comes from: hardware, versions, commit, command. Every result file carries it."""

import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mnist_flax.workdir.run_info import commit, versions

RESULTS = Path(__file__).parents[1] / "results"


def provenance() -> dict[str, Any]:
    """Hardware, versions, commit and command, as JSON values."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "commit": commit(),
        "command": " ".join(["python", *(_plain(word) for word in sys.orig_argv[1:])]),
    }


def save_results(file: Path, results: Iterable[dict[str, Any]]) -> None:
    """Measure, saving each result as it comes, after a first line with their provenance."""
    file.write_text(json.dumps(provenance()) + "\n")
    for result in results:
        print(json.dumps(result), flush=True)
        with file.open("a") as lines:
            lines.write(json.dumps(result) + "\n")


def load_results(file: Path) -> list[dict[str, Any]]:
    """What `save_results` saved; the provenance first."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def _plain(word: str) -> str:
    """A word of the command line, without this machine's paths."""
    path = Path(word)
    return os.path.relpath(path) if path.suffix == ".py" else path.name if path.is_absolute() else word


def as_markdown(about: dict[str, Any]) -> str:
    """One line of Markdown."""
    libraries = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['platform']}; {libraries}; commit `{about['commit']}`; "
        f"`{about['command']}`"
    )

"""`metrics.jsonl`: one JSON object a line, never half a line, never twice.

    rewrite(path, history)  # at the start and on resume: exactly what the checkpoint knows
    append(path, line)

A checkpoint carries the lines that belong to it, so the file is a view of it and can always be restored.
"""

import json
import os
from pathlib import Path
from typing import Any


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line and see it on the disk."""
    with open(path, "a") as file:
        file.write(_encode(line))
        file.flush()
        os.fsync(file.fileno())


def rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    """Make the file hold exactly these lines."""
    text = "".join(map(_encode, lines))
    if not path.exists() or path.read_text(errors="replace") != text:
        write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content by one rename: a reader, or a kill, finds the old text or the new."""
    scratch = scratch_of(path)
    with open(scratch, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def scratch_of(path: Path) -> Path:
    """Where `write_text` writes before it renames."""
    return path.with_name(f".{path.name}.tmp")


def _encode(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"

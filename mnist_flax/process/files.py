"""Write files atomically, and hold lock files that the kernel releases when their process dies.

with replacing(directory / "curves.png") as scratch:
    figure.savefig(scratch)  # renamed to curves.png at the end of the block
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SCRATCH = ".saving-"  # a prefix, since some libraries choose the file format by the suffix


def scratch_of(path: Path) -> Path:
    """The path at which a file or directory is written before it is renamed to `path`."""
    return path.with_name(f"{SCRATCH}{path.name}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a scratch path for a file or a directory, and rename it to `path` at the end of the block.

    At any time the old content is there, or the new, never a part. If the block raises, the scratch is removed.
    """
    scratch = scratch_of(path)
    remove(scratch)  # left by a process that was killed
    try:
        yield scratch
        if scratch.is_dir():
            remove(path)  # a directory cannot be renamed onto another
        else:
            with open(scratch, "rb") as file:
                os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        remove(scratch)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    with replacing(path) as scratch:
        scratch.write_text(text)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append one JSON object as a line, and return when it is on the disk."""
    with open(path, "a") as file:
        file.write(_encode(line))
        file.flush()
        os.fsync(file.fileno())


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Make a file hold exactly these JSON objects, one per line."""
    text = "".join(map(_encode, lines))
    if not path.exists() or path.read_text(errors="replace") != text:
        write_text(path, text)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[IO[str]]:
    """Hold a lock file, created if missing, against all other processes; gives the file, to write the holder's name in.

    Raises `BlockingIOError` if another process holds it and `wait` is False.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file now."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def sha256(path: Path) -> str:
    """The SHA-256 sum of a file's content, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _encode(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"

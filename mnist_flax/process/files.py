"""Write files atomically, and hold lock files that the kernel releases when their process dies.

with replacing(directory / "curves.png") as scratch:
    figure.savefig(scratch)  # renamed to curves.png at the end of the block
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mnist_flax.errors import wrong

_TEMPORARY: set[Path] = set()
MOST_JSON = 2**26  # bytes of one JSON file
_TRIES = 20  # to get a lock without waiting for its holder
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
        sync(scratch)
        if scratch.is_dir():
            remove(path)  # a directory cannot be renamed onto another
        scratch.replace(path)
        sync(path.parent, inside=False)
    finally:
        remove(scratch)


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory that is removed at the end of the block, or when a signal ends the process (`signals.leave`)."""
    path = Path(tempfile.mkdtemp(prefix="mnist_flax-"))
    _TEMPORARY.add(path)
    try:
        yield path
    finally:
        remove(path)
        _TEMPORARY.discard(path)


def remove_temporary() -> None:
    """Remove the temporary directories that are still there."""
    for path in [*_TEMPORARY]:
        remove(path)


def check_entries(directory: Path, names: Iterable[str]) -> None:
    """Raise `InputError` if one of these entries of a directory is neither a file nor a directory.

    What is written to a symbolic link would land elsewhere, and a pipe or a device may never end. The last part of a
    name may be a pattern, such as `checkpoints/*`.
    """
    for name in names:
        for path in [directory / name] if "*" not in name else sorted(directory.glob(name)):
            if path.is_symlink():
                problem, remedy = f"has a symbolic link, {path.name}", "put what it points to in its place"
                raise wrong("workdir", directory, problem, remedy)
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise wrong("workdir", directory, f"has a pipe or a device, {path.name}", "remove it")


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there; of a symbolic link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Create a directory and those above it that are missing; return when they are on the disk."""
    new = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in new:
        with contextlib.suppress(PermissionError):  # of a directory that may be written and not read
            sync(each.parent, inside=False)


def sync(path: Path, *, inside: bool = True) -> None:
    """Return when a file, or a directory and all that is `inside` it, is on the disk."""
    for entry in path.iterdir() if inside and path.is_dir() else ():
        sync(entry)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """The text of a file; raises `ValueError` if it is not text, and `OSError` for what may be long or never end."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    if status.st_size > MOST_JSON:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON of a file; raises `ValueError` if it is not JSON, and `OSError` for what may be long or never end."""
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def has_fields(tree: Any, kinds: dict[str, Any]) -> bool:
    """Whether JSON is an object with these fields, each of its type or one of its types; it may have others."""
    return isinstance(tree, dict) and all(isinstance(tree.get(name), kind) for name, kind in kinds.items())


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")  # a directory may have any name


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append one JSON object as a line, and return when it is on the disk. A symbolic link is not followed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "a") as file:
        file.write(_encode(line))
        file.flush()
        os.fsync(file.fileno())


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Make a file hold exactly these JSON objects, one per line."""
    text = "".join(map(_encode, lines))
    content = text.encode()
    # Its size first: a huge one need not be read.
    if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
        write_text(path, text)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[IO[str]]:
    """Hold a lock file, created if missing, against all other processes; gives the file, to write the holder's name in.

    Raises `BlockingIOError` if `wait` is False and another process holds it for longer than a look takes (`is_locked`).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "r+") as file:
        for tries_left in reversed(range(_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if not tries_left:
                    raise
                time.sleep(0.01)
        yield file


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file now."""
    try:
        with open(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # not on a pipe
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def allow_open(number: int) -> bool:
    """Let this process hold so many files open at once; returns whether the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= number or soft == resource.RLIM_INFINITY:
        return True
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
        return True
    return False


def sha256(path: Path) -> str:
    """The SHA-256 sum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # a part at a time: a file may be larger than the memory


def _encode(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"

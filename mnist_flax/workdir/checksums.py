"""The SHA-256 sum of every file of a checkpoint, in its file `SHA256SUMS`, which `sha256sum -c` reads too."""

import os
from pathlib import Path
from typing import NoReturn

from mnist_flax.errors import first_line
from mnist_flax.process import files

NAME = "SHA256SUMS"


def write(path: Path) -> None:
    """Write the sums of all that is in the checkpoint `path` now."""
    files.write_text(path / NAME, of(path))


def of(path: Path) -> str:
    """The sum of every file below `path`, sorted by name, in the format of `sha256sum`."""
    names = sorted(file for file in entries(path) if file.is_file() and file != path / NAME)
    return "".join(f"{files.sha256(name)}  {name.relative_to(path).as_posix()}\n" for name in names)


def entries(path: Path) -> list[Path]:
    """All files and directories below `path`, through no link; raises `OSError` where one cannot be listed.

    `Path.rglob` leaves those out in silence since Python 3.13.
    """

    def fail(error: OSError) -> NoReturn:
        raise error

    walk = os.walk(path, onerror=fail)
    return [Path(at, name) for at, directories, others in walk for name in directories + others]


def damage(path: Path) -> str | None:
    """Verify the sums of a checkpoint: what is wrong with it, or None."""
    try:
        expected, found = (path / NAME).read_bytes(), of(path).encode()
    except OSError as error:
        return first_line(error)
    if expected == found:  # the whole text, so that no byte is left unchecked
        return None
    lines = set(expected.splitlines()) ^ set(found.splitlines())
    names = sorted({line.split(b"  ", 1)[-1].decode(errors="replace") for line in lines})
    return f"changed: {', '.join(names)}, or {NAME} itself"

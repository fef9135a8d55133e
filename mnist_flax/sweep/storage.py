"""Open the storage of a sweep's trials: a journal file or a database; many processes can use either at once."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from mnist_flax.errors import InputError, first_line, wrong
from mnist_flax.sweep.directory import without_password

T = TypeVar("T")


def open_journal(directory: Path) -> optuna.storages.BaseStorage:
    """Open the journal in a directory that all processes see; raises `InputError` if it is damaged."""
    path = directory / "optuna.journal"
    path.touch()
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a full disk or a power failure can cut a line short
    finally:
        lock.release()
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); restore it or give another --workdir") from None


def open_database(url: str) -> optuna.storages.BaseStorage:
    """Open a database that all processes reach; raises `InputError` if the URL is wrong or it cannot be reached."""
    try:
        return retry(lambda: optuna.storages.RDBStorage(url))
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        problem, remedy = f"cannot be used ({first_line(error)})", "give a database such as sqlite:///x.db"
        raise wrong("storage", without_password(url), problem, remedy) from error


def retry(connect: Callable[[], T]) -> T:
    """Call up to six times, since another process may be creating the same tables."""
    for attempt in range(5):
        try:
            return connect()
        except (IntegrityError, OperationalError):
            time.sleep(0.1 * attempt)
    return connect()

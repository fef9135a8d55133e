"""Open the storage of a sweep's trials: a journal file or a database; many processes can use either at once."""

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from mnist_flax.errors import InputError, RunError, first_line, wrong
from mnist_flax.process import files
from mnist_flax.process.terminal import warn
from mnist_flax.sweep.directory import without_password

T = TypeVar("T")
_PATIENCE = 300.0  # seconds in which a database may come back
_inside = threading.local()


def open_journal(directory: Path) -> optuna.storages.BaseStorage:
    """Open the journal in a directory that all processes see; raises `InputError` if it is damaged."""
    path = directory / "optuna.journal"
    path.touch()
    files.sync(directory, inside=False)  # else a power cut can lose the file with every line in it
    with _locked(path):
        os.truncate(path, _size_of_lines(path))  # a full disk or a power failure can cut the last line short
    return _journal(path)


def read_journal(directory: Path) -> optuna.storages.BaseStorage:
    """Open the journal that is there, and write nothing; raises `InputError` if it is damaged."""
    path = directory / "optuna.journal"
    _size_of_lines(path)
    return _journal(path)


def _journal(path: Path) -> optuna.storages.BaseStorage:
    try:
        return optuna.storages.JournalStorage(_Journal(str(path)))
    except OSError:
        raise
    except Exception as error:  # of Optuna, which reads each line unchecked
        raise InputError(f"{path} is damaged ({first_line(error)}); restore it or give another --workdir") from error


def _size_of_lines(path: Path) -> int:
    """The bytes of a journal up to its last line's end; raises `InputError` for a line that no sweep has written."""
    size, last = 0, b"{}"
    with path.open("rb") as file:
        while line := file.readline(files.MOST_JSON + 1):
            if len(line) > files.MOST_JSON:
                raise InputError(f"{path} is damaged (a line is too long); restore it or give another --workdir")
            size, last = (size + len(line), line) if line.endswith(b"\n") else (size, last)
    try:
        json.loads(last)  # of a damaged last line Optuna says nothing before another one follows
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); restore it or give another --workdir") from error
    return size


def _locked(path: Path) -> contextlib.AbstractContextManager[Any]:
    """Hold the lock of a journal, which the kernel releases when this process dies.

    Optuna's lock is a file that stays when its holder is killed: others wait 30 s for it, and for ever if the directory
    was moved meanwhile.
    """
    return files.lock(path.with_name(".journal.lock"))


_FOLLOWED = (  # by lines that are brought to the disk, and these with them: a trial's results before its end
    JournalOperation.SET_TRIAL_USER_ATTR, JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
    JournalOperation.SET_STUDY_USER_ATTR,
)  # fmt: skip


class _Journal(JournalFileBackend):
    """Optuna's, with another lock; and a line that finds no space leaves no part behind."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        rest = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with _locked(Path(self._file_path)), open(self._file_path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                if any(log["op_code"] not in _FOLLOWED for log in logs):
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


def open_database(url: str, *, wait: bool = False) -> optuna.storages.BaseStorage:
    """Open a database that all processes reach; raises `InputError` if the URL is wrong or it cannot be reached.

    `wait`: it was open before, so wait until it answers again.
    """

    def connect() -> optuna.storages.BaseStorage:
        return PatientStorage(url, engine_kwargs={"pool_pre_ping": True})

    try:
        return retry(_patient(connect) if wait else connect)
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


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """A storage's method that is called again, more and more slowly, while the database does not answer."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if getattr(_inside, "call", False):  # by another of these methods
            return method(*args, **kwargs)
        _inside.call, began, delay = True, time.monotonic(), 0.1
        try:
            while True:
                try:
                    return method(*args, **kwargs)
                except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                    if (lost := _connection_error(error)) is None:
                        raise
                    reason, waited = first_line(lost), time.monotonic() - began
                    if waited > _PATIENCE:
                        raise RunError(
                            f"the database has not answered for {waited:.0f} s ({reason}); what was finished is in it, "
                            "and the same command goes on"
                        ) from error
                    if delay < 2 <= 2 * delay:
                        warn(f"the database does not answer ({reason}); trying for {_PATIENCE:.0f} s")
                    time.sleep(delay)
                    delay = min(2 * delay, 5.0)
        finally:
            _inside.call = False

    return call


def _connection_error(error: BaseException | None) -> BaseException | None:
    """The cause of an error that says that the database could not be reached or used just now."""
    while error is not None and not isinstance(error, (OperationalError, InterfaceError)):
        error = error.__cause__ or error.__context__
    return error


class PatientStorage(optuna.storages.RDBStorage):
    """A database that may be restarted while it is in use.

    A call whose answer was lost may be made twice. At worst a trial is created twice, or stays claimed by nobody: the
    trial queue is made for both.
    """


# The last ones are those that Optuna's cache of a database calls.
_of_the_cache = {"_create_new_trial", "_get_best_trial_id", "_get_trials", "_set_trial_param"}
for _name in sorted(optuna.storages.BaseStorage.__abstractmethods__ | _of_the_cache):
    setattr(PatientStorage, _name, _patient(getattr(optuna.storages.RDBStorage, _name)))

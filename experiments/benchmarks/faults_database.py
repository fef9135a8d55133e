"""A PostgreSQL server of one's own that can be killed and started again, for `faults_sweep.py`."""

import os
import shutil
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType


def missing() -> str:
    """What a database needs and this machine lacks; empty if nothing."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed"
    return "" if _programs() else "the programs of a PostgreSQL server are not installed"


def _programs() -> Path | None:
    """The newest directory with a server's programs, which Debian keeps out of the PATH."""
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None


class Postgres:
    """A server with its own data directory and port; as root, it runs as the user postgres."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._user = directory, "postgres" if os.geteuid() == 0 else None
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self._port = free.getsockname()[1]

    def __enter__(self) -> "Postgres":
        self._directory.mkdir()
        if self._user:
            shutil.chown(self._directory, self._user)
            self._directory.parent.chmod(0o755)  # so that this user reaches it
        self._call("initdb", "--username=postgres", "--auth=trust")
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -k {self._directory} -c listen_addresses=localhost"
        self._call("pg_ctl", "start", "--wait", "--log", str(self._directory / "log"), "--options", options)

    def kill(self) -> None:
        """End all its processes at once, without a checkpoint: its next start recovers from the log."""
        self._call("pg_ctl", "stop", "--mode=immediate")

    def new_database(self, name: str) -> str:
        """Create a database; returns its SQLAlchemy URL."""
        self._call("createdb", "--host=localhost", f"--port={self._port}", "--username=postgres", name)
        return f"postgresql+psycopg://postgres@localhost:{self._port}/{name}"

    def _call(self, program: str, *args: str) -> None:
        line = [str((_programs() or Path()) / program), *args]
        env = os.environ | {"PGDATA": str(self._directory)}
        result = subprocess.run(line, env=env, user=self._user, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        result.check_returncode()

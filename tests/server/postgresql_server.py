"""A PostgreSQL server of the test's own, where its programs are installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

_NUMBERS = count()


def server_programs() -> Path | None:
    """The folder of PostgreSQL's own programs, if they are installed."""
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next(
        (c for c in candidates if (c / "initdb").exists() and (c / "pg_ctl").exists()), None
    )


class PostgreSQL:
    """A server of its own in a temporary folder, on a socket in it; no port is opened."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        # The server refuses to run as root.
        self._user = _unprivileged() if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        locale = ("-E", "UTF8", "--locale=C")
        self._run("initdb", "-D", "data", "-U", "crossrec", "-A", "trust", "-N", *locale)

    def start(self) -> None:
        options = f"-c listen_addresses= -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-o", options, "-l", "log", "-w", "start")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server by its id and wait until it is gone; SIGINT closes all sessions."""
        try:
            process = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
            os.kill(process, how)
        except (FileNotFoundError, ProcessLookupError):
            return
        end = time.monotonic() + 60
        while Path(f"/proc/{process}").exists():
            assert time.monotonic() < end, "the PostgreSQL server does not end"
            time.sleep(0.02)

    def url(self, database: str, user: str = "crossrec:pa%40ss") -> str:
        return f"postgresql+psycopg://{user}@/{database}?host={self.folder}"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = f"state{next(_NUMBERS)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> None:
        import psycopg

        where = {"host": str(self.folder), "user": "crossrec", "dbname": database}
        with psycopg.connect(autocommit=True, **where) as connection:  # type: ignore[arg-type]
            connection.execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        # Output goes to a file: the server would keep a pipe open for as long as it runs.
        with (self.folder / "output").open("ab") as output:
            subprocess.run(
                [str(self._programs / program), *arguments],
                check=True,
                stdout=output,
                stderr=output,
                timeout=120,
                user=self._user,
                cwd=self.folder,
            )


@contextmanager
def running(programs: Path) -> Iterator[PostgreSQL]:
    """A started server, ended and removed whatever happens.

    Not in pytest's own folder: another pytest that begins closes that one to other users.
    """
    folder = Path(tempfile.mkdtemp(prefix="crossrec-postgresql-"))
    try:
        server = PostgreSQL(programs, folder)
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder)


def _unprivileged() -> str:
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"

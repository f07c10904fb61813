"""Reaching the coordinator's database: SQLite in a file, or PostgreSQL; faults as one line.

Every transaction is on the disk when it ends: SQLite with a write-ahead log that is flushed at each
commit, PostgreSQL with `synchronous_commit`. A password never stands in a message.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from crossrec_model.errors import FederationError

_SQLITE: Final = "sqlite"
_POSTGRESQL: Final = "postgresql+psycopg"
_DRIVERS: Final = {
    "sqlite": _SQLITE,
    "sqlite+pysqlite": _SQLITE,
    "postgresql": _POSTGRESQL,
    "postgres": _POSTGRESQL,
    "postgresql+psycopg": _POSTGRESQL,
}
_FORMS: Final = "sqlite:////FOLDER/coordinator.db or postgresql+psycopg://USER@HOST/DATABASE"
#: PostgreSQL's advisory lock of all writers of a database.
_WRITERS: Final = int.from_bytes(b"crossrec", "big")
_MOST_REASON: Final = 300


class DatabaseUnavailableError(FederationError):
    """A database that can't be reached or is locked now; the same command may work later on."""

    #: EX_TEMPFAIL of sysexits.h: a supervisor may start the coordinator again.
    exit_code = 75


class Database:
    """A database by its URL; made by `open`, used by any thread."""

    def __init__(self, url: URL, engine: Engine) -> None:
        self._url, self._engine = url, engine

    @classmethod
    def open(cls, url: str | Path, *, create: bool = True, patience_s: float = 5.0) -> Database:
        """Connect; a SQLite file is made for its owner alone where there is none.

        A path is a SQLite file, whatever characters it has. `create` says whether one may be made;
        `patience_s` is how long, in whole seconds, to wait for a server to answer or another
        process's lock to be let go.

        Raises:
            FederationError: for a URL that names no such database, a driver that is not installed, a
                file that is none or damaged, or missing where it may not be made.
            DatabaseUnavailableError: for a server that does not answer, or a file that is locked.
        """
        parsed = _parsed(url)
        database = cls(parsed, _engine(parsed, patience_s))
        try:
            if parsed.drivername == _SQLITE:
                _prepare_file(parsed, create=create)
            with database.reading() as connection:
                if parsed.drivername == _SQLITE:
                    _check_file(connection, parsed)
            return database
        except BaseException:
            database.close()
            raise

    @property
    def name(self) -> str:
        """The URL without its password."""
        return shown(self._url)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that no other writer is in at the same time; durable when it ends.

        Raises:
            FederationError: naming what the database says; nothing of the transaction then counts.
        """
        with self._told(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that changes nothing; raises FederationError."""
        with self._told(), self._engine.connect() as connection:
            with connection.execution_options(crossrec_reads=True).begin():
                yield connection

    def close(self) -> None:
        """Let all connections go; harmless when closed."""
        self._engine.dispose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError, UnicodeError) as error:
            raise _fault(self._url, error) from None


def shown(url: URL) -> str:
    """Return a URL as text without a password, also without options, which could hold one."""
    return url.set(query={}).render_as_string(hide_password=True)


def _parsed(text: str | Path) -> URL:
    if isinstance(text, Path):
        return URL.create(_SQLITE, database=str(text))
    scheme = text.partition("://")[0] if "://" in text else ""
    try:
        url = make_url(text)
        driver = _DRIVERS.get(url.drivername)
    except (ArgumentError, ValueError):
        raise FederationError(
            f"the database URL ({scheme[:20] or 'without ://'} …) can't be read; give {_FORMS}"
        ) from None
    if driver is None:
        raise FederationError(f"a database of kind {url.drivername!r:.40} is not known; {_FORMS}")
    if "@" in (url.host or ""):
        # Part of the password would be taken for the host, and be shown.
        raise FederationError("the database URL has an @ too many; write it in a password as %40")
    if driver == _SQLITE and (url.database in {None, "", ":memory:"} or url.host or url.query):
        raise FederationError(f"database {shown(url)} is no plain file; give {_FORMS}")
    if driver == _POSTGRESQL and not url.database:
        raise FederationError(f"database {shown(url)} has no name at its end; give {_FORMS}")
    return url.set(drivername=driver)


def _engine(url: URL, patience_s: float) -> Engine:
    sqlite = url.drivername == _SQLITE
    waits = {"timeout": patience_s} if sqlite else _postgresql_waits(patience_s)
    try:
        # Checked before each use: a server that was restarted in between is found again.
        engine = create_engine(url, connect_args=waits, pool_pre_ping=not sqlite)
    except ModuleNotFoundError:
        raise FederationError(
            f"database {shown(url)} needs the package psycopg; pip install 'crossrec[postgresql]'"
        ) from None
    event.listen(engine, "connect", _set_up_sqlite if sqlite else _set_up_postgresql)
    event.listen(engine, "begin", _begin_sqlite if sqlite else _begin_postgresql)
    return engine


def _postgresql_waits(patience_s: float) -> dict[str, int | str]:
    """Libpq's options against a server or a network that went away without a word."""
    return {
        "connect_timeout": max(2, int(patience_s)),
        "tcp_user_timeout": 30_000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "application_name": "crossrec",
        "options": f"-c lock_timeout={int(patience_s * 1000)}",
    }


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # Transactions begin where we say so, not where the driver sees a write.
    connection.isolation_level = None
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: one that began as a reader could not wait for it later.
    reads = connection.get_execution_options().get("crossrec_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _set_up_postgresql(connection: Any, _record: object) -> None:
    # Whatever the server's own setting is: what was acknowledged must outlive a power cut.
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
    connection.commit()


def _begin_postgresql(connection: Connection) -> None:
    # As in SQLite, one writer at a time: what it has read still holds when it commits.
    if not connection.get_execution_options().get("crossrec_reads", False):
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_WRITERS,))


def _prepare_file(url: URL, *, create: bool) -> None:
    """Make SQLite's file with the right mode; its other files get the same."""
    path = str(url.database)
    if not create and not os.path.exists(path):
        raise FederationError(f"database {shown(url)} is not there; the coordinator makes it")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise FederationError(
            f"database {shown(url)} can't be used: {error.strerror}; make the folder, or give "
            "another URL"
        ) from None


def _check_file(connection: Connection, url: URL) -> None:
    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise _damaged(url, " ".join(str(found).split()))


def _damaged(url: URL, reason: str) -> FederationError:
    return FederationError(
        f"database {shown(url)} is damaged ({reason}); move it away and start a new run: an old "
        "copy must not take its place"
    )


def _fault(url: URL, error: Exception) -> FederationError:
    """What the driver says, as one line without a password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    kind = type(cause).__name__
    reason = " ".join(str(cause).split()) or kind
    for secret in _secrets(url):
        reason = reason.replace(secret, "***")
    reason = reason[:_MOST_REASON]
    if "not a database" in reason or "malformed" in reason:
        return _damaged(url, reason)
    if "is locked" in reason or kind == "LockNotAvailable":
        return DatabaseUnavailableError(
            f"database {shown(url)} is locked by another process; end it, or start again later"
        )
    if _unreachable(url, error, kind, reason):
        return DatabaseUnavailableError(
            f"database {shown(url)} can't be reached: {reason}; start it, or mend the URL"
        )
    return FederationError(
        f"database {shown(url)} refused: {reason}; mend that, or give another URL"
    )


def _unreachable(url: URL, error: Exception, kind: str, reason: str) -> bool:
    """Whether a server is not there, rather than there and refusing."""
    if isinstance(error, PoolTimeoutError):
        return True
    if url.drivername != _POSTGRESQL:
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    passing = ("starting up", "shutting down", "too many")
    refusing = "FATAL" in reason and not any(words in reason for words in passing)
    return kind in {"OperationalError", "ConnectionTimeout"} and not refusing


def _secrets(url: URL) -> list[str]:
    """Passwords that a message might repeat."""
    found = [str(url.password)] if url.password else []
    for name, value in url.query.items():
        if "password" in name:
            found += [value] if isinstance(value, str) else value
    return [secret for secret in found if secret]

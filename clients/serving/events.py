"""Events that the service was told of: in SQLite before they are acknowledged, read by the next training.

events.sqlite    in the platform's folder, for its owner alone; each commit is flushed to the disk
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from crossrec_model.data.schema import Event
from crossrec_model.errors import CrossrecError

EVENTS: Final = "events.sqlite"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    event TEXT NOT NULL,
    time_us INTEGER NOT NULL,
    quantity REAL,
    price REAL,
    shop_id TEXT,
    event_id TEXT UNIQUE
) STRICT
"""
_COLUMNS: Final = "user_id, item_id, event, time_us, quantity, price, shop_id, event_id"
_BUSY_S: Final = 30.0


class EventStoreError(CrossrecError):
    """The file of events can't be used."""


@dataclass(frozen=True, kw_only=True)
class RecordedEvent:
    """One event; `time_us` in microseconds since 1970 UTC, `number` 0 before it is kept."""

    user_id: str
    item_id: str
    event: Event
    time_us: int
    quantity: float | None = None
    price: float | None = None
    shop_id: str | None = None
    event_id: str | None = None
    number: int = 0


class EventStore:
    """Appends events durably; any thread may call it, one at a time is let in.

    Raises:
        EventStoreError: if the file can't be made, read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        with _told(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._database = _open(path)
            self._database.execute(_SCHEMA)

    def add(self, event: RecordedEvent) -> tuple[RecordedEvent, bool]:
        """Keep an event; return it with its number, and whether its `event_id` was here already.

        It is on the disk when this returns.
        """
        with self._lock, _told(self._path):
            if event.event_id is not None and (kept := self._known(event.event_id)) is not None:
                return kept, True
            values = (
                *(event.user_id, event.item_id, event.event.value, event.time_us),
                *(event.quantity, event.price, event.shop_id, event.event_id),
            )
            # Autocommit: the statement is a transaction, flushed before it returns.
            done = self._database.execute(
                f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                values,
            )
            return replace(event, number=int(done.lastrowid or 0)), False

    def all(self) -> list[RecordedEvent]:
        """Every event, oldest number first."""
        with self._lock, _told(self._path):
            return _read(self._database)

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._database.close()

    def _known(self, event_id: str) -> RecordedEvent | None:
        found = _read(self._database, "WHERE event_id = ?", (event_id,))
        return found[0] if found else None


def read_events(path: Path) -> list[RecordedEvent]:
    """All events of a file, none if there is no such file; never changes it.

    Raises:
        EventStoreError: if it can't be read.
    """
    if not path.is_file():
        return []
    with _told(path), closing(_open(path)) as database:
        there = database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'events'").fetchone()
        return _read(database) if there else []


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    return database


def _read(
    database: sqlite3.Connection, where: str = "", values: tuple[str, ...] = ()
) -> list[RecordedEvent]:
    rows = database.execute(
        f"SELECT number, {_COLUMNS} FROM events {where} ORDER BY number",  # noqa: S608
        values,
    )
    return [
        RecordedEvent(
            number=number,
            user_id=user,
            item_id=item,
            event=Event(event),
            time_us=time_us,
            quantity=quantity,
            price=price,
            shop_id=shop,
            event_id=event_id,
        )
        for number, user, item, event, time_us, quantity, price, shop, event_id in rows
    ]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        raise EventStoreError(
            f"the file of events {path} can't be used: {error}; make room, or move it away"
        ) from None

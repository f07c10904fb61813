"""The coordinator's database: SQLite's file, its rows, and the URL that names it."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from targets import OF_BYTES, OF_JSON, OF_TEXT, Check, Cost, Target, same
from targets_coordinator import _RECORD, RUN
from targets_keys import parsed

from crossrec_model.config import Plan
from crossrec_model.secagg.messages import Kind
from server.database import _parsed, shown
from server.store import Store


@cache
def _database() -> tuple[bytes, bytes]:
    """The coordinator's database: as a file, and its rows as JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "coordinator.db"
        with Store.open(
            f"sqlite:///{path}", clock=lambda: datetime(2026, 1, 1, tzinfo=UTC)
        ) as store:
            store.begin_run(RUN, Plan().to_json(), 1)
            store.save_round(RUN, _RECORD)
            store.saw({"A": "0.1.0", "B": "0.1.0"})
            store.openings(RUN).begin(Kind.TRAIN, 2, ("A", "B", "C"))
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            names = [name for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'")]  # fmt: skip
            rows = {
                name: [list(row) for row in connection.execute(f"SELECT * FROM {name}")]
                for name in names
            }
        connection.close()
        return path.read_bytes(), json.dumps(rows).encode()


def _store(scratch: Path) -> Check:
    """The database's file as bytes, or its rows as JSON."""
    path = scratch / "coordinator.db"

    def check(data: bytes) -> None:
        for one in scratch.glob("coordinator.db*"):
            one.unlink()
        rows = parsed(data) if data.startswith(b"{") else None
        path.write_bytes(data if rows is None else _database()[0])
        if rows is not None:
            _put(path, rows)
        with Store.open(f"sqlite:///{path}", patience_s=0) as store:
            same(all(line.isprintable() for line in store.status()), True, "printable status")
            for run in store.runs():
                store.rounds(run.run)
            openings = store.openings(RUN)
            openings.of(Kind.TRAIN, 2)
            store.begin_run(bytes(16), Plan().to_json(), 2)
            store.save_round(bytes(16), _RECORD)
            store.end_run(bytes(16), "stopped")
            store.take_over(bytes(16), [_RECORD])
            openings.begin(Kind.TRAIN, 3, ("A", "B", "C"))

    return check


def _put(path: Path, rows: dict[str, Any]) -> None:
    """Put rows into the tables as far as SQLite takes them."""
    connection = sqlite3.connect(path)
    with connection:
        for table in json.loads(_database()[1]):
            found = rows.get(table)
            connection.execute(f"DELETE FROM {table}")
            for row in found if isinstance(found, list) else []:
                if isinstance(row, list) and row:
                    places = ", ".join("?" * len(row))
                    try:
                        connection.execute(f"INSERT INTO {table} VALUES ({places})", row)
                    except (sqlite3.Error, OverflowError, UnicodeError):
                        continue
    connection.close()


def _url(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    same(isinstance(shown(_parsed(text)), str), True, "URL")


def _urls() -> list[bytes]:
    return [
        b"sqlite:////srv/crossrec/coordinator.db",
        b"postgresql+psycopg://user:p%40ss@db.example.org:5432/crossrec?sslmode=require",
    ]


TARGETS: Final = (
    Target(
        name="coordinator.database",
        seeds=lambda: list(_database()),
        check=_store,
        changes=OF_BYTES + OF_JSON,
        cost=Cost.DEAR,
    ),
    Target(
        name="coordinator.database_url",
        seeds=_urls,
        check=lambda _: _url,
        changes=OF_BYTES + OF_TEXT,
    ),
)

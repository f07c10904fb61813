"""Which sums the coordinator has begun to open, kept in its database."""

from __future__ import annotations

import json

from sqlalchemy import select

from crossrec_model.errors import FederationError
from crossrec_model.secagg.messages import Kind
from server import schema
from server.database import Database
from server.rows import hex_of, names_of, put, sound


class StoredOpenings:
    """The latest opening of each kind in a run, in the database; as `openings.Openings` in a file.

    Raises:
        FederationError: for rows that are damaged, or can't be read.
    """

    def __init__(self, database: Database, run: bytes) -> None:
        self._database, self._run = database, hex_of(run)
        self._latest: dict[str, tuple[int, tuple[str, ...]]] = {}
        table = schema.openings
        with database.reading() as connection:
            found = connection.execute(select(table).where(table.c.run == self._run)).all()
        with sound(database.name):
            for row in found:
                self._latest[Kind[row.kind].name] = (row.round, names_of(row.platforms))

    def of(self, kind: Kind, number: int) -> tuple[str, ...] | None:
        """The platforms over whom a round was begun to be opened, None if it was not."""
        found = self._latest.get(kind.name)
        return found[1] if found and found[0] == number else None

    def begin(self, kind: Kind, number: int, platforms: tuple[str, ...]) -> None:
        """Write down an opening; it is on the database's disk when this returns.

        Raises:
            FederationError: if another coordinator has begun to open this sum over others, or a
                later one; then nothing may be asked of the platforms.
        """
        table = schema.openings
        key = {"run": self._run, "kind": kind.name}
        with self._database.writing() as connection:
            before = connection.execute(
                select(table).where(table.c.run == self._run, table.c.kind == kind.name)
            ).first()
            if before is not None:
                with sound(self._database.name):
                    self._check(before.round, names_of(before.platforms), number, platforms)
            row = {"round": number, "platforms": json.dumps(list(platforms))}
            put(connection, table, key, row, {})
        self._latest[kind.name] = (number, platforms)

    def _check(
        self, stood: int, over: tuple[str, ...], number: int, platforms: tuple[str, ...]
    ) -> None:
        if stood > number or (stood == number and over != platforms):
            raise FederationError(
                f"round {number} can't be opened over {', '.join(platforms)}: database "
                f"{self._database.name} says that round {stood} was begun over {', '.join(over)}; "
                "stop the other coordinator of this run"
            )

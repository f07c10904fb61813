"""The tables of the coordinator's database, and their version.

Model tensors stay in checkpoint files. Nothing here can hold one, nor any platform's update.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Column,
    Connection,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
)

from crossrec_model.errors import FederationError

#: Raised with every change of a table; a newer database is refused.
VERSION: Final = 1

metadata: Final = MetaData()

version_table: Final = Table(
    "crossrec_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False)
)

#: Times are UTC as YYYY-MM-DDTHH:MM:SSZ, plans and lists are JSON, runs are 32 hexadecimal digits.
runs: Final = Table(
    "runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("sequence", Integer, nullable=False, unique=True),
    Column("plan", Text, nullable=False),
    Column("plan_version", Integer, nullable=False),
    Column("started", String(20), nullable=False),
    Column("ended", String(20)),
    Column("status", String(16), nullable=False),
)

rounds: Final = Table(
    "rounds",
    metadata,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("platforms", Text, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("means", Text, nullable=False),
    Column("finished", String(20), nullable=False),
)

#: Of each kind of sum the latest that was begun to be opened in a run.
openings: Final = Table(
    "openings",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("round", Integer, nullable=False),
    Column("platforms", Text, nullable=False),
)

platforms: Final = Table(
    "platforms",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("first_seen", String(20), nullable=False),
    Column("last_seen", String(20), nullable=False),
    Column("software", String(64), nullable=False),
)


def version_of(connection: Connection, name: str) -> int | None:
    """Return the version of the tables that are there, None where there are none.

    Raises:
        FederationError: for tables that are newer than this program, or another program's.
    """
    there = set(inspect(connection).get_table_names())
    if version_table.name not in there:
        if foreign := sorted(there & metadata.tables.keys()):
            raise FederationError(
                f"database {name} has a table {foreign[0]} that is not crossrec's; give a database "
                "of its own"
            )
        return None
    found = connection.execute(select(version_table.c.version)).scalars().all()
    if len(found) != 1 or not 1 <= found[0] <= VERSION:
        stands = ", ".join(map(str, found)) or "missing"
        raise FederationError(
            f"database {name} has tables of version {stands}, this program knows {VERSION}; "
            "install the crossrec that made it, or a newer one"
        )
    return int(found[0])


def make_tables(connection: Connection) -> None:
    """Make all tables, in the connection's transaction."""
    metadata.create_all(connection, checkfirst=False)
    connection.execute(insert(version_table).values(version=VERSION))

"""SQL queries over DuckDB, SQLite or PostgreSQL, described by a TOML file.

Each query runs once; its rows stream into a temporary file, so that every later pass sees the same
rows and the database is left alone. DuckDB reads its own files. SQLite and PostgreSQL are read
through their own clients: DuckDB could reach them too, but only with extensions that it downloads
and runs, and a platform runs nothing that arrives over a network.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import duckdb
import polars as pl

from clients.adapters.files import description_name, read_description
from clients.adapters.mapping import TableMapping
from clients.adapters.readers import read_csv, read_parquet
from crossrec_model.data.source import TABLES
from crossrec_model.errors import DataError, shown

_ENGINES: Final = ("duckdb", "sqlite", "postgresql")
_ENDINGS: Final = {
    ".duckdb": "duckdb",
    ".ddb": "duckdb",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
}
#: DuckDB types that Parquet and polars hold as they are; all others are read as text.
_PLAIN_TYPES: Final = (
    "VARCHAR", "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT",
    "UINTEGER", "UBIGINT", "FLOAT", "DOUBLE", "DECIMAL", "DATE", "TIMESTAMP",
)  # fmt: skip
_BATCH: Final = 50_000


class SqlSource:
    """Tables that are answers to SQL queries.

    Args:
        file: TOML with a section `[sql]`: `database` (a file, relative to the TOML file, or a
            PostgreSQL address) or `database_env` (the environment variable that holds it),
            `engine` where the database's name doesn't tell it, and the queries `interactions`,
            `catalogue` and perhaps `users`; then a mapping section for each, if needed.
        first_rows: take so many rows of each query at most, None for all.

    Raises:
        DataError: the description is wrong.
    """

    def __init__(self, file: Path, *, first_rows: int | None = None) -> None:
        description = read_description(file)
        sql = description.get("sql")
        if sql is None:
            raise DataError(f"{file.name}: the section [sql] is missing; add it with the queries")
        unknown = [name for name in description if name not in {*TABLES, "sql", "name"}]
        if unknown:
            raise DataError(
                f"{file.name}: unknown section [{unknown[0]}]; use sql, {', '.join(TABLES)}"
            )
        self._name = description_name(description, file.stem)
        self._queries = _queries(sql)
        self._engine, self._database = _database(sql, file.absolute().parent)
        self.mappings = {
            table: TableMapping.parse(table, description.get(table, {})) for table in self._queries
        }
        if first_rows is not None:
            # The line end ends a comment that the query may end with.
            self._queries = {
                table: f"SELECT * FROM (\n{query}\n) AS all_rows LIMIT {first_rows:d}"  # noqa: S608
                for table, query in self._queries.items()
            }
        self._exported: dict[str, Path] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="crossrec-sql-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def name(self) -> str:
        """`name` in the description, else the file's stem."""
        return self._name

    def interactions(self) -> pl.LazyFrame:
        """One row per event."""
        return self._table("interactions")

    def catalogue(self) -> pl.LazyFrame:
        """One row per item."""
        return self._table("catalogue")

    def users(self) -> pl.LazyFrame | None:
        """One row per user, or None without a query for them."""
        return self._table("users") if "users" in self._queries else None

    def _table(self, table: str) -> pl.LazyFrame:
        if table not in self._exported:
            query = self._queries[table]
            export = {
                "duckdb": _from_duckdb,
                "sqlite": _from_sqlite,
                "postgresql": _from_postgresql,
            }
            self._exported[table] = export[self._engine](
                self._database, query, table, self._folder / table
            )
        path = self._exported[table]
        frame = read_csv(path) if path.suffix == ".csv" else read_parquet(path)
        return self.mappings[table].apply(frame, file=f"query {table}")


def _queries(sql: Mapping[str, Any]) -> dict[str, str]:
    settings = {"database", "database_env", "engine"}
    for name, value in sql.items():
        if name not in {*settings, *TABLES}:
            raise DataError(
                f"[sql]: unknown setting {shown(name)}; use {', '.join([*sorted(settings), *TABLES])}"
            )
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"[sql]: {name} = {shown(value)} is not a text; correct it")
    for table in ("interactions", "catalogue"):
        if table not in sql:
            raise DataError(f'[sql]: the query {table} is missing; add {table} = "SELECT …"')
    return {table: sql[table].strip().rstrip(";") for table in TABLES if table in sql}


def _database(sql: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """The engine, and the database's absolute path or address."""
    if ("database" in sql) == ("database_env" in sql):
        raise DataError("[sql]: give exactly one of database and database_env")
    if "database" in sql:
        database = str(sql["database"])
    else:
        variable = str(sql["database_env"])
        database = os.environ.get(variable, "")
        if not database:
            raise DataError(f"[sql]: the environment variable {variable} is not set; set it")
    is_address = database.startswith(("postgresql://", "postgres://"))
    guess = "postgresql" if is_address else _ENDINGS.get(Path(database).suffix.lower())
    engine = sql.get("engine", guess)
    if engine not in _ENGINES:
        raise DataError(f"[sql]: engine = {shown(engine)}; set engine to {', '.join(_ENGINES)}")
    if engine == "postgresql":
        return engine, database
    path = folder / database
    if not path.is_file():
        raise DataError(f"[sql]: there is no database {path}; correct database")
    return engine, str(path)


def _refuse(table: str, error: Exception) -> DataError:
    """One line from a database's many."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return DataError(
        f"[sql]: the query {table} failed: {first.strip()}; correct it or the database"
    )


def _from_duckdb(database: str, query: str, table: str, target: Path) -> Path:
    path = target.with_suffix(".parquet")
    literal = "'" + str(path).replace("'", "''") + "'"
    offline: dict[str, Any] = {"autoinstall_known_extensions": "false"}
    try:
        with closing(duckdb.connect(database, read_only=True, config=offline)) as connection:
            columns = connection.execute(f"DESCRIBE {query}").fetchall()
            selected = ", ".join(_duckdb_column(name, kind) for name, kind, *_ in columns)
            connection.execute(
                f"COPY (SELECT {selected} FROM ({query})) TO {literal} (FORMAT parquet)"  # noqa: S608
            )
    except duckdb.Error as error:
        raise _refuse(table, error) from None
    return path


def _duckdb_column(name: str, kind: str) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    element = kind.removesuffix("[]")
    if element.split("(", maxsplit=1)[0].split(" ", maxsplit=1)[0] in _PLAIN_TYPES:
        if element.endswith("]"):  # an array of fixed length
            return f"CAST({quoted} AS {element.split('[', maxsplit=1)[0]}[]) AS {quoted}"
        return quoted
    return f"CAST({quoted} AS VARCHAR) AS {quoted}"


def _from_sqlite(database: str, query: str, table: str, target: Path) -> Path:
    """Read as text: SQLite's columns hold values of any type, text in any encoding."""
    target.mkdir(exist_ok=True)
    uri = f"{Path(database).as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            cursor = connection.execute(query)
            if cursor.description is None:
                raise DataError(f"[sql]: the query {table} answers no rows; write a SELECT")
            names = [column[0] for column in cursor.description]
            schema = dict.fromkeys(names, pl.String())
            if len(schema) < len(names):
                raise DataError(f"[sql]: the query {table} names a column twice; use AS")
            for number, rows in enumerate(_batches(cursor)):
                frame = pl.DataFrame(rows, schema=schema, orient="row")
                frame.write_parquet(target / f"{number:08}.parquet")
    except (sqlite3.Error, UnicodeError) as error:
        raise _refuse(table, error) from None
    return target


def _batches(cursor: sqlite3.Cursor) -> Iterator[list[tuple[str | None, ...]]]:
    """Rows as text, at least one batch (perhaps empty)."""
    rows = cursor.fetchmany(_BATCH)
    yield [tuple(map(_sqlite_text, row)) for row in rows]
    while rows := cursor.fetchmany(_BATCH):
        yield [tuple(map(_sqlite_text, row)) for row in rows]


def _sqlite_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _from_postgresql(database: str, query: str, table: str, target: Path) -> Path:
    try:
        import psycopg
    except ImportError:
        raise DataError(
            "[sql]: PostgreSQL needs the package psycopg; pip install 'crossrec[postgresql]'"
        ) from None
    path = target.with_suffix(".csv")
    # One session, read-only, with text forms that don't depend on the server's settings.
    options = "-c default_transaction_read_only=on -c TimeZone=UTC -c DateStyle=ISO"
    try:
        with (
            psycopg.connect(
                database, options=options, client_encoding="UTF8", connect_timeout=10
            ) as connection,
            connection.cursor() as cursor,
            path.open("wb") as file,
            # The query is the platform's own; COPY streams it without a copy in memory.
            cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)".encode()) as copy,
        ):
            for block in copy:
                file.write(block)
    except psycopg.Error as error:
        raise _refuse(table, error) from None
    return path

"""What an adapter must deliver: three lazy tables of untrusted rows under canonical names."""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

import polars as pl

from crossrec_model.data.schema import (
    ATTRIBUTE_PREFIX,
    CATALOGUE,
    CONTEXT_PREFIX,
    INTERACTIONS,
    REQUIRED_CATALOGUE,
    REQUIRED_INTERACTIONS,
    REQUIRED_USERS,
    SOURCE_FAULT,
    SOURCE_FILE,
    SOURCE_ROW,
    SOURCE_TIME,
    USERS,
)
from crossrec_model.errors import DataError


@runtime_checkable
class Source(Protocol):
    """Rows of one platform, as its own system holds them; nothing about them is trusted yet.

    Every frame carries `source_file` (String), `source_row` (integer, from 1) and at least the
    required canonical columns of its table; optional ones may be absent. Values may be wrong in
    any way, with these types: ids, titles and codes are text or integers; `time` is
    Datetime with a time zone, null where it is missing or could not be read (then `source_time`
    keeps the text); numbers are numeric or text; `category` is List(String); vectors are lists
    of numbers. A frame may be collected more than once and gives the same rows each time; it is
    valid as long as the source object lives.
    """

    @property
    def name(self) -> str:
        """Short name for summaries and messages, without a machine path."""
        ...

    def interactions(self) -> pl.LazyFrame:
        """One row per event."""
        ...

    def catalogue(self) -> pl.LazyFrame:
        """One row per item."""
        ...

    def users(self) -> pl.LazyFrame | None:
        """One row per user, or None where the platform keeps no such table."""
        ...


#: table → (canonical columns, required ones, prefix of further ones)
TABLES: Final = {
    "interactions": (INTERACTIONS, REQUIRED_INTERACTIONS, CONTEXT_PREFIX),
    "catalogue": (CATALOGUE, REQUIRED_CATALOGUE, None),
    "users": (USERS, REQUIRED_USERS, ATTRIBUTE_PREFIX),
}


def check_columns(table: str, schema: pl.Schema) -> None:
    """Refuse a frame that breaks the contract of `Source`.

    Raises:
        DataError: a required column is missing, a column is unknown, or `time` has no time zone.
    """
    columns, required, prefix = TABLES[table]
    for column in (SOURCE_FILE, SOURCE_ROW, *required):
        if column not in schema:
            raise DataError(
                f"{table}: the column {column} is missing; map one of the platform's columns to it"
            )
    known = {*columns, SOURCE_FILE, SOURCE_ROW, SOURCE_FAULT, SOURCE_TIME}
    for column in schema:
        if column not in known and not (prefix and column.startswith(prefix)):
            also = f" or {prefix}…" if prefix else ""
            raise DataError(
                f"{table}: unknown column {column}; use one of {', '.join(columns)}{also}"
            )
    time = schema.get("time")
    if time is not None and not (isinstance(time, pl.Datetime) and time.time_zone):
        raise DataError(
            f"{table}: time is {time}, which has no time zone; deliver Datetime with time zone UTC"
        )

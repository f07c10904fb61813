"""Why a row was rejected, and the file that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

import polars as pl

from crossrec_model.data.schema import (
    CATALOGUE,
    INTERACTIONS,
    SOURCE_FAULT,
    SOURCE_FILE,
    SOURCE_ROW,
    SOURCE_TIME,
    USERS,
)

REASON: Final = "reason"
RAW_PREFIX: Final = "raw_"


class Reason(StrEnum):
    """The first rule that a row breaks, in the order in which the rules are tried."""

    MALFORMED_ROW = "malformed_row"
    BAD_ENCODING = "bad_encoding"
    MISSING_USER = "missing_user"
    MISSING_ITEM = "missing_item"
    MISSING_EVENT = "missing_event"
    UNKNOWN_EVENT = "unknown_event"
    MISSING_TIME = "missing_time"
    UNREADABLE_TIME = "unreadable_time"
    TIME_TOO_EARLY = "time_too_early"
    TIME_IN_FUTURE = "time_in_future"
    BAD_QUANTITY = "bad_quantity"
    BAD_PRICE = "bad_price"
    UNKNOWN_ITEM = "unknown_item"
    BAD_VECTOR = "bad_vector"
    BAD_CONSENT = "bad_consent"
    DUPLICATE = "duplicate"


REMEDIES: Final[Mapping[Reason, str]] = {
    Reason.MALFORMED_ROW: "check the separator, the quoting and the number of fields",
    Reason.BAD_ENCODING: "export the file as UTF-8",
    Reason.MISSING_USER: "check which column is mapped to user_id",
    Reason.MISSING_ITEM: "check which column is mapped to item_id",
    Reason.MISSING_EVENT: "check which column is mapped to event",
    Reason.UNKNOWN_EVENT: "add its codes to [interactions.events]",
    Reason.MISSING_TIME: "check which column is mapped to time",
    Reason.UNREADABLE_TIME: "set time_format in [interactions]",
    Reason.TIME_TOO_EARLY: "check time_format: no event lies before 1990",
    Reason.TIME_IN_FUTURE: "check time_format, time_zone and the clock",
    Reason.BAD_QUANTITY: "a quantity is a finite number above 0 or empty",
    Reason.BAD_PRICE: "a price is a finite number, 0 or more, or empty",
    Reason.UNKNOWN_ITEM: "deliver a catalogue with every item that is sold",
    Reason.BAD_VECTOR: "a vector holds finite numbers and has one length in the whole catalogue",
    Reason.BAD_CONSENT: "consent_to_link is true or false",
    Reason.DUPLICATE: "",
}


def write_quarantine(rejected: pl.LazyFrame, file: Path) -> None:
    """Write rejected rows as CSV: reason, source_file, source_row, then the values as text.

    Args:
        rejected: rows with `reason` set; a `raw_x` column holds the text that `x` was read from.
        file: the CSV file, overwritten.
    """
    schema = rejected.collect_schema()
    first = [REASON, SOURCE_FILE, SOURCE_ROW]
    skipped = {*first, SOURCE_FAULT, SOURCE_TIME}
    columns = [c for c in schema if c not in skipped and not c.startswith(RAW_PREFIX)]
    order = {
        column: place
        for place, column in enumerate(dict.fromkeys([*INTERACTIONS, *CATALOGUE, *USERS]))
    }
    columns.sort(key=lambda column: order.get(column, len(order)))
    values = [_as_text(column, schema) for column in columns]
    rejected.select(*first, *values).sink_csv(file, engine="streaming")


def _as_text(column: str, schema: pl.Schema) -> pl.Expr:
    """The value as the source wrote it where that is known, else as it was read."""
    value = pl.col(column)
    if isinstance(schema[column], pl.List):
        # Vectors and category paths: the first elements suffice to recognise the row.
        head = value.list.head(8).cast(pl.List(pl.String)).list.join(" | ", ignore_nulls=True)
        value = head
    else:
        value = value.cast(pl.String)
    if (raw := f"{RAW_PREFIX}{column}") in schema:
        value = pl.coalesce(raw, value)
    return value.alias(column)

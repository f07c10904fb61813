"""A platform's source with the events that its service recorded: how they reach the next training."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from clients.serving.events import RecordedEvent, read_events
from crossrec_model.data.schema import SOURCE_FILE, SOURCE_ROW, TIME
from crossrec_model.data.source import Source

_COLUMNS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "user_id": pl.String,
    "item_id": pl.String,
    "event": pl.String,
    "time": TIME,
    "quantity": pl.Float64,
    "price": pl.Float64,
    "shop_id": pl.String,
    SOURCE_FILE: pl.String,
    SOURCE_ROW: pl.Int64,
}


class WithRecorded:
    """Rows of a source, and behind them recorded events as rows of `events.sqlite`.

    Cleaning judges them as all others: an event that the source delivers too, alike in all that makes
    an event, is kept once.
    """

    def __init__(self, source: Source, events: list[RecordedEvent], file: str) -> None:
        self._source, self._events, self._file = source, events, file

    @property
    def name(self) -> str:
        """The source's name."""
        return self._source.name

    def interactions(self) -> pl.LazyFrame:
        """The source's events, then the recorded ones; columns that the source lacks are left out."""
        rows = self._source.interactions()
        schema = rows.collect_schema()
        more = self._rows().lazy()
        text = {"user_id", "item_id", "event", "shop_id", "quantity", "price"}
        # A source may deliver ids and numbers as text or as numbers: both are read as text.
        rows = rows.with_columns(
            pl.col(name).cast(pl.String) for name in schema if name in text
        ).with_columns(pl.col(SOURCE_ROW).cast(pl.Int64), pl.col("time").cast(TIME))
        more = more.with_columns(pl.col(name).cast(pl.String) for name in sorted(text))
        return pl.concat([rows, more], how="diagonal")

    def catalogue(self) -> pl.LazyFrame:
        """The source's items."""
        return self._source.catalogue()

    def users(self) -> pl.LazyFrame | None:
        """The source's users."""
        return self._source.users()

    def _rows(self) -> pl.DataFrame:
        rows = [
            {
                "user_id": event.user_id,
                "item_id": event.item_id,
                "event": event.event.value,
                "time": event.time_us,
                "quantity": event.quantity,
                "price": event.price,
                "shop_id": event.shop_id,
                SOURCE_FILE: self._file,
                SOURCE_ROW: event.number,
            }
            for event in self._events
        ]
        schema = {**_COLUMNS, "time": pl.Int64}
        return pl.DataFrame(rows, schema=schema).with_columns(pl.col("time").cast(TIME))


def with_recorded(source: Source, path: Path) -> Source:
    """The source itself, or with the events of a file where it has any.

    Raises:
        EventStoreError: if the file can't be read.
    """
    events = read_events(path)
    return WithRecorded(source, events, path.name) if events else source

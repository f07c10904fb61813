"""From a platform's own columns, codes and time formats to the canonical ones."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from clients.adapters.instants import NAMED_FORMATS, instants
from clients.adapters.readers import ELEMENT_END
from crossrec_model.data.schema import (
    SOURCE_FAULT,
    SOURCE_FILE,
    SOURCE_ROW,
    SOURCE_TIME,
    VECTORS,
    Event,
)
from crossrec_model.data.source import TABLES
from crossrec_model.errors import DataError, shown

#: Stands for an event code that the platform knows and the schema has no use for.
IGNORE: Final = "ignore"
_NUMBERS: Final = ("quantity", "price")


@dataclass(frozen=True, kw_only=True)
class TableMapping:
    """How one table's columns are named and written; see `docs/data.md` for each setting.

    Attributes:
        table: interactions, catalogue or users.
        columns: canonical name → own name; None where the names are canonical already.
        event: the one event that every row is, where the table has no column for it.
        events: own code → canonical event or `ignore`; other codes stand for themselves.
        time_format: `iso`, `unix_s`, `unix_ms`, `unix_us`, or a strptime pattern.
        time_zone: IANA name, for times without an offset.
        decimal_comma: numbers in text are written 1,5.
        category_separator: between the levels of a category path in text.
        vector_separator: between the elements of a vector in text.
    """

    table: str
    columns: Mapping[str, str] | None = None
    event: str | None = None
    events: Mapping[str, str] = field(default_factory=dict)
    time_format: str = "iso"
    time_zone: str = "UTC"
    decimal_comma: bool = False
    category_separator: str | None = None
    vector_separator: str = ","

    def __post_init__(self) -> None:
        where = f"[{self.table}]"
        canonical, _, prefix = TABLES[self.table]
        for column in self.columns or {}:
            if column not in canonical and not (prefix and column.startswith(prefix)):
                also = f" or {prefix}…" if prefix else ""
                raise DataError(
                    f"{where}: {column} is no canonical column; "
                    f"use one of {', '.join(canonical)}{also}"
                )
        targets = [event.value for event in Event]
        if self.event is not None and self.event not in targets:
            raise DataError(
                f"{where}: event = {shown(self.event)}; use one of {', '.join(targets)}"
            )
        targets.append(IGNORE)
        for code, event in self.events.items():
            if event not in targets:
                raise DataError(
                    f"{where}: events maps {shown(code)} to {shown(event)}; use one of {', '.join(targets)}"
                )
        if self.time_zone not in zoneinfo.available_timezones():
            raise DataError(
                f"{where}: time_zone = {shown(self.time_zone)} is unknown; "
                "use an IANA name such as Europe/Berlin"
            )
        if self.time_format not in NAMED_FORMATS and "%" not in self.time_format:
            raise DataError(
                f"{where}: time_format = {shown(self.time_format)} is unknown; use "
                f"{', '.join(NAMED_FORMATS)} or a pattern such as %d.%m.%Y %H:%M"
            )
        for name in ("category_separator", "vector_separator"):
            if getattr(self, name) == "":
                raise DataError(f"{where}: {name} is empty; leave it out or give a text")

    @staticmethod
    def parse(table: str, section: Mapping[str, Any]) -> TableMapping:
        """Read a section of a TOML file.

        Raises:
            DataError: an unknown setting, or one of the wrong type.
        """
        types: dict[str, type] = {
            "columns": dict,
            "event": str,
            "events": dict,
            "time_format": str,
            "time_zone": str,
            "decimal_comma": bool,
            "category_separator": str,
            "vector_separator": str,
        }
        for name, value in section.items():
            if name not in types:
                raise DataError(
                    f"[{table}]: unknown setting {shown(name)}; use one of {', '.join(types)}"
                )
            texts = value.values() if isinstance(value, dict) else ()
            if type(value) is not types[name] or not all(isinstance(t, str) for t in texts):
                raise DataError(
                    f"[{table}]: {name} = {shown(value)} is not {_KINDS[types[name]]}; correct it"
                )
        return TableMapping(table=table, **section)

    def apply(self, frame: pl.LazyFrame, *, file: str) -> pl.LazyFrame:
        """Deliver canonical columns as `Source` describes them.

        Args:
            frame: own columns and `source_row`, perhaps `source_fault`.
            file: what to call the rows' origin; becomes `source_file`.

        Raises:
            DataError: a mapped column is missing, or has a type that can't be meant.
        """
        schema = frame.collect_schema()
        own = self._own_columns(schema, file)
        out = [pl.lit(file).alias(SOURCE_FILE), pl.col(SOURCE_ROW).cast(pl.Int64)]
        if SOURCE_FAULT in schema:
            out.append(pl.col(SOURCE_FAULT))
        for canonical, column in own.items():
            out += self._column(canonical, column, frame, schema, file)
        if self.table == "interactions" and "event" not in own:
            out.append(pl.lit(self.event).alias("event"))
        mapped = frame.select(out)
        if IGNORE in self.events.values():
            mapped = mapped.filter(pl.col("event").is_null() | (pl.col("event") != IGNORE))
        return mapped

    def wanted(self) -> list[str]:
        """The own columns to read from files that name them row by row."""
        if self.columns is not None:
            return list(self.columns.values())
        return list(TABLES[self.table][0])

    def _own_columns(self, schema: pl.Schema, file: str) -> dict[str, str]:
        canonical, required, prefix = TABLES[self.table]
        if self.columns is not None:
            own = dict(self.columns)
        else:
            own = {c: c for c in schema if c in canonical or (prefix and c.startswith(prefix))}
        needed = [c for c in required if not (c == "event" and self.event)]
        for column in needed:
            if column not in own:
                raise DataError(
                    f"{file}: the column {column} is missing; name the platform's own column for "
                    f"it in [{self.table}.columns]"
                )
        for column, name in own.items():
            if name not in schema:
                has = ", ".join(c for c in schema if c not in (SOURCE_ROW, SOURCE_FAULT))
                raise DataError(
                    f"{file}: the column {name} (for {column}) is missing; it has {has}; "
                    f"correct [{self.table}.columns]"
                )
        return own

    def _column(
        self, canonical: str, own: str, frame: pl.LazyFrame, schema: pl.Schema, file: str
    ) -> list[pl.Expr]:
        dtype = schema[own]
        column = pl.col(own)
        if canonical == "time":
            time, text = instants(frame, own, self.time_format, self.time_zone, file=file)
            return [time.alias("time"), *([] if text is None else [text.alias(SOURCE_TIME)])]
        if canonical == "event":
            return [_code(column, dtype).str.strip_chars().replace(self.events).alias("event")]
        if canonical in _NUMBERS:
            return [self._number(column, dtype).alias(canonical)]
        if canonical == "category":
            return [self._path(column, dtype).alias(canonical)]
        if canonical in VECTORS:
            return [self._vector(column, dtype).alias(canonical)]
        return [_code(column, dtype).alias(canonical)]

    def _number(self, column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
        if dtype.is_numeric():
            return column.cast(pl.Float64)
        text = _code(column, dtype)
        # A text with a point as well (1.234,5) stays unreadable: guessing could be wrong.
        return text.str.replace(",", ".", literal=True) if self.decimal_comma else text

    def _path(self, column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
        if isinstance(dtype, pl.List):
            return column.cast(pl.List(pl.String))
        text = _code(column, dtype)
        separator = self.category_separator
        plain = text.str.split(separator) if separator else pl.concat_list(text)
        array = text.str.contains(ELEMENT_END, literal=True)
        return pl.when(array).then(text.str.split(ELEMENT_END)).otherwise(plain)

    def _vector(self, column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
        if isinstance(dtype, pl.Array):
            return column.arr.to_list()
        if isinstance(dtype, pl.List):
            return column
        text = _code(column, dtype).str.strip_chars("[](){} ").str.strip_suffix(ELEMENT_END)
        array = text.str.contains(ELEMENT_END, literal=True)
        elements = (
            pl.when(array)
            .then(text.str.split(ELEMENT_END))
            .otherwise(text.str.split(self.vector_separator))
        )
        numbers = elements.list.eval(pl.element().str.strip_chars().cast(pl.Float64, strict=False))
        return pl.when(text != "").then(numbers)


_KINDS: Final = {dict: "a table of texts", str: "a text", bool: "true or false"}


def _code(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The value as text; a whole number kept as a float loses its `.0`."""
    if dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        text = pl.when(whole.cast(pl.Float64) == column).then(whole.cast(pl.String))
        return text.otherwise(column.cast(pl.String))
    if dtype == pl.Binary:
        return column.map_batches(_decode, return_dtype=pl.String, is_elementwise=True)
    if dtype.is_nested():
        # A code can't be a list or an object; without a value the row is found in quarantine.
        return pl.lit(None, dtype=pl.String)
    return column.cast(pl.String)


def _decode(values: pl.Series) -> pl.Series:
    texts = [None if value is None else value.decode("utf-8", "replace") for value in values]
    return pl.Series(values.name, texts, dtype=pl.String)

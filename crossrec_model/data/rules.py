"""What a good row of each table is: how its values are read, and which rules it must pass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import polars as pl

from crossrec_model.data.quarantine import RAW_PREFIX, REASON, Reason
from crossrec_model.data.schema import (
    CATALOGUE,
    INTERACTIONS,
    SOURCE_FAULT,
    SOURCE_FILE,
    SOURCE_ROW,
    SOURCE_TIME,
    TIME,
    USERS,
    VECTORS,
)

EARLIEST: Final = datetime(1990, 1, 1, tzinfo=UTC)
_FIRST: Final = datetime(1, 1, 2, tzinfo=UTC)
_LAST: Final = datetime(9999, 12, 30, tzinfo=UTC)
#: What decoders put in place of bytes that are not UTF-8.
_REPLACEMENT: Final = "\ufffd"
_TRUE: Final = ("true", "t", "yes", "y", "1")
_FALSE: Final = ("false", "f", "no", "n", "0")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How to read a row's values, and when to reject it (the first rule that holds names it)."""

    values: tuple[pl.Expr, ...]
    texts: tuple[str, ...]
    broken: tuple[tuple[Reason, pl.Expr], ...]


def read(frame: pl.LazyFrame, rules: Rules) -> pl.LazyFrame:
    """Every value in its type, and as `raw_…` the text that it was read from."""
    # In two steps, because an expression that names the trimmed text twice would trim it twice.
    trimmed = frame.select(*rules.values)
    return trimmed.with_columns(
        pl.when(pl.col(text) != "").then(pl.col(text)).alias(text) for text in rules.texts
    )


def judge(read: pl.LazyFrame, rules: Rules) -> pl.LazyFrame:
    """Add `reason` (Enum, null for a good row); only bad rows keep their `raw_…`."""
    reasons = pl.Enum([reason.value for reason in Reason])
    reason = pl.coalesce(
        pl.when(broken).then(pl.lit(name.value, dtype=reasons)) for name, broken in rules.broken
    )
    raw = [column for column in read.collect_schema() if column.startswith(RAW_PREFIX)]
    bad = pl.col(REASON).is_not_null()
    return read.with_columns(reason.alias(REASON)).with_columns(
        pl.when(bad).then(pl.col(column)).alias(column) for column in raw
    )


def interaction_rules(schema: pl.Schema, now: datetime, items: pl.Series) -> Rules:
    """Rules for interactions with the `items` of the catalogue, none later than `now`."""
    numbers = [column for column in ("quantity", "price") if column in schema]
    texts = [column for column in _texts(schema, INTERACTIONS) if column != "event"]
    values = [*_origin(schema), *(_text(c) for c in texts), *_time(schema)]
    values += _event()
    for column in numbers:
        values += _number(column, schema)
    code = pl.col(f"{RAW_PREFIX}event")
    blank = code.is_null() | (code.str.strip_chars() == "")
    broken = [
        *_unreadable(schema, texts),
        (Reason.MISSING_USER, pl.col("user_id").is_null()),
        (Reason.MISSING_ITEM, pl.col("item_id").is_null()),
        (Reason.MISSING_EVENT, pl.col("event").is_null() & blank),
        (Reason.UNKNOWN_EVENT, pl.col("event").is_null()),
        *_time_rules(schema, now),
    ]
    if "quantity" in numbers:
        # An event about nothing is a void or a correction, not an interaction.
        broken.append((Reason.BAD_QUANTITY, _bad_number("quantity", schema, above_zero=True)))
    if "price" in numbers:
        broken.append((Reason.BAD_PRICE, _bad_number("price", schema, above_zero=False)))
    broken.append((Reason.UNKNOWN_ITEM, ~pl.col("item_id").is_in(items.implode())))
    return Rules(values=_expressions(values), texts=tuple(texts), broken=tuple(broken))


def catalogue_rules(schema: pl.Schema) -> Rules:
    """Rules for the catalogue, except that vectors agree in length (needs the whole table)."""
    texts = _texts(schema, CATALOGUE)
    vectors = [column for column in VECTORS if column in schema]
    values: list[str | pl.Expr] = [*_origin(schema), *(_text(column) for column in texts)]
    if "category" in schema:
        level = pl.element().str.strip_chars()
        path = pl.col("category").list.eval(level.filter(level.str.len_bytes() > 0))
        values.append(pl.when(path.list.len() > 0).then(path).alias("category"))
    if "price" in schema:
        values += _number("price", schema)
    for column in vectors:
        vector = pl.col(column).cast(pl.List(pl.Float32), strict=False)
        values.append(pl.when(vector.list.len() > 0).then(vector).alias(column))
    broken = [
        *_unreadable(schema, texts),
        (Reason.MISSING_ITEM, pl.col("item_id").is_null()),
    ]
    if "price" in schema:
        broken.append((Reason.BAD_PRICE, _bad_number("price", schema, above_zero=False)))
    for column in vectors:
        finite = pl.element().is_finite().fill_null(value=False)
        broken.append((Reason.BAD_VECTOR, ~pl.col(column).list.eval(finite).list.all()))
    return Rules(values=_expressions(values), texts=tuple(texts), broken=tuple(broken))


def user_rules(schema: pl.Schema) -> Rules:
    """Rules for users; a row without a consent value says no."""
    texts = _texts(schema, USERS)
    values: list[str | pl.Expr] = [*_origin(schema), *(_text(column) for column in texts)]
    broken = [*_unreadable(schema, texts), (Reason.MISSING_USER, pl.col("user_id").is_null())]
    if "consent_to_link" in schema:
        text = pl.col("consent_to_link").cast(pl.String).str.strip_chars().str.to_lowercase()
        blank = text.is_null() | (text == "")
        said = pl.when(text.is_in(_TRUE)).then(True).when(text.is_in(_FALSE) | blank).then(False)
        values += [said.alias("consent_to_link"), text.alias(f"{RAW_PREFIX}consent_to_link")]
        broken.append((Reason.BAD_CONSENT, pl.col("consent_to_link").is_null()))
    return Rules(values=_expressions(values), texts=tuple(texts), broken=tuple(broken))


def _expressions(values: list[str | pl.Expr]) -> tuple[pl.Expr, ...]:
    return tuple(pl.col(value) if isinstance(value, str) else value for value in values)


def _origin(schema: pl.Schema) -> list[str | pl.Expr]:
    """The columns that say where a row stands; a fault only where the source reports any."""
    fault = [SOURCE_FAULT] if SOURCE_FAULT in schema else []
    return [SOURCE_FILE, pl.col(SOURCE_ROW).cast(pl.Int64), *fault]


def _texts(schema: pl.Schema, canonical: dict[str, pl.DataType | type[pl.DataType]]) -> list[str]:
    """Canonical text columns, `event`, and the prefixed further ones."""
    own = {SOURCE_FILE, SOURCE_ROW, SOURCE_FAULT, SOURCE_TIME}
    texts = [
        c for c, dtype in canonical.items() if dtype == pl.String or isinstance(dtype, pl.Enum)
    ]
    further = [c for c in schema if c not in canonical and c not in own]
    return [column for column in texts if column in schema] + further


def _text(column: str) -> pl.Expr:
    """Text without surrounding white space."""
    return pl.col(column).cast(pl.String).str.strip_chars()


def _event() -> list[str | pl.Expr]:
    code = pl.col("event").cast(pl.String)
    event = code.str.strip_chars().cast(INTERACTIONS["event"], strict=False)
    return [event, code.alias(f"{RAW_PREFIX}event")]


def _time(schema: pl.Schema) -> list[str | pl.Expr]:
    """The time in UTC and, where the source has it, the text that it was read from."""
    time = pl.col("time").dt.convert_time_zone("UTC")
    dtype = schema["time"]
    if isinstance(dtype, pl.Datetime) and dtype.time_unit != "ns":
        # Polars panics when it casts or prints a time outside the calendar; the bounds keep such
        # a time on its side of every rule. Nanoseconds can't leave the years 1677 to 2262.
        utc = pl.Datetime(dtype.time_unit, "UTC")
        time = time.clip(pl.lit(_FIRST, dtype=utc), pl.lit(_LAST, dtype=utc))
    time = time.cast(TIME)
    raw = [pl.col(SOURCE_TIME).alias(f"{RAW_PREFIX}time")] if SOURCE_TIME in schema else []
    return [time, *raw]


def _number(column: str, schema: pl.Schema) -> list[str | pl.Expr]:
    """The value as Float64 (null where it can't be read) and, for text, the text beside it."""
    if schema[column] != pl.String:
        return [pl.col(column).cast(pl.Float64)]
    number = pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    return [number, pl.col(column).alias(f"{RAW_PREFIX}{column}")]


def _bad_number(column: str, schema: pl.Schema, *, above_zero: bool) -> pl.Expr:
    """Not finite, below its bound, or text that is no number; a missing value is fine."""
    number = pl.col(column)
    low = number <= 0 if above_zero else number < 0
    bad = ~number.is_finite() | low
    if schema[column] == pl.String:
        text = pl.col(f"{RAW_PREFIX}{column}").str.strip_chars()
        bad = (number.is_null() & (text != "")) | bad
    return bad


def _unreadable(schema: pl.Schema, texts: list[str]) -> list[tuple[Reason, pl.Expr]]:
    """Rows that the source could not read, and rows with bytes that are not UTF-8."""
    damaged = pl.any_horizontal(
        pl.col(column).str.contains(_REPLACEMENT, literal=True) for column in texts
    )
    if "category" in schema:
        path = pl.col("category").list.join(" ", ignore_nulls=True)
        damaged = damaged | path.str.contains(_REPLACEMENT, literal=True).fill_null(value=False)
    rules = [(Reason.BAD_ENCODING, damaged)]
    if SOURCE_FAULT in schema:
        rules.insert(0, (Reason.MALFORMED_ROW, pl.col(SOURCE_FAULT)))
    return rules


def _time_rules(schema: pl.Schema, now: datetime) -> list[tuple[Reason, pl.Expr]]:
    time = pl.col("time")
    rules = [
        (Reason.MISSING_TIME, time.is_null()),
        (Reason.TIME_TOO_EARLY, time < pl.lit(EARLIEST, dtype=TIME)),
        (Reason.TIME_IN_FUTURE, time > pl.lit(now.astimezone(UTC), dtype=TIME)),
    ]
    if SOURCE_TIME in schema:
        text = pl.col(f"{RAW_PREFIX}time").str.strip_chars()
        rules.insert(0, (Reason.UNREADABLE_TIME, time.is_null() & (text != "")))
    return rules

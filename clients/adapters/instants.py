"""Times as platforms write them, as instants in UTC."""

from __future__ import annotations

from typing import Final

import polars as pl

from crossrec_model.data.schema import TIME
from crossrec_model.errors import DataError

_UNITS: Final = {"unix_s": 1_000_000, "unix_ms": 1_000, "unix_us": 1}
#: Formats with a name; any other is a strptime pattern.
NAMED_FORMATS: Final = ("iso", *_UNITS)
#: Fast patterns first; `%#z` reads +02:00, +0200, +02 and Z.
_ISO: Final = (
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)
#: Rows that are looked at to tell which ISO pattern a file uses.
_SAMPLE: Final = 1000
#: Seconds since 1970 at the end of the year 5138; beyond it arithmetic could overflow.
_LIMIT: Final = 100_000_000_000


def instants(
    frame: pl.LazyFrame, column: str, time_format: str, time_zone: str, *, file: str
) -> tuple[pl.Expr, pl.Expr | None]:
    """How to read a column of times.

    Local times that a change of the clock skips are unreadable; of two equal ones, the earlier
    instant is meant.

    Args:
        frame: the table, of which a sample is read for `iso`.
        column: the column.
        time_format: `iso`, `unix_s`, `unix_ms`, `unix_us`, or a strptime pattern.
        time_zone: for times without an offset.
        file: for messages.

    Returns:
        The time as Datetime in UTC, null where it can't be read, and the text that it was read
        from (None where the column holds times already).

    Raises:
        DataError: the column's type doesn't fit the format.
    """
    dtype = frame.collect_schema()[column]
    value = pl.col(column)
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone:
            return value.dt.convert_time_zone("UTC"), None
        return _in_zone(value, time_zone), None
    if dtype == pl.Date:
        return _in_zone(value.cast(pl.Datetime("us")), time_zone), None
    if dtype == pl.Null:
        return pl.lit(None, dtype=TIME), None
    if dtype.is_numeric():
        if time_format not in _UNITS:
            raise DataError(
                f"{file}: the time column {column} holds numbers; set time_format to unix_s, "
                "unix_ms or unix_us"
            )
        return _since_epoch(value, _UNITS[time_format]), value.cast(pl.String)
    if dtype != pl.String:
        raise DataError(f"{file}: the time column {column} is {dtype}; deliver a time or a text")
    text = value.str.strip_chars()
    if time_format in _UNITS:
        return _since_epoch(text, _UNITS[time_format]), value
    pattern = _iso_pattern(frame, column) if time_format == "iso" else time_format
    return _parsed(text, pattern, time_zone), value


def _since_epoch(value: pl.Expr, unit: int) -> pl.Expr:
    """Whole numbers exactly; fractions to the microsecond, as far as a double holds them."""
    limit = _LIMIT * (1_000_000 // unit)
    whole = value.cast(pl.Int64, strict=False).clip(-limit, limit) * unit
    number = value.cast(pl.Float64, strict=False)
    scaled = (number.clip(-limit, limit) * unit).round()
    fraction = pl.when(number.is_finite()).then(scaled).cast(pl.Int64, strict=False)
    exact = pl.when((number == number.floor()) | number.is_null()).then(whole)
    return exact.fill_null(fraction).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _iso_pattern(frame: pl.LazyFrame, column: str) -> str:
    """The pattern that reads most of the first rows; the earlier one among equals."""
    sample = frame.select(pl.col(column).str.strip_chars()).head(_SAMPLE).collect().to_series()
    read = {p: int(_try(sample, p).is_not_null().sum()) for p in _ISO}
    return max(_ISO, key=lambda pattern: read[pattern])


def _try(sample: pl.Series, pattern: str) -> pl.Series:
    return sample.to_frame().select(_parsed(pl.first(), pattern, "UTC")).to_series()


def _parsed(text: pl.Expr, pattern: str, time_zone: str) -> pl.Expr:
    """Text by one pattern; null where it doesn't fit."""
    time = text.str.to_datetime(pattern, time_unit="us", strict=False, exact=True)
    if pattern.endswith("Z"):
        return time.dt.replace_time_zone("UTC")
    if any(code in pattern for code in ("%z", "%#z", "%:z", "%+")):
        return time.dt.convert_time_zone("UTC")
    return _in_zone(time, time_zone)


def _in_zone(time: pl.Expr, time_zone: str) -> pl.Expr:
    if time_zone == "UTC":
        return time.dt.replace_time_zone("UTC")
    zoned = time.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    return zoned.dt.convert_time_zone("UTC")

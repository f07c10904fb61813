"""Files as lazy tables of the platform's own columns; bytes that can't be read never stop a scan.

A reader adds `source_row` and, where a line can be unreadable by itself, `source_fault`. Bytes that
are not UTF-8 become U+FFFD, which cleaning rejects as `bad_encoding`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from crossrec_model.data.schema import SOURCE_FAULT, SOURCE_ROW
from crossrec_model.errors import DataError

#: Ends each element of a JSON array inside a text column (ASCII unit separator).
ELEMENT_END: Final = "\x1f"
_SURPLUS: Final = "surplus_fields"
_LINE: Final = "line"
#: Lines of a JSONL file that are looked at to tell which keys it has.
_SAMPLE: Final = 1000


def read_csv(file: Path, *, separator: str = ",", quote: str | None = '"') -> pl.LazyFrame:
    """Every field as text; a record with more fields than the header has is a fault.

    Args:
        file: CSV with a header line, plain or compressed (.gz, .zst).
        separator: one ASCII character.
        quote: one ASCII character, or None where fields are never quoted.

    Raises:
        DataError: the file is empty or has no readable header.
    """
    options: dict[str, Any] = {
        "separator": separator,
        "quote_char": quote,
        "encoding": "utf8-lossy",
        "truncate_ragged_lines": True,
    }
    header = _schema(file, pl.scan_csv(file, infer_schema=False, n_rows=0, **options)).names()
    # One column more than the header shows whether anything stands there.
    frame = pl.scan_csv(
        file,
        schema=dict.fromkeys([*header, _SURPLUS], pl.String),
        missing_columns="insert",
        row_index_name=SOURCE_ROW,
        row_index_offset=1,
        **options,
    )
    blank = pl.all_horizontal(pl.col(column).is_null() for column in [*header, _SURPLUS])
    surplus = pl.col(_SURPLUS).is_not_null().alias(SOURCE_FAULT)
    return frame.filter(~blank).select(SOURCE_ROW, *header, surplus)


def read_parquet(file: Path) -> pl.LazyFrame:
    """Columns in their own types.

    Raises:
        DataError: the file is not Parquet.
    """
    frame = pl.scan_parquet(file, row_index_name=SOURCE_ROW, row_index_offset=1)
    _schema(file, frame)
    return frame


def read_jsonl(file: Path, *, keys: Iterable[str]) -> pl.LazyFrame:
    """One JSON object per line, each wanted value as text; a line that is none is a fault.

    A key with dots that no object has as such walks into nested objects. Array elements end with
    `ELEMENT_END`. A key that the first thousand lines don't have is left out of the table.

    Args:
        file: UTF-8 lines, plain or compressed (.gz, .zst).
        keys: the keys to read.

    Raises:
        DataError: the file is empty.
    """
    lines = pl.scan_csv(
        file,
        has_header=False,
        separator="\x01",
        quote_char=None,
        encoding="utf8-lossy",
        schema={_LINE: pl.String},
        row_index_name=SOURCE_ROW,
        row_index_offset=1,
    ).filter(pl.col(_LINE).str.strip_chars() != "")
    _schema(file, lines)
    sample = lines.head(_SAMPLE).collect()[_LINE]
    objects = [o for o in map(_object, sample) if o is not None]
    found = [key for key in keys if any(_has(o, key) for o in objects)]
    fields = dict.fromkeys(found, pl.String()) | {SOURCE_FAULT: pl.Boolean()}
    parsed = pl.col(_LINE).map_batches(
        lambda batch: _parse(batch, fields), return_dtype=pl.Struct(fields), is_elementwise=True
    )
    return lines.select(SOURCE_ROW, parsed.alias(_LINE)).unnest(_LINE)


def _schema(file: Path, frame: pl.LazyFrame) -> pl.Schema:
    """The columns of a scan; one line that names the file where there are none to be had."""
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{file.name} is empty; deliver a file with rows")
        return frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{file.name} can't be read as {file.suffix or 'a table'}: {first}"
        ) from None


def _parse(lines: pl.Series, fields: Mapping[str, pl.DataType]) -> pl.Series:
    columns: dict[str, list[str | None]] = {name: [] for name in fields if name != SOURCE_FAULT}
    fault: list[bool] = []
    for line in lines:
        texts = _texts(line, columns)
        fault.append(texts is None)
        for name, column in columns.items():
            column.append(None if texts is None else texts[name])
    series = [pl.Series(name, column, dtype=pl.String) for name, column in columns.items()]
    frame = pl.DataFrame([*series, pl.Series(SOURCE_FAULT, fault, dtype=pl.Boolean)])
    return frame.to_struct(lines.name)


def _texts(line: str, names: Iterable[str]) -> dict[str, str | None] | None:
    """The wanted values of a line; None if it is no object, or nested too deeply to be read."""
    content = _object(line)
    try:
        return None if content is None else {n: _text(_value(content, n)) for n in names}
    except RecursionError:
        return None


def _object(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _has(content: dict[str, Any], key: str) -> bool:
    return key in content or _value(content, key) is not None


def _value(content: Any, key: str) -> Any:
    if key in content:
        return content[key]
    for name in key.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _text(value: Any) -> str | None:
    """A JSON value as CSV would hold it."""
    if value is None:
        return None
    if isinstance(value, str):
        # A lone surrogate (half of an escaped pair) is not text that UTF-8 can hold.
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "".join(f"{_text(element) or ''}{ELEMENT_END}" for element in value)
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)

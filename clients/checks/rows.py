"""Checks of the data mapping: the first rows of each table, read and judged as for a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl

from clients.adapters import open_source
from clients.adapters.mapping import TableMapping
from crossrec_model.checkup import Finding, fail, ok, refused, warn
from crossrec_model.checkup_machine import Clock
from crossrec_model.data.cleaning import clean_catalogue, clean_interactions, clean_users
from crossrec_model.data.quarantine import REMEDIES, Reason
from crossrec_model.data.schema import SOURCE_FAULT, SOURCE_FILE, SOURCE_ROW, SOURCE_TIME
from crossrec_model.data.summary import TableSummary
from crossrec_model.errors import DataError

#: So many rows of each table are read at most.
FIRST_ROWS: Final = 100_000
#: A sample with a larger share of bad rows, or more than this times what is accepted, fails: the rest
#: can hardly make up for it.
HOPELESS: Final = 0.5
_TIMES: Final = 10
_WHAT: Final = "data mapping"
_ADDED: Final = (SOURCE_FILE, SOURCE_ROW, SOURCE_FAULT, SOURCE_TIME)


def mapping(
    data: str,
    platform: str,
    *,
    max_bad: float = 0.01,
    now: Clock,
    first_rows: int = FIRST_ROWS,
) -> Iterator[Finding]:
    """Open a source, tell which columns mean what, and judge the first rows of each table.

    Args:
        data: as `--data`.
        platform: the platform's id.
        max_bad: accepted share of bad rows.
        now: later interactions are bad.
        first_rows: so many rows of each table are read at most, at least 1.
    """
    source = open_source(data, platform, first_rows=first_rows + 1)
    tables = {"catalogue": source.catalogue, "interactions": source.interactions}
    samples: dict[str, pl.DataFrame] = {}
    for table, frame in {**tables, "users": source.users}.items():
        try:
            if (sample := _first(frame, source.name, first_rows + 1)) is not None:
                samples[table] = sample
        except DataError as error:
            yield refused(_WHAT, error)
    known = getattr(source, "mappings", {})
    for table, sample in samples.items():
        yield ok(_WHAT, f"{table}: {_meaning(sample, known.get(table))}")
    if not samples.keys() >= tables.keys():
        return  # told above
    whole = {table: sample.height <= first_rows for table, sample in samples.items()}
    for summary in _judged(samples, first_rows, now(), whole["catalogue"]):
        yield _verdict(summary, max_bad, whole=whole[summary.table])
    if not whole["catalogue"]:
        yield warn(
            _WHAT,
            f"the catalogue has more than {first_rows:,} rows, so items were not looked up in it",
            f"look at all rows: python -m clients.platform data --id {platform} --data {data}",
        )


def _first(frame: Callable[[], pl.LazyFrame | None], name: str, rows: int) -> pl.DataFrame | None:
    """The first rows of a table; a reader's error is one line."""
    try:
        lazy = frame()
        return None if lazy is None else lazy.head(rows).collect(engine="streaming")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{name}: the data can't be read: {first}; check the files") from None


def _meaning(sample: pl.DataFrame, known: TableMapping | None) -> str:
    own: Mapping[str, str] = (known.columns if known else None) or {}
    canonical = [column for column in sample.columns if column not in _ADDED]
    named = [f"{c} from {own[c]}" if own.get(c, c) != c else c for c in canonical]
    return ", ".join(named)


def _judged(
    samples: Mapping[str, pl.DataFrame], rows: int, now: datetime, whole_catalogue: bool
) -> Iterator[TableSummary]:
    """What cleaning says of the first rows; items count as known where not all are there."""
    frames = {table: sample.head(rows).lazy() for table, sample in samples.items()}
    catalogue = clean_catalogue(frames["catalogue"])
    items = catalogue.rows.select("item_id")
    if not whole_catalogue:
        bought = samples["interactions"]["item_id"].cast(pl.String).str.strip_chars()
        items = pl.concat([items, bought.to_frame("item_id").unique()])
    with tempfile.TemporaryDirectory(prefix="crossrec-doctor-") as scratch:
        yield clean_interactions(
            frames["interactions"], catalogue=items, now=now, folder=Path(scratch)
        ).summary
    yield catalogue.summary
    if "users" in frames:
        yield clean_users(frames["users"]).summary


def _verdict(summary: TableSummary, max_bad: float, *, whole: bool) -> Finding:
    """Compare the share of bad rows with what is accepted."""
    which = f"all {summary.read:,}" if whole else f"the first {summary.read:,}"
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in summary.dropped.items())
    found = f"{summary.table}: of {which} rows {dropped or 'none'} would be dropped"
    if not summary.read:
        if summary.table == "users":
            return ok(_WHAT, "users: there are no rows")
        return fail(_WHAT, f"{summary.table}: there are no rows", "deliver the rows of this table")
    reason = summary.largest_reason()
    if reason is None or (summary.bad_share <= max_bad and summary.kept):
        return ok(_WHAT, found)
    found += f", {summary.bad_share:.2%} are bad, above {max_bad:.2%}"
    if whole or summary.bad_share > min(HOPELESS, _TIMES * max_bad) or not summary.kept:
        return fail(_WHAT, found, _remedy(reason))
    return warn(_WHAT, found, f"{_remedy(reason)}, unless the other rows are better")


def _remedy(reason: Reason) -> str:
    return f"{REMEDIES[reason]}, or raise --max-bad"

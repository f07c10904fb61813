"""Whether cleaned tables are good enough to go on with; if not, one line says why."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from crossrec_model.data.cleaning import Cleaned
from crossrec_model.data.quarantine import RAW_PREFIX, REASON, REMEDIES, Reason
from crossrec_model.data.schema import SOURCE_FILE, SOURCE_ROW
from crossrec_model.data.staging import StagedInteractions
from crossrec_model.data.summary import TableSummary
from crossrec_model.errors import DataError

_FIRST_ROWS: Final = 1_000_000


def check_usable(cleaned: Cleaned, *, max_bad: float, quarantine: Path) -> None:
    """Refuse tables that are empty, that don't fit together, or that have too many bad rows.

    Args:
        cleaned: the cleaned tables.
        max_bad: the largest accepted share of bad rows in each table, in [0, 1].
        quarantine: the folder where the rejected rows will stand, for the message.

    Raises:
        DataError: with the value, the bound and the remedy.
    """
    if not cleaned.catalogue.summary.read:
        raise DataError("catalogue: there are no rows; deliver every item that is sold")
    for table in (cleaned.catalogue, cleaned.users):
        if table is not None:
            _check_share(table.summary, max_bad, quarantine)
    staged = cleaned.interactions
    if not staged.summary.read:
        raise DataError("interactions: there are no rows; deliver the events of a period")
    if staged.summary.dropped.get(Reason.UNKNOWN_ITEM):
        _check_coverage(staged)
    _check_share(staged.summary, max_bad, quarantine, _example(staged))
    if not staged.summary.kept:
        raise DataError(
            f"interactions: none of {staged.summary.read:,} rows is usable; "
            f"see {quarantine / 'interactions.csv'}"
        )


def _check_share(
    summary: TableSummary, max_bad: float, quarantine: Path, example: str = ""
) -> None:
    reason = summary.largest_reason()
    if reason is None or summary.bad_share <= max_bad:
        return
    raise DataError(
        f"{summary.table}: {summary.bad:,} of {summary.read:,} rows ({summary.bad_share:.4%}) are "
        f"bad, above max_bad = {max_bad:g}; most are {reason} ({summary.dropped[reason]:,}"
        f"{example}): {REMEDIES[reason]}, or raise max_bad; "
        f"the rows stand in {quarantine / f'{summary.table}.csv'}"
    )


def _check_coverage(staged: StagedInteractions) -> None:
    """Refuse a catalogue that knows fewer than half of the items that interactions name."""
    lost = staged.rejected().filter(pl.col(REASON) == Reason.UNKNOWN_ITEM.value)
    unknown = _distinct_items(lost)
    known = 0
    # The first rows mostly show enough items to see that the catalogue is not the problem.
    for rows in (staged.kept().head(_FIRST_ROWS), staged.kept()):
        known = _distinct_items(rows)
        if known >= unknown:
            return
    raise DataError(
        f"catalogue: it has {known:,} of the {known + unknown:,} items that interactions name, "
        "below one half; check that both tables map the same item code to item_id"
    )


def _distinct_items(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.col("item_id").n_unique()).collect(engine="streaming").item())


def _unknown_events(staged: StagedInteractions, limit: int = 3) -> list[str]:
    """The most frequent event codes that the schema doesn't know, most frequent first."""
    bad = staged.rejected().filter(pl.col(REASON) == Reason.UNKNOWN_EVENT.value)
    code = pl.col(f"{RAW_PREFIX}event").alias("code")
    counts = bad.group_by(code).len().collect(engine="streaming")
    return counts.sort(["len", "code"], descending=[True, False])["code"].head(limit).to_list()


def _first_rejected(rejected: pl.LazyFrame, reason: Reason) -> str:
    """Where the first row with this reason stands, for a message; empty where there is none."""
    rows = rejected.filter(pl.col(REASON) == reason.value).select(SOURCE_FILE, SOURCE_ROW)
    first = rows.head(1).collect(engine="streaming")
    return f"{first[SOURCE_FILE][0]} row {first[SOURCE_ROW][0]}" if first.height else ""


def _example(staged: StagedInteractions) -> str:
    """What most bad interactions have in common, for a message."""
    reason = staged.summary.largest_reason()
    if reason is None:
        return ""
    if reason is Reason.UNKNOWN_EVENT:
        return f", code {', '.join(repr(code) for code in _unknown_events(staged))}"
    return f", first in {_first_rejected(staged.rejected(), reason)}"

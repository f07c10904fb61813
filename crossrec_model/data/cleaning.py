"""Validation and cleaning: every source row is either kept, or rejected once with its reason.

Catalogue and users are read into memory, as everything downstream does. Interactions may be larger
than memory: they stream once from the source and are staged with their verdicts (`staging.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from crossrec_model.data.quarantine import REASON, Reason
from crossrec_model.data.rules import (
    Rules,
    catalogue_rules,
    interaction_rules,
    judge,
    read,
    user_rules,
)
from crossrec_model.data.schema import CATALOGUE, SOURCE_FAULT, USERS, VECTORS, canonical_columns
from crossrec_model.data.source import Source, check_columns
from crossrec_model.data.staging import ROWS_IN_MEMORY, StagedInteractions, stage
from crossrec_model.data.summary import TableSummary, by_reason


@dataclass(frozen=True, kw_only=True)
class CleanTable:
    """A table that fits in memory: kept rows with canonical columns, rejected ones with reasons."""

    rows: pl.DataFrame
    rejected: pl.DataFrame
    summary: TableSummary


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """All tables of one source after cleaning; `users` is None where the source has none."""

    catalogue: CleanTable
    users: CleanTable | None
    interactions: StagedInteractions

    @property
    def summaries(self) -> tuple[TableSummary, ...]:
        """One summary per table."""
        users = () if self.users is None else (self.users.summary,)
        return (self.interactions.summary, self.catalogue.summary, *users)

    def rejected(self) -> dict[str, pl.LazyFrame]:
        """Rejected rows of each table that has any."""
        rows = {"interactions": self.interactions.rejected()}
        rows["catalogue"] = self.catalogue.rejected.lazy()
        if self.users is not None:
            rows["users"] = self.users.rejected.lazy()
        return {s.table: rows[s.table] for s in self.summaries if s.dropped}


def clean(
    source: Source, *, now: datetime, folder: Path, rows_in_memory: int = ROWS_IN_MEMORY
) -> Cleaned:
    """Clean every table of a source.

    Args:
        source: the platform's untrusted rows.
        now: time zone aware; a later interaction is rejected.
        folder: where interactions go that are too many for memory; it must outlive the result.
        rows_in_memory: at most so many interactions are held at once, at least 1.

    Raises:
        DataError: a frame breaks the contract of `Source`.
    """
    catalogue = clean_catalogue(source.catalogue())
    users = source.users()
    staged = clean_interactions(
        source.interactions(),
        catalogue=catalogue.rows,
        now=now,
        folder=folder,
        rows_in_memory=rows_in_memory,
    )
    return Cleaned(
        catalogue=catalogue,
        users=None if users is None else clean_users(users),
        interactions=staged,
    )


def clean_catalogue(frame: pl.LazyFrame) -> CleanTable:
    """Clean the catalogue; of several rows for one item the first good one is kept.

    Raises:
        DataError: the frame breaks the contract of `Source`.
    """
    schema = frame.collect_schema()
    check_columns("catalogue", schema)
    judged = _judged(frame, catalogue_rules(schema))
    for column in VECTORS:
        if column in judged.columns:
            judged = _reject_other_lengths(judged, column)
    return _split("catalogue", judged, "item_id", CATALOGUE)


def clean_users(frame: pl.LazyFrame) -> CleanTable:
    """Clean the users; of several rows for one user the first good one is kept.

    Raises:
        DataError: the frame breaks the contract of `Source`.
    """
    schema = frame.collect_schema()
    check_columns("users", schema)
    judged = _judged(frame, user_rules(schema))
    return _split("users", judged, "user_id", USERS)


def _judged(frame: pl.LazyFrame, rules: Rules) -> pl.DataFrame:
    return judge(read(frame, rules), rules).collect(engine="streaming")


def _reject_other_lengths(judged: pl.DataFrame, column: str) -> pl.DataFrame:
    """Reject vectors that are not as long as most (the shorter length among equals)."""
    good = judged.filter(pl.col(REASON).is_null() & pl.col(column).is_not_null())
    if good.is_empty():
        return judged
    lengths = good.group_by(pl.col(column).list.len().alias("length")).len()
    usual = lengths.sort(["len", "length"], descending=[True, False])["length"][0]
    other = pl.col(REASON).is_null() & (pl.col(column).list.len() != usual)
    reason = pl.when(other).then(pl.lit(Reason.BAD_VECTOR.value)).otherwise(pl.col(REASON))
    return judged.with_columns(reason.cast(judged.schema[REASON]).alias(REASON))


def _split(
    table: str,
    judged: pl.DataFrame,
    key: str,
    canonical: dict[str, pl.DataType | type[pl.DataType]],
) -> CleanTable:
    # The first good row of a key is kept, so the bad ones must not take part in the comparison.
    good = pl.col(REASON).is_null()
    again = good & ~pl.struct(good, key).is_first_distinct()
    reason = pl.when(again).then(pl.lit(Reason.DUPLICATE.value)).otherwise(pl.col(REASON))
    judged = judged.with_columns(reason.alias(REASON))
    rows = judged.filter(pl.col(REASON).is_null())
    rejected = judged.filter(pl.col(REASON).is_not_null())
    counts = dict(rejected.group_by(REASON).len().iter_rows())
    summary = TableSummary(table=table, read=judged.height, dropped=by_reason(counts))
    rows = rows.select(canonical_columns(rows.schema, canonical)).sort(key)
    return CleanTable(rows=rows, rejected=rejected, summary=summary)


def clean_interactions(
    frame: pl.LazyFrame,
    *,
    catalogue: pl.DataFrame,
    now: datetime,
    folder: Path,
    rows_in_memory: int = ROWS_IN_MEMORY,
) -> StagedInteractions:
    """Judge every interaction and find the duplicates.

    Args:
        frame: untrusted interactions as `Source.interactions` describes them.
        catalogue: clean catalogue; an interaction with another item is rejected.
        now: time zone aware; a later interaction is rejected.
        folder: where rows go that are too many for memory; it must outlive the result.
        rows_in_memory: at most so many rows are held at once, at least 1.

    Raises:
        DataError: the frame breaks the contract of `Source`.
    """
    schema = frame.collect_schema()
    check_columns("interactions", schema)
    rules = interaction_rules(schema, now, catalogue["item_id"])
    judged = judge(read(frame, rules), rules)
    if SOURCE_FAULT in schema:
        judged = judged.drop(SOURCE_FAULT)
    return stage(judged, folder, rows_in_memory=rows_in_memory)

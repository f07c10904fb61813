"""Validation and cleaning: every source row is either kept, or rejected once with its reason.

Catalogue and users are read into memory, as everything downstream does. Interactions may be larger
than memory: they stream once from the source into a staged Parquet file that holds each row with
its verdict; duplicates are then found exactly, from hashes first, in passes of bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl

from crossrec_model.data.quarantine import REASON, Reason
from crossrec_model.data.rules import (
    KNOWN_ITEM,
    catalogue_rules,
    interaction_rules,
    judge,
    user_rules,
)
from crossrec_model.data.schema import (
    ATTRIBUTE_PREFIX,
    CATALOGUE,
    CONTEXT_PREFIX,
    IDENTITY,
    INTERACTIONS,
    SOURCE_FAULT,
    USERS,
    VECTORS,
)
from crossrec_model.data.source import Source, check_columns
from crossrec_model.data.summary import TableSummary

#: Position of a row in the staged file, which is also its order in the source.
POSITION: Final = "position"
_HASH: Final = "identity_hash"
#: Rows whose hashes one pass over the staged file compares; about 0.5 GiB of memory.
_ROWS_PER_PASS: Final = 20_000_000


@dataclass(frozen=True, kw_only=True)
class CleanTable:
    """A table that fits in memory: kept rows with canonical columns, rejected ones with reasons."""

    rows: pl.DataFrame
    rejected: pl.DataFrame
    summary: TableSummary


@dataclass(frozen=True, kw_only=True)
class StagedInteractions:
    """Interactions on disk, each with its verdict; `duplicates` holds positions, ascending."""

    file: Path
    duplicates: pl.Series
    summary: TableSummary

    def kept(self) -> pl.LazyFrame:
        """Kept rows with canonical columns, context columns and `position`, in source order."""
        good = self._rows().filter(pl.col(REASON).is_null())
        if len(self.duplicates):
            good = good.join(self._duplicate_rows(), on=POSITION, how="anti", maintain_order="left")
        return good.select(POSITION, *canonical_columns(good.collect_schema(), INTERACTIONS))

    def rejected(self) -> pl.LazyFrame:
        """Rejected rows with their reason, in source order."""
        again = pl.col(POSITION).is_in(self.duplicates.implode())
        reason = pl.when(again).then(pl.lit(Reason.DUPLICATE.value)).otherwise(pl.col(REASON))
        rows = self._rows().with_columns(reason.alias(REASON))
        return rows.filter(pl.col(REASON).is_not_null()).drop(POSITION, _HASH, KNOWN_ITEM)

    def _rows(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.file, row_index_name=POSITION)

    def _duplicate_rows(self) -> pl.LazyFrame:
        return self.duplicates.to_frame(POSITION).lazy()


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


def clean(source: Source, *, now: datetime, file: Path) -> Cleaned:
    """Clean every table of a source.

    Args:
        source: the platform's untrusted rows.
        now: time zone aware; a later interaction is rejected.
        file: where the interactions are staged, as Parquet.

    Raises:
        DataError: a frame breaks the contract of `Source`.
    """
    catalogue = clean_catalogue(source.catalogue())
    users = source.users()
    staged = stage_interactions(source.interactions(), catalogue=catalogue.rows, now=now, file=file)
    return Cleaned(
        catalogue=catalogue,
        users=None if users is None else clean_users(users),
        interactions=staged,
    )


def canonical_columns(
    schema: pl.Schema, canonical: dict[str, pl.DataType | type[pl.DataType]]
) -> list[pl.Expr]:
    """Every canonical column in its type (null where the source has none), then further ones."""
    columns = [
        (pl.col(c) if c in schema else pl.lit(None)).cast(dtype).alias(c)
        for c, dtype in canonical.items()
    ]
    prefix = CONTEXT_PREFIX if canonical is INTERACTIONS else ATTRIBUTE_PREFIX
    return columns + [pl.col(column) for column in schema if column.startswith(prefix)]


def clean_catalogue(frame: pl.LazyFrame) -> CleanTable:
    """Clean the catalogue; of several rows for one item the first good one is kept.

    Raises:
        DataError: the frame breaks the contract of `Source`.
    """
    schema = frame.collect_schema()
    check_columns("catalogue", schema)
    judged = judge(frame, catalogue_rules(schema)).collect(engine="streaming")
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
    judged = judge(frame, user_rules(schema)).collect(engine="streaming")
    return _split("users", judged, "user_id", USERS)


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
    summary = TableSummary(table=table, read=judged.height, dropped=_by_reason(counts))
    rows = rows.select(canonical_columns(rows.schema, canonical)).sort(key)
    return CleanTable(rows=rows, rejected=rejected, summary=summary)


def stage_interactions(
    frame: pl.LazyFrame, *, catalogue: pl.DataFrame, now: datetime, file: Path
) -> StagedInteractions:
    """Read every interaction once, judge it, and find the duplicates among the good ones.

    Args:
        frame: untrusted interactions as `Source.interactions` describes them.
        catalogue: clean catalogue; an interaction with another item is rejected.
        now: time zone aware; a later interaction is rejected.
        file: where the staged Parquet file goes; its size is about that of the source as Parquet.

    Raises:
        DataError: the frame breaks the contract of `Source`.
    """
    schema = frame.collect_schema()
    check_columns("interactions", schema)
    items = catalogue.lazy().select("item_id", pl.lit(value=True).alias(KNOWN_ITEM))
    trimmed = frame.with_columns(pl.col("item_id").cast(pl.String).str.strip_chars())
    joined = trimmed.join(items, on="item_id", how="left", maintain_order="left")
    judged = judge(joined, interaction_rules(joined.collect_schema(), now))
    if SOURCE_FAULT in schema:
        judged = judged.drop(SOURCE_FAULT)
    identity = [column for column in IDENTITY if column in schema]
    # lz4 costs a third of zstd's time; the file lives for seconds.
    judged.with_columns(pl.struct(identity).hash(seed=1).alias(_HASH)).sink_parquet(
        file, compression="lz4", maintain_order=True, engine="streaming"
    )
    staged = pl.scan_parquet(file)
    counts = dict(staged.group_by(REASON).len().collect(engine="streaming").iter_rows())
    read = sum(counts.values())
    counts.pop(None, None)
    duplicates = _find_duplicates(file, identity, read)
    dropped = _by_reason(counts | {Reason.DUPLICATE.value: len(duplicates)})
    summary = TableSummary(table="interactions", read=read, dropped=dropped)
    return StagedInteractions(file=file, duplicates=duplicates, summary=summary)


def _find_duplicates(file: Path, identity: list[str], rows: int) -> pl.Series:
    """Positions of the good rows that repeat an earlier good row, ascending.

    Equal rows have equal hashes, so each pass takes one residue of the hash: rows whose hash
    occurs once are done, the few others are compared value by value.
    """
    passes = -(-rows // _ROWS_PER_PASS) or 1
    staged = pl.scan_parquet(file, row_index_name=POSITION).filter(pl.col(REASON).is_null())
    found = []
    for residue in range(passes):
        part = staged.filter(pl.col(_HASH) % passes == residue) if passes > 1 else staged
        repeated = part.group_by(_HASH).len().filter(pl.col("len") > 1).select(_HASH)
        hashes = repeated.collect(engine="streaming")
        if hashes.is_empty():
            continue
        suspects = part.join(hashes.lazy(), on=_HASH, how="semi").select(POSITION, *identity)
        ordered = suspects.collect(engine="streaming").sort(POSITION)
        found.append(ordered.filter(~pl.struct(identity).is_first_distinct())[POSITION])
    if not found:
        return pl.Series(POSITION, [], dtype=pl.get_index_type())
    return pl.concat(found).sort()


def _by_reason(counts: dict[str, int]) -> dict[Reason, int]:
    return {reason: counts[reason.value] for reason in Reason if counts.get(reason.value)}

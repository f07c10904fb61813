"""Judged interactions between the source and the prepared tables: in memory, or on disk if many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from crossrec_model.data.quarantine import REASON, Reason
from crossrec_model.data.schema import IDENTITY, INTERACTIONS, canonical_columns
from crossrec_model.data.summary import TableSummary, by_reason

#: Position of a row in its source, from 0, over all files.
POSITION: Final = "position"
KEPT: Final = "kept"
_HASH: Final = "identity_hash"
#: More rows than these go to disk; about 0.3 KiB of memory each at the peak.
ROWS_IN_MEMORY: Final = 12_000_000


@dataclass(frozen=True, kw_only=True)
class StagedInteractions:
    """Every interaction with its verdict.

    Attributes:
        rows: judged rows with `position` and the hash of their identity, in source order.
        duplicates: positions of rows that repeat an earlier good row, ascending.
        summary: how many rows were dropped for which reason.
    """

    rows: pl.LazyFrame
    duplicates: pl.Series
    summary: TableSummary

    def kept(self) -> pl.LazyFrame:
        """Kept rows with canonical columns, context columns and `position`, in source order."""
        return self.marked().filter(pl.col(KEPT)).drop(KEPT)

    def marked(self) -> pl.LazyFrame:
        """All rows as `kept` gives them, with a column `kept` instead of a filter."""
        kept = (pl.col(REASON).is_null() & ~self._again()).alias(KEPT)
        canonical = canonical_columns(self.rows.collect_schema(), INTERACTIONS)
        return self.rows.select(POSITION, kept, *canonical)

    def rejected(self) -> pl.LazyFrame:
        """Rejected rows with their reason, in source order."""
        again = pl.when(self._again()).then(pl.lit(Reason.DUPLICATE.value))
        rows = self.rows.with_columns(again.otherwise(pl.col(REASON)).alias(REASON))
        return rows.filter(pl.col(REASON).is_not_null()).drop(POSITION, _HASH)

    def _again(self) -> pl.Expr:
        if self.duplicates.is_empty():
            return pl.lit(value=False)
        return pl.col(POSITION).is_in(self.duplicates.implode())


def stage(
    judged: pl.LazyFrame, folder: Path, *, rows_in_memory: int = ROWS_IN_MEMORY
) -> StagedInteractions:
    """Read judged interactions from the source, once, and find the duplicates among the good ones.

    Args:
        judged: interactions with `reason`, in source order.
        folder: where rows go that are too many for memory; it must outlive the result.
        rows_in_memory: at most so many rows are held at once, at least 1.
    """
    identity = [column for column in IDENTITY if column in judged.collect_schema()]
    hashed = judged.with_columns(_identity_hash(identity).alias(_HASH))
    parts: list[Path] = []
    held: list[pl.DataFrame] = []
    read = 0
    chunk = min(1_000_000, rows_in_memory)
    for batch in hashed.collect_batches(chunk_size=chunk, maintain_order=True, engine="streaming"):
        held.append(batch.with_row_index(POSITION, offset=read))
        read += batch.height
        if sum(part.height for part in held) > rows_in_memory:
            parts.append(_spill(held, folder / f"staged-{len(parts):06}.parquet"))
            held = []
    if parts and held:
        parts.append(_spill(held, folder / f"staged-{len(parts):06}.parquet"))
    if parts:
        rows = pl.scan_parquet(parts)
    elif held:
        rows = pl.concat(held).lazy()
    else:
        rows = hashed.with_row_index(POSITION).clear()
    counts = dict(rows.group_by(REASON).len().collect(engine="streaming").iter_rows())
    counts.pop(None, None)
    duplicates = _find_duplicates(rows, identity, passes=-(-read // rows_in_memory))
    counts[Reason.DUPLICATE.value] = len(duplicates)
    summary = TableSummary(table="interactions", read=read, dropped=by_reason(counts))
    return StagedInteractions(rows=rows, duplicates=duplicates, summary=summary)


def _identity_hash(identity: list[str]) -> pl.Expr:
    """32 bits that are equal for equal rows; half the width sorts twice as fast."""
    mixed = pl.lit(0, dtype=pl.UInt64)
    for seed, column in enumerate(identity):
        # One seed a column, so that equal values in two columns don't cancel.
        mixed ^= pl.col(column).hash(seed=seed)
    return (mixed % 2**32).cast(pl.UInt32)


def _spill(held: list[pl.DataFrame], file: Path) -> Path:
    # lz4 costs a third of zstd's time; the file lives for seconds.
    pl.concat(held).write_parquet(file, compression="lz4")
    return file


def _find_duplicates(rows: pl.LazyFrame, identity: list[str], passes: int) -> pl.Series:
    """Positions of the good rows that repeat an earlier good row, ascending.

    Equal rows have equal hashes, so each pass takes one residue of the hash: rows whose hash
    occurs once are done, the few others are compared value by value.
    """
    found = []
    for residue in range(passes):
        part = rows.filter(pl.col(_HASH) % passes == residue) if passes > 1 else rows
        hashes = part.select(_HASH).collect(engine="streaming").to_series().sort()
        repeated = hashes.filter(hashes == hashes.shift()).unique()
        if repeated.is_empty():
            continue
        good = part.filter(pl.col(REASON).is_null())
        suspects = good.join(pl.LazyFrame({_HASH: repeated}), on=_HASH, how="semi")
        ordered = suspects.select(POSITION, *identity).collect(engine="streaming").sort(POSITION)
        found.append(ordered.filter(~pl.struct(identity).is_first_distinct())[POSITION])
    if not found:
        return pl.Series(POSITION, [], dtype=pl.get_index_type())
    return pl.concat(found).sort()

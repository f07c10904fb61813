"""Interactions in the order in which everything downstream reads them: by user, then by time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from crossrec_model.data.staging import POSITION, ROWS_IN_MEMORY

_PART: Final = "part"


def write_ordered(
    frame: pl.LazyFrame, file: Path, *, scratch: Path, rows_in_memory: int = ROWS_IN_MEMORY
) -> pl.Series:
    """Write interactions sorted by user_id, time and source order, and return the users.

    More rows than `rows_in_memory` are dealt by ranges of users into files under `scratch`, each
    sorted by itself. One user's rows always stay together and must fit in memory.

    Args:
        frame: clean interactions with `position`, which is not written.
        file: Parquet file, overwritten.
        scratch: a folder for temporary files.
        rows_in_memory: the target size of one range, at least 1.

    Returns:
        Distinct user ids, ascending.
    """
    counts = frame.group_by("user_id").len().collect(engine="streaming").sort("user_id")
    dealt = (counts["len"].cast(pl.Int64).cum_sum() - 1) // rows_in_memory
    users = counts["user_id"]
    parts = dealt.unique().sort().to_list()
    if len(parts) <= 1:
        _sorted(frame, users).write_parquet(file, compression="lz4")
        return users
    ranges = pl.LazyFrame({"user_id": users, _PART: dealt})
    target = pl.PartitionBy(scratch / "ranges", key=_PART, include_key=False)
    frame.join(ranges, on="user_id", how="left").sink_parquet(
        target, compression="lz4", mkdir=True, engine="streaming"
    )
    ordered = [scratch / f"sorted-{part:06}.parquet" for part in parts]
    for part, path in zip(parts, ordered, strict=True):
        rows = pl.scan_parquet(scratch / "ranges" / f"{_PART}={part}")
        _sorted(rows, users.filter(dealt == part)).write_parquet(path, compression="lz4")
    pl.scan_parquet(ordered).sink_parquet(
        file, compression="lz4", maintain_order=True, engine="streaming"
    )
    return users


def _sorted(frame: pl.LazyFrame, users: pl.Series) -> pl.DataFrame:
    """Rows by user, time and position.

    One 128-bit key sorts three times as fast as three columns do, and one chunk a column gathers
    seven times as fast as the many that a stream leaves behind.
    """
    # An Enum over the sorted users is their rank.
    rank = pl.col("user_id").cast(pl.Enum(users)).to_physical()
    rows = frame.with_columns(rank.alias("user_id")).collect(engine="streaming").rechunk()
    time = pl.col("time").to_physical().cast(pl.Int128)
    key = pl.col("user_id").cast(pl.Int128) * 2**88 + (time + 2**55) * 2**32 + pl.col(POSITION)
    order = rows.select(key.arg_sort()).to_series()
    ordered = rows.drop(POSITION)[order]
    return ordered.with_columns(users.gather(ordered["user_id"]).alias("user_id"))

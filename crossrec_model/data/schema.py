"""The canonical tables that every adapter delivers and everything downstream reads."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import polars as pl


class Event(StrEnum):
    """What a user did with an item."""

    VIEW = "view"
    FAVOURITE = "favourite"
    CART = "cart"
    PURCHASE = "purchase"


TIME: Final = pl.Datetime("us", "UTC")

#: One row is one event. Optional columns are null where a platform has none.
INTERACTIONS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "user_id": pl.String,
    "item_id": pl.String,
    "event": pl.Enum([event.value for event in Event]),
    "time": TIME,
    "quantity": pl.Float64,
    "price": pl.Float64,
    "shop_id": pl.String,
}
REQUIRED_INTERACTIONS: Final = ("user_id", "item_id", "event", "time")

#: `shared_id` is a code that other platforms use too (GTIN, ASIN); `category` runs root first.
CATALOGUE: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "item_id": pl.String,
    "shared_id": pl.String,
    "title": pl.String,
    "category": pl.List(pl.String),
    "brand": pl.String,
    "shop_id": pl.String,
    "price": pl.Float64,
    "vector_text": pl.List(pl.Float32),
    "vector_image": pl.List(pl.Float32),
    "vector_audio": pl.List(pl.Float32),
}
REQUIRED_CATALOGUE: Final = ("item_id",)

#: `consent_to_link` is false where a platform does not say otherwise.
USERS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "user_id": pl.String,
    "consent_to_link": pl.Boolean,
}
REQUIRED_USERS: Final = ("user_id",)

#: Further columns, as text: `context_device`, `context_region`, … in interactions,
#: `attribute_…` in users.
CONTEXT_PREFIX: Final = "context_"
ATTRIBUTE_PREFIX: Final = "attribute_"

#: What a source adds to each row, so that a quarantined row can be found again.
SOURCE_FILE: Final = "source_file"
#: Number of the record in its file, from 1; a CSV header is not a record.
SOURCE_ROW: Final = "source_row"
#: Optional Boolean: the source itself could not read the row.
SOURCE_FAULT: Final = "source_fault"
#: Optional: the text that `time` was parsed from; tells an unreadable time from a missing one.
SOURCE_TIME: Final = "source_time"

VECTORS: Final = ("vector_text", "vector_image", "vector_audio")
#: Two interactions that agree in all of these are one event delivered twice.
IDENTITY: Final = ("user_id", "item_id", "event", "time", "quantity", "price", "shop_id")


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

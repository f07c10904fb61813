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

#: `shared_id` is a code that other platforms use too (GTIN, ASIN); `category` is a path, root first.
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

#: Further columns: `context_device`, `context_region`, … (interactions), `attribute_…` (users); strings.
CONTEXT_PREFIX: Final = "context_"
ATTRIBUTE_PREFIX: Final = "attribute_"

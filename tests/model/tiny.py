"""A platform of four users that a test writes down, in the form that sampling reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import polars as pl

from crossrec_model.config import ModelConfig
from crossrec_model.data.histories import Histories, read_histories
from crossrec_model.data.items import ItemTable, item_table
from crossrec_model.data.schema import CATALOGUE, INTERACTIONS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MODEL = ModelConfig(buckets=64, dimension=4, neighbours=2, sketch_width=32, tower=(8, 4, 1))


@dataclass(frozen=True)
class Row:
    """One event; `day` counts from 1970."""

    user: str
    item: str
    day: float
    event: str = "purchase"
    quantity: float | None = 1.0
    price: float | None = 2.0
    more: dict[str, str] = field(default_factory=dict)


def interactions(rows: Iterable[Row]) -> pl.LazyFrame:
    found = [
        {
            "user_id": r.user,
            "item_id": r.item,
            "event": r.event,
            "time": EPOCH + timedelta(days=r.day),
            "quantity": r.quantity,
            "price": r.price,
            "shop_id": None,
            **r.more,
        }
        for r in rows
    ]
    more = {key: pl.String for row in found for key in row if key not in INTERACTIONS}
    return pl.DataFrame(found, schema={**INTERACTIONS, **more}).lazy()


def catalogue(rows: Iterable[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame([dict.fromkeys(CATALOGUE) | row for row in rows], schema=CATALOGUE)


def items(count: int, model: ModelConfig = MODEL) -> ItemTable:
    names = [{"item_id": f"i{n}", "shared_id": f"g{n}"} for n in range(count)]
    return item_table(catalogue(names), model)


def histories(rows: Iterable[Row], table: ItemTable, buckets: int = MODEL.buckets) -> Histories:
    return read_histories(interactions(rows), table, buckets)

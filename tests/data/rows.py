"""A source of rows that a test writes down."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

NOW = datetime(2024, 6, 1, tzinfo=UTC)
MARCH = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)


def interaction(**changes: Any) -> dict[str, Any]:
    good = {"user_id": "u1", "item_id": "i1", "event": "view", "time": MARCH}
    return good | {"quantity": 1.0, "price": 2.5, "shop_id": "s1"} | changes


def items(*names: str) -> list[dict[str, Any]]:
    return [{"item_id": name} for name in names]


def frame(
    rows: list[dict[str, Any]], file: str, types: dict[str, Any] | None = None
) -> pl.LazyFrame:
    numbered = [
        {"source_file": file, "source_row": number} | row for number, row in enumerate(rows, 1)
    ]
    defaults = {
        "source_file": pl.String,
        "source_row": pl.Int64,
        "time": pl.Datetime("us", "UTC"),
        **dict.fromkeys(("user_id", "item_id", "event", "shop_id"), pl.String),
    }
    names = list(numbered[0]) if numbered else ["source_file", "source_row", *(types or {})]
    overrides = {n: t for n, t in (defaults | (types or {})).items() if n in names}
    table = pl.DataFrame(numbered, schema=names, schema_overrides=overrides, orient="row")
    return table.lazy()


@dataclass
class Rows:
    events: pl.LazyFrame
    products: pl.LazyFrame
    people: pl.LazyFrame | None = None
    name: str = "rows"

    def interactions(self) -> pl.LazyFrame:
        return self.events

    def catalogue(self) -> pl.LazyFrame:
        return self.products

    def users(self) -> pl.LazyFrame | None:
        return self.people


def source(
    rows: list[dict[str, Any]],
    products: list[dict[str, Any]] | None = None,
    people: list[dict[str, Any]] | None = None,
    types: dict[str, Any] | None = None,
) -> Rows:
    return Rows(
        events=frame(rows, "events", types),
        products=frame(items("i1", "i2") if products is None else products, "products"),
        people=None if people is None else frame(people, "people"),
    )

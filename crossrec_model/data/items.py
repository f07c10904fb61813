"""The platform's items as the network reads them: hashed content, content graph, shared identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from crossrec_model.config import ModelConfig
from crossrec_model.data.features import (
    bucket,
    category_tokens,
    price_token,
    sample_grams,
    title_grams,
)
from crossrec_model.data.schema import VECTORS
from crossrec_model.errors import DataError

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]

CATEGORY_DEPTH: Final = 4
#: Rows of the shared popularity sketch (count-min, Cormode & Muthukrishnan 2005).
SKETCH_ROWS: Final = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemTable:
    """All items of one platform; an item is its row number everywhere downstream.

    `buckets` int64 [items, F] hashed content, 0 = padding; `neighbours` int64 [items, R, K] per
    relation of the plan, -1 = none; `sketch` int64 [items, SKETCH_ROWS] cells of the popularity sketch,
    -1 for an item without a shared id; `vectors` float32 [items, V] given text / image / audio vectors.
    """

    item_ids: tuple[str, ...]
    index: dict[str, int]
    buckets: Int
    neighbours: Int
    sketch: Int
    vectors: Float
    catalogue: pl.DataFrame

    def __len__(self) -> int:
        return len(self.item_ids)


def item_table(
    catalogue: pl.DataFrame, model: ModelConfig, *, private_ids: bool = False
) -> ItemTable:
    """Read a canonical catalogue.

    With `private_ids`, an item without a shared id gets a row of its own from its platform-only id:
    only for a model that never leaves the platform.

    Raises:
        DataError: if given vectors don't have the plan's `vector_size`.
    """
    columns = catalogue.select(
        *(
            pl.col(name) if name in catalogue.columns else pl.lit(None).alias(name)
            for name in ("item_id", "shared_id", "title", "category", "brand", "shop_id", "price")
        )
    )
    rows = [_tokens(row, model, private_ids=private_ids) for row in columns.iter_rows()]
    item_ids = tuple(columns["item_id"].to_list())
    return ItemTable(
        item_ids=item_ids,
        index={item: row for row, item in enumerate(item_ids)},
        buckets=_padded(rows, model.buckets),
        neighbours=_content_graph(columns, model),
        sketch=_sketch_cells(columns["shared_id"].to_list(), model.sketch_width),
        vectors=_given_vectors(catalogue, model.vector_size),
        catalogue=catalogue,
    )


def _tokens(row: tuple[object, ...], model: ModelConfig, *, private_ids: bool) -> list[str]:
    item, shared, title, category, brand, shop, price = row
    tokens: list[str] = []
    if shared is not None:
        # Two rows an id: a collision in one is told apart by the other (Svenstrup et al. 2017).
        tokens += [f"id0|{shared}", f"id1|{shared}"]
    elif private_ids:
        tokens += [f"own0|{item}", f"own1|{item}"]
    tokens += category_tokens(category, CATEGORY_DEPTH)  # type: ignore[arg-type]
    tokens += [
        f"{name}|{str(value).casefold()}"
        for name, value in (("brand", brand), ("shop", shop))
        if value
    ]
    if (token := price_token(price)) is not None:  # type: ignore[arg-type]
        tokens.append(token)
    if title:
        tokens += [
            f"title|{gram}" for gram in sample_grams(title_grams(str(title)), model.title_grams)
        ]
    return tokens


def _padded(rows: list[list[str]], buckets: int) -> Int:
    """Token lists → int64 [items, longest list], each distinct token hashed once."""
    known = {token: bucket(token, buckets) for token in {t for row in rows for t in row}}
    table = np.zeros((len(rows), max(1, max(map(len, rows), default=1))), dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = [known[token] for token in row]
    return table


def _sketch_cells(shared_ids: list[str | None], width: int) -> Int:
    cells = np.full((len(shared_ids), SKETCH_ROWS), -1, dtype=np.int64)
    for number, shared in enumerate(shared_ids):
        if shared is not None:
            cells[number] = [
                r * width + bucket(f"sketch{r}|{shared}", width + 1) - 1 for r in range(SKETCH_ROWS)
            ]
    return cells


def _given_vectors(catalogue: pl.DataFrame, size: int) -> Float:
    """Text, image and audio vectors side by side, float32 [items, size]; absent ones are zero."""
    columns = [
        name for name in VECTORS if name in catalogue.columns and catalogue[name].count() > 0
    ]
    if size == 0 or not columns:
        return np.zeros((catalogue.height, size), dtype=np.float32)
    widths = {name: int(catalogue[name].list.len().max() or 0) for name in columns}  # type: ignore[arg-type]
    if sum(widths.values()) != size:
        raise DataError(
            f"the catalogue's vectors have {sum(widths.values())} numbers an item, the plan's "
            f"model.vector_size is {size}; deliver vectors of that size or none"
        )
    parts = []
    for name in columns:
        part = np.zeros((catalogue.height, widths[name]), dtype=np.float32)
        for row, values in enumerate(catalogue[name].to_list()):
            if values is not None and len(values) == widths[name]:
                part[row] = values
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _content_graph(columns: pl.DataFrame, model: ModelConfig) -> Int:
    """Neighbours that the catalogue alone implies: no user's row enters it, so it may be shared."""
    keys = {
        "category": columns["category"]
        .cast(pl.List(pl.String))
        .list.join(">", ignore_nulls=True)
        .str.to_lowercase(),
        "brand": columns["brand"].cast(pl.String).str.to_lowercase(),
        "shop": columns["shop_id"].cast(pl.String).str.to_lowercase(),
    }
    shape = (columns.height, len(model.relations), model.neighbours)
    graph = np.full(shape, -1, dtype=np.int64)
    for number, relation in enumerate(model.relations):
        if relation in keys:
            graph[:, number] = _ring(columns["item_id"], keys[relation], model.neighbours)
    return graph


def _ring(item_ids: pl.Series, keys: pl.Series, count: int) -> Int:
    """Members of a group sit on a ring in hash order; each has the next `count` as neighbours."""
    frame = pl.DataFrame({"item": item_ids, "key": keys.cast(pl.String)}).with_row_index("row")
    frame = frame.filter(pl.col("key").is_not_null() & (pl.col("key") != ""))
    order = [bucket(f"ring|{item}", 2**62) for item in frame["item"]]
    frame = frame.with_columns(pl.Series("order", order)).sort("key", "order", "row")
    frame = frame.with_columns(size=pl.len().over("key"), rank=pl.int_range(pl.len()).over("key"))
    rows, size, rank = (frame[name].to_numpy().astype(np.int64) for name in ("row", "size", "rank"))
    start = np.arange(len(rows)) - rank
    table = np.full((len(item_ids), count), -1, dtype=np.int64)
    for step in range(1, count + 1):
        has = size > step
        table[rows[has], step - 1] = rows[(start + (rank + step) % np.maximum(size, 1))[has]]
    return table

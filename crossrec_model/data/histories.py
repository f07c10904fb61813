"""Every user's events in time order, as flat arrays: the form that splits and sampling read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from crossrec_model.data.features import PADDING, bucket
from crossrec_model.data.items import ItemTable
from crossrec_model.data.schema import CONTEXT_PREFIX, Event

#: How much one event says about taste, by kind; a purchase is the unit.
EVENT_WEIGHT: Final = {Event.VIEW: 0.2, Event.FAVOURITE: 0.5, Event.CART: 0.7, Event.PURCHASE: 1.0}
#: Context that is hashed into a user's representation: her shop, device and region.
CONTEXT_COLUMNS: Final = ("shop_id", f"{CONTEXT_PREFIX}device", f"{CONTEXT_PREFIX}region")
_DAY_US: Final = 86_400 * 10**6
#: More is no price; without a bound, a product of two typing errors would be infinite.
_MOST_SPEND: Final = 1e12


@dataclass(frozen=True, kw_only=True, eq=False)
class Histories:
    """Events of all users; user u owns the rows offsets[u] to offsets[u + 1], oldest first.

    `item` int64 row of the ItemTable; `day` float64 days since 1970 UTC; `weight` float32, see
    EVENT_WEIGHT; `bought` bool; `spend` float32 in the platform's currency, 0 where unknown and at most
    10^12; `context` int64 [events, 3] hashed, 0 = none.
    """

    user_ids: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    day: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float32]
    bought: npt.NDArray[np.bool_]
    spend: npt.NDArray[np.float32]
    context: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)

    def user_of_event(self) -> npt.NDArray[np.int64]:
        """The user's number for each event, int64 [events]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def between(self, start: float, end: float) -> Histories:
        """The same users with only the events of start ≤ day < end (a user may end up empty)."""
        keep = (self.day >= start) & (self.day < end)
        counts = np.bincount(self.user_of_event()[keep], minlength=len(self))
        return Histories(
            user_ids=self.user_ids,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            item=self.item[keep],
            day=self.day[keep],
            weight=self.weight[keep],
            bought=self.bought[keep],
            spend=self.spend[keep],
            context=self.context[keep],
        )

    def before(self, day: float) -> Histories:
        """The same users with only the events before `day`."""
        return self.between(-np.inf, day)


def read_histories(interactions: pl.LazyFrame, items: ItemTable, buckets: int) -> Histories:
    """Flatten a cleaned interaction table; context is hashed into `buckets` rows."""
    names = interactions.collect_schema().names()
    wanted = ["user_id", "item_id", "event", "time", "quantity", "price"]
    optional = [name for name in CONTEXT_COLUMNS if name in names]
    frame = (
        interactions.select(*wanted, *optional)
        .with_columns(pl.col("event").cast(pl.String))
        .sort("user_id", "time", "item_id", maintain_order=True)
        .collect()
    )
    ids = pl.DataFrame({"item_id": list(items.item_ids)}).with_row_index("item_row")
    frame = frame.join(ids, on="item_id", how="inner", maintain_order="left")
    users = frame["user_id"].unique(maintain_order=True)
    counts = frame.group_by("user_id", maintain_order=True).len()["len"].to_numpy()
    spend = (frame["quantity"].fill_null(1.0) * frame["price"].fill_null(0.0)).clip(0, _MOST_SPEND)
    events = frame["event"]
    weight = events.replace_strict({e.value: w for e, w in EVENT_WEIGHT.items()})
    return Histories(
        user_ids=tuple(users.to_list()),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        item=frame["item_row"].to_numpy().astype(np.int64),
        day=frame["time"].dt.epoch("us").to_numpy().astype(np.float64) / _DAY_US,
        weight=weight.to_numpy().astype(np.float32),
        bought=(events == Event.PURCHASE.value).to_numpy(),
        spend=spend.to_numpy().astype(np.float32),
        context=_context_codes(frame, buckets),
    )


def _context_codes(frame: pl.DataFrame, buckets: int) -> npt.NDArray[np.int64]:
    codes = np.full((frame.height, len(CONTEXT_COLUMNS)), PADDING, dtype=np.int64)
    for number, name in enumerate(CONTEXT_COLUMNS):
        if name in frame.columns:
            values = frame[name].cast(pl.String)
            table = {
                v: bucket(f"user {name}|{v}", buckets) for v in values.unique() if v is not None
            }
            codes[:, number] = (
                values.replace_strict(table, default=PADDING).fill_null(PADDING).to_numpy()
            )
    return codes

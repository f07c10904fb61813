"""One user's past at the moment of a request: her prepared events and those recorded since."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from clients.serving.events import RecordedEvent
from crossrec_model.data.features import PADDING, bucket
from crossrec_model.data.histories import CONTEXT_COLUMNS, EVENT_WEIGHT, Histories
from crossrec_model.data.schema import Event
from crossrec_model.data.users import HistoryIndex

Int = npt.NDArray[np.int64]

_DAY_US: Final = 86_400 * 10**6
#: As `data.splits`: a user's last event belongs to her past.
_AFTER: Final = 1e-6
_MOST_SPEND: Final = 1e12


@dataclass(frozen=True, kw_only=True, eq=False)
class Past:
    """One user's events before `day`, as histories of her alone."""

    histories: Histories
    day: float

    @cached_property
    def index(self) -> HistoryIndex:
        """Running totals over her events."""
        return HistoryIndex(self.histories)

    @cached_property
    def items(self) -> Int:
        """Distinct items that she had, ascending."""
        return np.unique(self.histories.item)

    def without(self, items: Collection[int]) -> Past:
        """The same user at the same moment as if she never had these items."""
        keep = ~np.isin(self.histories.item, list(items))
        return Past(
            histories=_picked(self.histories, keep, self.histories.user_ids[0]), day=self.day
        )


def past_of(
    histories: Histories,
    row: int | None,
    recorded: Sequence[RecordedEvent],
    *,
    user: str,
    items: Mapping[str, int],
    buckets: int,
    day: float,
) -> Past:
    """What is known of a user: her row of the prepared histories, if any, and what was recorded.

    Recorded events that the prepared ones hold already, or of items that are gone, don't count. Her
    moment is `day`, or just after her last recorded event if that is later.
    """
    start, end = (0, 0) if row is None else histories.offsets[row : row + 2]
    mine = slice(int(start), int(end))
    one = _picked(histories, mine, user)
    fresh = [event for event in recorded if event.item_id in items]
    if not fresh:
        return Past(histories=one, day=day)
    more = _recorded(fresh, user, items, buckets)
    had = set(zip(one.item.tolist(), one.day.tolist(), one.weight.tolist(), strict=True))
    keys = zip(more.item.tolist(), more.day.tolist(), more.weight.tolist(), strict=True)
    more = _picked(more, np.array([key not in had for key in keys]), user)
    if len(more.day):
        day = max(day, float(more.day.max()) + _AFTER)
    return Past(histories=_joined(one, more, user), day=day)


def _recorded(
    events: Sequence[RecordedEvent], user: str, items: Mapping[str, int], buckets: int
) -> Histories:
    context = np.full((len(events), len(CONTEXT_COLUMNS)), PADDING, dtype=np.int64)
    for number, event in enumerate(events):
        if event.shop_id:
            context[number, 0] = bucket(f"user {CONTEXT_COLUMNS[0]}|{event.shop_id}", buckets)
    spend = [(1.0 if e.quantity is None else e.quantity) * (e.price or 0.0) for e in events]
    return Histories(
        user_ids=(user,),
        offsets=np.array([0, len(events)]),
        item=np.array([items[event.item_id] for event in events], dtype=np.int64),
        day=np.array([event.time_us for event in events], dtype=np.float64) / _DAY_US,
        weight=np.array([EVENT_WEIGHT[event.event] for event in events], dtype=np.float32),
        bought=np.array([event.event is Event.PURCHASE for event in events]),
        spend=np.clip(spend, 0, _MOST_SPEND).astype(np.float32),
        context=context,
    )


def _picked(histories: Histories, keep: slice | npt.NDArray[np.bool_], user: str) -> Histories:
    """Some events, all of them one user's."""
    item = histories.item[keep]
    return Histories(
        user_ids=(user,),
        offsets=np.array([0, len(item)]),
        item=item,
        day=histories.day[keep],
        weight=histories.weight[keep],
        bought=histories.bought[keep],
        spend=histories.spend[keep],
        context=histories.context[keep],
    )


def _joined(one: Histories, two: Histories, user: str) -> Histories:
    """Both in the order of `read_histories`: by time, then by item."""
    item, day = np.concatenate([one.item, two.item]), np.concatenate([one.day, two.day])
    order = np.lexsort((item, day))
    return Histories(
        user_ids=(user,),
        offsets=np.array([0, len(item)]),
        item=item[order],
        day=day[order],
        weight=np.concatenate([one.weight, two.weight])[order],
        bought=np.concatenate([one.bought, two.bought])[order],
        spend=np.concatenate([one.spend, two.spend])[order],
        context=np.concatenate([one.context, two.context])[order],
    )

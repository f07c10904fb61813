"""What a user's own history says about her, at any moment: counts, rhythm, spend, taste for the popular.

Everything about one user comes from her own events; nothing of another user enters. All numbers of all
users at their own cut-offs are read off running totals, so a block of users costs a few array look-ups.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from crossrec_model.data.histories import CONTEXT_COLUMNS, Histories

Int = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

#: Names of the numbers, in order; standardised with shared moments before the network reads them.
USER_NUMBERS: Final = (
    "events",
    "distinct_items",
    "events_28_days",
    "events_7_days",
    "days_since_last",
    "active_days_share",
    "spend_per_event",
    "item_popularity",
    "morning_share",
    "evening_share",
    "weekend_share",
    "purchase_share",
    "season_sin",
    "season_cos",
)
CONTEXT_SIZE: Final = len(CONTEXT_COLUMNS)
#: An event's spend counts up to this.
MOST_SPEND: Final = 1e9
_EMPTY_RECENCY_DAYS: Final = 365.0


class HistoryIndex:
    """Exact positions and running totals over `Histories`."""

    def __init__(self, histories: Histories) -> None:
        self.histories = histories
        self._days, ranks = np.unique(histories.day, return_inverse=True)
        self._user = histories.user_of_event()
        # (user, rank of the day) as one sorted integer: positions stay exact, unlike float keys.
        self._stride = len(self._days) + 1
        self._keys = self._user * self._stride + ranks
        hour = (histories.day % 1.0) * 24.0
        # 1970-01-01 was a Thursday: Saturday and Sunday are days 2 and 3 of that count.
        weekend = np.isin(np.floor(histories.day) % 7, (2, 3))
        self._totals = {
            "distinct": _running(self._first_of(histories.item)),
            "days": _running(self._first_of(np.floor(histories.day).astype(np.int64))),
            # One absurd price must not reach the totals of all users after it.
            "spend": _running(np.log1p(np.clip(np.nan_to_num(histories.spend), 0.0, MOST_SPEND))),
            "morning": _running((hour >= 5) & (hour < 12)),
            "evening": _running((hour >= 17) & (hour < 23)),
            "weekend": _running(weekend),
            "bought": _running(histories.bought),
        }

    def position(self, users: Int, days: Float64) -> Int:
        """Number of the first event of each user at or after her day; int64 [users]."""
        ranks = np.searchsorted(self._days, days, side="left")
        return np.searchsorted(self._keys, users * self._stride + ranks, side="left")

    def met(self, users: Int, start: Float64, end: Float64) -> npt.NDArray[np.bool_]:
        """Whether each of distinct users has an event with start ≤ day < end; one pass over all events."""
        first, last = (np.full(len(self.histories), -np.inf) for _ in range(2))
        first[users], last[users] = start, end
        day = self.histories.day
        within = (day >= first[self._user]) & (day < last[self._user])
        found = np.zeros(len(self.histories), dtype=bool)
        found[self._user[within]] = True
        return found[users]

    def events(self, users: Int, start: Float64, end: Float64) -> tuple[Int, Int]:
        """(place of the user in `users`, event number) of all events with start ≤ day < end."""
        first, last = self.position(users, start), self.position(users, end)
        counts = np.maximum(last - first, 0)
        place = np.repeat(np.arange(len(users)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return place, np.repeat(first, counts) + within

    def numbers(
        self, users: Int, days: Float64, item_popularity: Float64
    ) -> npt.NDArray[np.float32]:
        """USER_NUMBERS of each user before her day, raw, float32 [users, len(USER_NUMBERS)].

        `item_popularity` float64 [items] is a released (shared or own) log popularity.
        """
        first, last = self.histories.offsets[users], self.position(users, days)
        count = last - first
        share = np.maximum(count, 1)
        total = {name: sums[last] - sums[first] for name, sums in self._totals.items()}
        popularity = _running(item_popularity[self.histories.item])
        known = count > 0
        latest = self.histories.day[np.maximum(last - 1, 0)] if len(self.histories.day) else days
        earliest = (
            self.histories.day[np.minimum(first, len(self._keys) - 1)] if len(self._keys) else days
        )
        since = np.where(known, days - latest, _EMPTY_RECENCY_DAYS)
        span = np.where(known, np.maximum(days - earliest, 1.0), 1.0)
        season = 2 * np.pi * (days % 365.2425) / 365.2425
        return np.stack(
            [
                np.log1p(count),
                np.log1p(total["distinct"]),
                np.log1p(last - np.maximum(self.position(users, days - 28), first)),
                np.log1p(last - np.maximum(self.position(users, days - 7), first)),
                np.log1p(np.maximum(since, 0.0)),
                total["days"] / span,
                total["spend"] / share,
                (popularity[last] - popularity[first]) / share,
                total["morning"] / share,
                total["evening"] / share,
                total["weekend"] / share,
                total["bought"] / share,
                np.sin(season),
                np.cos(season),
            ],
            axis=1,
        ).astype(np.float32)

    def context(self, users: Int, days: Float64) -> Int:
        """Each user's latest shop, device and region codes before her day; int64 [users, 3]."""
        last = self.position(users, days)
        known = last > self.histories.offsets[users]
        codes = np.zeros((len(users), CONTEXT_SIZE), dtype=np.int64)
        codes[known] = self.histories.context[last[known] - 1]
        return codes

    def _first_of(self, values: Int) -> npt.NDArray[np.bool_]:
        """Marks the first event of each (user, value)."""
        order = np.lexsort((np.arange(len(values)), values, self._user))
        user, value = self._user[order], values[order]
        new = np.ones(len(values), dtype=bool)
        new[1:] = (user[1:] != user[:-1]) | (value[1:] != value[:-1])
        first = np.zeros(len(values), dtype=bool)
        first[order[new]] = True
        return first


def _running(values: npt.NDArray[np.generic]) -> Float64:
    return np.concatenate([[0.0], np.cumsum(values.astype(np.float64))])

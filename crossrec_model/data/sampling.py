"""Per-user training blocks: the unit of training is a user, never a row.

A block fixes a moment for each of its users. What she did before it is her input, what she took up
within the window after it, and had not had before, is what the model must foresee: the same task that
is served and tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crossrec_model.config import TrainingConfig
from crossrec_model.data.users import Float64, HistoryIndex, Int

#: Days after which the weight of a past event in the recent pool has fallen to 1/e.
RECENT_DAYS: Final = 30.0
#: Pool weights sum to this, however long the history: a block of training reads as many items as fit,
#: serving reads more, and both must look alike to the network.
POOL_GAIN: Final = 4.0
#: At inference a user's most recent items are all read, up to this multiple of the training block.
INFERENCE_FACTOR: Final = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class UserBlock:
    """Padded examples of B users; the user is the first dimension of everything.

    `history` int64 [B, H] items (0 where unused) with `weights` float32 [B, H, 2] (frequency, recency;
    0 where unused); `numbers` float32 [B, S] raw user numbers; `context` int64 [B, C];
    `positives` int64 [B, M] with `mask` float32 [B, M].
    """

    history: Tensor
    weights: Tensor
    numbers: Tensor
    context: Tensor
    positives: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taken:
    """Distinct (user, item) pairs of a block, with how often and how recently."""

    place: Int
    item: Int
    count: npt.NDArray[np.float32]
    age: npt.NDArray[np.float32]


class BlockSampler:
    """Draws blocks of one platform's users from its events before `end`.

    With `reach_days`, a user's block depends on her own events and on public settings only: her
    moment lies shortly before one of them, at most so far back. Without it, moments lie in the period
    that the platform's events cover.
    """

    def __init__(
        self,
        index: HistoryIndex,
        config: TrainingConfig,
        *,
        items: int,
        end: float,
        reach_days: float | None = None,
    ) -> None:
        self._index, self._config, self._items, self._end = index, config, items, end
        days, latest = index.histories.day, end - config.window_days
        self._reach = 0.0
        if reach_days is not None:
            self._reach = reach_days
        elif len(days):
            self._reach = 0.9 * max(latest - float(days.min()), 0.0)
        # Platforms that record purchases foresee purchases; others foresee whatever they record.
        self._purchases = bool(index.histories.bought.any())
        self._per_user = reach_days is not None

    def draw(
        self, users: Int, item_popularity: Float64, generator: np.random.Generator
    ) -> UserBlock:
        """A training block: a random moment per user, more often a recent one."""
        days = self._moments(users, generator)
        return self._drawn(users, days, item_popularity, generator)

    def draw_speaking(
        self, users: Int, item_popularity: Float64, generator: np.random.Generator
    ) -> tuple[Int, UserBlock]:
        """A training block of those among `users` who have a positive in it, and their places in `users`.

        The others' loss is 0: their histories need not be read.
        """
        days = self._moments(users, generator)
        some = np.flatnonzero(self._index.met(users, days, days + self._config.window_days))
        block = self._drawn(users[some], days[some], item_popularity, generator)
        speaking = block.mask.any(1)
        kept = UserBlock(**{name: tensor[speaking] for name, tensor in vars(block).items()})
        return some[speaking.numpy()], kept

    def _moments(self, users: Int, generator: np.random.Generator) -> Float64:
        """A moment of each user's."""
        latest = self._end - self._config.window_days
        if self._per_user:
            return self._before_an_event(users, latest, generator)
        back = generator.exponential(self._config.recency_days, len(users))
        days: Float64 = latest - np.minimum(back, self._reach)
        return days

    def _drawn(
        self, users: Int, days: Float64, item_popularity: Float64, generator: np.random.Generator
    ) -> UserBlock:
        """The training block of users at their moments."""
        config = self._config
        taken = self._taken(users, days)
        place, event = self._index.events(users, days, days + config.window_days)
        wanted = bought = self._index.histories.bought[event]
        if self._per_user:
            buys = np.bincount(place[bought], minlength=len(users)) > 0
            wanted = bought | ~buys[place]
        if self._per_user or self._purchases:
            place, event = place[wanted], event[wanted]
        target = np.unique(self._key(place, self._index.histories.item[event]))
        new = target[~np.isin(target, self._key(taken.place, taken.item))]
        positives, mask = self._fill(new, len(users), config.positives, generator.random(len(new)))
        order = generator.random(len(taken.item))
        return self._block(
            users, days, taken, order, config.history, item_popularity, positives, mask
        )

    def _before_an_event(
        self, users: Int, latest: float, generator: np.random.Generator
    ) -> Float64:
        """A moment at most a window before a random event of each user's, more often a recent one."""
        config, days = self._config, np.full(len(users), latest)
        place, event = self._index.events(users, days - self._reach, np.full(len(users), self._end))
        day = self._index.histories.day[event]
        # The first of exponential clocks, each running at the event's weight, in logarithms.
        clock = np.log(np.maximum(generator.exponential(size=len(event)), 1e-300))
        clock += (self._end - day) / config.recency_days
        chosen, _slot = _first_per_user(place, clock, 1)
        days[place[chosen]] = day[chosen] - config.window_days * generator.random(len(chosen))
        early: Float64 = np.minimum(days, latest)
        return early

    def at(self, users: Int, day: float, item_popularity: Float64) -> UserBlock:
        """An inference block: everything before `day`, most recent items first, no positives."""
        days = np.full(len(users), day)
        taken = self._taken(users, days)
        none = np.zeros((len(users), 0))
        size = INFERENCE_FACTOR * self._config.history
        return self._block(
            users, days, taken, taken.age, size, item_popularity, none.astype(np.int64), none
        )

    def _taken(self, users: Int, days: Float64) -> _Taken:
        histories = self._index.histories
        place, event = self._index.events(users, np.full(len(users), -np.inf), days)
        keys, inverse = np.unique(self._key(place, histories.item[event]), return_inverse=True)
        count = np.bincount(inverse, weights=histories.weight[event], minlength=len(keys))
        last = np.full(len(keys), -np.inf)
        np.maximum.at(last, inverse, histories.day[event])
        place, item = keys // self._items, keys % self._items
        return _Taken(
            place=place,
            item=item,
            count=count.astype(np.float32),
            age=(days[place] - last).astype(np.float32),
        )

    def _key(self, place: Int, item: Int) -> Int:
        return place * self._items + item

    def _fill(
        self, keys: Int, users: int, size: int, order: Float64
    ) -> tuple[Int, npt.NDArray[np.float64]]:
        """Keys → padded [users, size] of items and mask, at most `size` a user, lowest `order` first."""
        place, item = keys // self._items, keys % self._items
        chosen, slot = _first_per_user(place, order, size)
        table = np.zeros((users, size), dtype=np.int64)
        mask = np.zeros((users, size))
        table[place[chosen], slot] = item[chosen]
        mask[place[chosen], slot] = 1.0
        return table, mask

    def _block(
        self,
        users: Int,
        days: Float64,
        taken: _Taken,
        order: npt.NDArray[np.floating],
        size: int,
        item_popularity: Float64,
        positives: Int,
        mask: npt.NDArray[np.float64],
    ) -> UserBlock:
        chosen, slot = _first_per_user(taken.place, order, size)
        place = taken.place[chosen]
        longest = int(slot.max()) + 1 if len(slot) else 1
        history = np.zeros((len(users), longest), dtype=np.int64)
        weights = np.zeros((len(users), longest, 2), dtype=np.float32)
        history[place, slot] = taken.item[chosen]
        weights[place, slot, 0] = np.log1p(taken.count[chosen])
        # The floor keeps a user's pool alive when all of it is long ago.
        weights[place, slot, 1] = np.exp(-taken.age[chosen] / RECENT_DAYS) + 1e-3
        weights *= POOL_GAIN / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
        return UserBlock(
            history=torch.from_numpy(history),
            weights=torch.from_numpy(weights),
            numbers=torch.from_numpy(self._index.numbers(users, days, item_popularity)),
            context=torch.from_numpy(self._index.context(users, days)),
            positives=torch.from_numpy(positives),
            mask=torch.from_numpy(mask.astype(np.float32)),
        )


def _first_per_user(place: Int, order: npt.NDArray[np.floating], size: int) -> tuple[Int, Int]:
    """(chosen pairs, their slot) with at most `size` pairs a user, lowest `order` first."""
    by_user = np.lexsort((order, place))
    sorted_place = place[by_user]
    starts = (
        np.flatnonzero(np.r_[True, sorted_place[1:] != sorted_place[:-1]]) if len(place) else place
    )
    lengths = np.diff(np.r_[starts, len(place)])
    slot = np.arange(len(place)) - np.repeat(starts, lengths)
    keep = slot < size
    return by_user[keep], slot[keep]

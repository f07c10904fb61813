"""What the cohort knows in sum before it trains: item popularity and the moments of user numbers.

Each platform adds up its own users, the sums go through the same vector as updates, and only the
cohort's mean comes back. Popularity travels as a count-min sketch over hashed shared ids (Cormode &
Muthukrishnan 2005), so no platform's assortment is listed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from crossrec_model.data.histories import Histories
from crossrec_model.data.items import SKETCH_ROWS, ItemTable
from crossrec_model.data.users import USER_NUMBERS, Float64, HistoryIndex, Int

#: A user's word for an item fades to 1/e in this many days after she last took it.
POPULARITY_DAYS: Final = 30.0
#: Share of the popularity that is spread evenly over the catalogue, so that no item is impossible.
UNIFORM_SHARE: Final = 0.01
#: Mean and deviation of each user number where none may be measured: round figures for shops.
PUBLIC_MOMENTS: Final = (
    *((3.5, 1.5), (3.0, 1.5), (2.0, 1.5), (1.0, 1.0), (2.0, 1.5), (0.3, 0.3), (1.5, 1.0)),
    *((-8.0, 2.0), (0.3, 0.3), (0.3, 0.3), (0.3, 0.3), (0.8, 0.4), (0.0, 0.7), (0.0, 0.7)),
)
_LEAST_VARIANCE: Final = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """`sketch` float32 [SKETCH_ROWS · width], each row sums to 1; moments float32 [user numbers].

    `pairs` float32, the mean over platforms of what their users take together, see `pairs`; empty in
    a plan without them, zero before they are known.
    """

    sketch: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    square: npt.NDArray[np.float32]
    pairs: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def standardise(self, numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """User numbers [B, S] with the cohort's mean 0 and deviation 1, held within ±5."""
        variance = np.maximum(self.square - self.mean**2, _LEAST_VARIANCE)
        scaled = np.clip((numbers - self.mean) / np.sqrt(variance), -5.0, 5.0)
        return np.asarray(scaled, dtype=np.float32)


def public_moments() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and mean square of the user numbers as `PUBLIC_MOMENTS` has them, float32 [S] each."""
    mean, deviation = np.array(PUBLIC_MOMENTS, dtype=np.float32).T
    return mean, mean**2 + deviation**2


def item_counts(histories: Histories, items: int, day: float) -> Float64:
    """Recent takers of each item before `day`: Σ over users of exp(-age / POPULARITY_DAYS), [items]."""
    _users, taken, fade = user_popularity(histories, items, day)
    return np.bincount(taken, weights=fade, minlength=items).astype(np.float64)


def user_popularity(histories: Histories, items: int, day: float) -> tuple[Int, Int, Float64]:
    """Distinct (user, item) pairs before `day` with exp(-age / POPULARITY_DAYS) of the last: [n] each."""
    past = histories.before(day)
    pairs = past.user_of_event() * items + past.item
    distinct, inverse = np.unique(pairs, return_inverse=True)
    last = np.full(len(distinct), -np.inf)
    np.maximum.at(last, inverse, past.day)
    fade = np.exp(-(day - last) / POPULARITY_DAYS)
    return distinct // items, distinct % items, fade


def log_popularity(counts: Float64) -> Float64:
    """Counts → log q, q a distribution over the items with UNIFORM_SHARE spread evenly."""
    total, n = counts.sum(), len(counts)
    share = counts / total if total > 0 else np.full(n, 1.0 / n)
    return np.log((1 - UNIFORM_SHARE) * share + UNIFORM_SHARE / n)


def shared_log_popularity(statistics: Statistics, items: ItemTable) -> Float64:
    """Log q over the platform's items from the cohort's sketch; least without a shared id.

    Counts are never negative, so a sketch that holds negative cells was noised, by what they show:
    counts within the noise are drawn together, so that none stands out by chance.
    """
    cells = statistics.sketch[np.maximum(items.sketch, 0)].astype(np.float64)  # [items, rows]
    noise = statistics.sketch[statistics.sketch < 0].astype(np.float64)
    if len(noise):
        scale = np.sqrt(np.mean(noise**2) / SKETCH_ROWS)
        counts = scale * np.logaddexp(0.0, cells.mean(axis=1) / scale)
    else:
        counts = np.maximum(cells.min(axis=1), 0.0)
    return log_popularity(np.where(items.sketch[:, 0] >= 0, counts, 0.0))


def measure(index: HistoryIndex, items: ItemTable, day: float, width: int) -> Statistics:
    """One platform's own statistics of the events before `day`."""
    counts = item_counts(index.histories, len(items), day)
    shared = items.sketch[:, 0] >= 0
    sketch = np.zeros(SKETCH_ROWS * width, dtype=np.float64)
    for row in range(SKETCH_ROWS):
        np.add.at(sketch, items.sketch[shared, row], counts[shared])
    total = counts[shared].sum()
    if total > 0:
        sketch /= total
    users = active_users(index, day)
    numbers = index.numbers(users, np.full(len(users), day), log_popularity(counts))
    moments = numbers.astype(np.float64) if len(users) else np.zeros((1, len(USER_NUMBERS)))
    return Statistics(
        sketch=sketch.astype(np.float32),
        mean=moments.mean(axis=0).astype(np.float32),
        square=(moments**2).mean(axis=0).astype(np.float32),
    )


def active_users(index: HistoryIndex, day: float) -> npt.NDArray[np.int64]:
    """Numbers of the users with at least one event before `day`."""
    users = np.arange(len(index.histories))
    return users[index.position(users, np.full(len(users), day)) > index.histories.offsets[:-1]]

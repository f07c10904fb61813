"""Users' histories as sparse rows, plain and fading: what item graphs read."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from crossrec_model.data.users import HistoryIndex, Int

#: A visit counts so much of the one after it.
FADING = 0.5
#: Weights below are dropped: some seven visits are read.
LEAST_WEIGHT = 0.01


def history_rows(
    index: HistoryIndex, users: Int, day: float, items: int, *, fading: float = 1.0
) -> sp.csr_matrix:
    """Each user's distinct items before `day`, float32 csr [users, items].

    An item weighs `fading` to the number of the user's visits since she last took it; a visit is all
    that she did at one moment.
    """
    place, event = index.events(users, np.full(len(users), -np.inf), np.full(len(users), day))
    item, visits_left = (
        index.histories.item[event],
        _visits_after(place, index.histories.day[event]),
    )
    # Of several takings of an item the last is kept.
    keys = place * items + item
    order = np.lexsort((visits_left, keys))
    first = np.ones(len(order), dtype=bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    kept = order[first]
    weights = np.power(np.float32(fading), visits_left[kept].astype(np.float32))
    some = weights >= LEAST_WEIGHT
    shape = (len(users), items)
    return sp.csr_matrix((weights[some], (place[kept][some], item[kept][some])), shape=shape)


def visit_pairs(
    index: HistoryIndex, day: float, items: int, *, fading: float
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Faded histories before each visit but a user's first, and the visits: csr [visits, items] each."""
    users = np.arange(len(index.histories))
    place, event = index.events(users, np.full(len(users), -np.inf), np.full(len(users), day))
    item, number, starts = index.histories.item[event], *_visits(place, index.histories.day[event])
    visits = int(number[-1]) + 1 if len(number) else 0
    ones = np.ones(len(item), dtype=np.float32)
    taken = sp.csr_matrix((ones, (number, item)), shape=(visits, items))
    taken.data[:] = 1.0
    before, shifted, weight = sp.csr_matrix(taken.shape, dtype=np.float32), taken, 1.0
    rows = np.arange(visits)
    back = 1
    while weight >= 10 * LEAST_WEIGHT:
        # Row v gets visit v - back, where that is the same user's.
        source = rows - back
        mine = source >= starts
        pick = sp.csr_matrix(
            (np.ones(mine.sum(), dtype=np.float32), (rows[mine], source[mine])),
            shape=(visits, visits),
        )
        before = before.maximum(weight * (pick @ taken))
        back, weight = back + 1, weight * fading
    later = rows > starts
    return before[later].tocsr(), shifted[later].tocsr()


def _visits(place: Int, day: np.ndarray) -> tuple[Int, Int]:
    """The running number of each event's visit, and for each visit that of its user's first."""
    if not len(place):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    new = np.ones(len(place), dtype=bool)
    new[1:] = (place[1:] != place[:-1]) | (day[1:] != day[:-1])
    number = np.cumsum(new) - 1
    owner = place[new]
    first = np.ones(len(owner), dtype=bool)
    first[1:] = owner[1:] != owner[:-1]
    starts = np.maximum.accumulate(np.where(first, np.arange(len(owner)), 0))
    return number, starts


def _visits_after(place: Int, day: np.ndarray) -> Int:
    """How many visits of the same user came after each event's."""
    number, starts = _visits(place, day)
    if not len(number):
        return number
    last = np.zeros(len(starts), dtype=np.int64)
    ends = np.append(np.flatnonzero(np.diff(starts)), len(starts) - 1)
    last[starts[ends]] = ends
    return last[starts[number]] - number

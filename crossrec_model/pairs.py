"""What users of all platforms take together: a sum over the most popular shared items.

A platform's part is Σ over its users of s_u · x_u x_uᵀ, x_u being which of the items user u took and s_u
what brings her pairs' norm, the number of her items, down to a bound. The items are cells of the popularity
sketch, the same for all platforms: nobody lists what it sells. The sum is all that closed-form models need
(`closed_form`), so it serves as the federation's item graph after one round.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from crossrec_model.data.histories import Histories
from crossrec_model.data.items import ItemTable
from crossrec_model.data.users import Int
from crossrec_model.statistics import Statistics

Wide = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


def pair_count(items: int) -> int:
    """How many numbers stand for the pairs of so many items, each with itself included."""
    return items * (items + 1) // 2


def popular_cells(statistics: Statistics, width: int, items: int) -> Int:
    """The `items` most popular cells of the sketch's first row, int64 [≤ items]; ties by number.

    Cells without popularity are left out, so there may be fewer.
    """
    row = statistics.sketch[:width]
    order = np.argsort(-row, kind="stable")[:items]
    popular: Int = order[row[order] > 0]
    return popular


def places(items: ItemTable, cells: Int, width: int) -> Int:
    """Each catalogue item's place among the popular cells, int64 [items], -1 = none."""
    table = np.full(width, -1, dtype=np.int64)
    table[cells] = np.arange(len(cells))
    first = items.sketch[:, 0]
    found: Int = np.where(first >= 0, table[np.maximum(first, 0)], -1)
    return found


def summed_pairs(histories: Histories, place: Int, day: float, items: int, norm: float) -> Wide:
    """Σ_u s_u · x_u x_uᵀ of what was taken before `day`, the upper triangle row by row, float64.

    `place` is where each catalogue item stands among `items`. Leaving out one user moves the result by
    at most `norm` in the Euclidean norm.
    """
    past = histories.before(day)
    where = place[past.item]
    user, where = past.user_of_event()[where >= 0], where[where >= 0]
    taken = sp.csr_matrix(
        (np.ones(len(where)), (user, where)), shape=(len(histories), items), dtype=np.float64
    )
    taken.data[:] = 1.0
    size = np.diff(taken.indptr)
    scaled = sp.diags_array(np.minimum(1.0, norm / np.maximum(size, 1))) @ taken
    gram = (taken.T @ scaled).toarray()
    total: Wide = gram[np.triu_indices(items)]
    return total


def as_matrix(pairs: Floats, items: int) -> Floats:
    """The symmetric matrix float32 [items, items] of an upper triangle."""
    matrix = np.zeros((items, items), dtype=np.float32)
    matrix[np.triu_indices(items)] = pairs
    matrix += np.triu(matrix, 1).T
    return matrix

"""What a history says about every item by closed-form weights: the platform's own, and the federation's.

A weight is an edge of the item graph, and a score the one step of graph convolution over it that has a
closed-form optimum: Σ_k w_kj over the items k of a history, for item j (`closed_form`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from crossrec_model.closed_form import blocks, gram_of, item_weights, ordered_weights
from crossrec_model.data.histories import Histories
from crossrec_model.data.users import HistoryIndex, Int
from crossrec_model.errors import DataError
from crossrec_model.history_rows import history_rows, visit_pairs

Float = npt.NDArray[np.float32]

#: Pulls weights towards 0, in users (chosen on validation users of three data sets, see docs/quality.md).
RIDGE: Final = 150.0
RIDGE_OF_ORDER: Final = 50.0
#: Edges kept into each item, the strongest.
EDGES: Final = 200
#: With more items a visit on average, their order says nothing that being taken together does not.
MOST_A_VISIT: Final = 2.0
#: A noised matrix may not be positive definite until so much is added.
_MOST_RIDGE: Final = 1e9
#: Scores are read as logarithms: of what is near 0 anyway, and of what is clearly above.
_NEAR: Final = 0.01
_WIDE: Final = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemGraph:
    """Edge weights float32 csr [items, candidates] from an item that was taken to one that is ranked."""

    weights: sp.csr_matrix

    def evidence(self, plain: sp.csr_matrix, latest: sp.csr_matrix, name: str) -> dict[str, Float]:
        """Named scores [users, candidates] of history rows [users, items], plain and fading."""
        sums = _dense(plain, self.weights)
        return {
            name: _log(sums, _NEAR),
            f"{name}, wide": _log(sums, _WIDE),
            f"{name}, latest": _log(_dense(latest, self.weights), _NEAR),
        }


def own_graph(taken: sp.csr_matrix, candidates: Int) -> ItemGraph:
    """Weights from one platform's users alone; `taken` binary csr [users, items]."""
    return _graph(gram_of(taken[:, candidates].tocsr()), candidates, taken.shape[1])


def shared_graph(
    taken: sp.csr_matrix,
    candidates: Int,
    *,
    place: Int,
    pairs: Float,
    platforms: int,
    norm: float,
) -> ItemGraph:
    """Weights from the users of all platforms where the items are shared, from own ones elsewhere.

    Args:
        taken: binary csr [users, items] of this platform.
        candidates: the items that are ranked.
        place: each item's place in `pairs`, -1 = none.
        pairs: the mean over platforms, float32 [n, n], in users.
        platforms: how many platforms the mean is of, at least.
        norm: the bound on one user's pairs, which own ones get too.
    """
    size = np.asarray((taken[:, place >= 0] > 0).sum(axis=1)).ravel()
    scale = np.sqrt(np.minimum(1.0, norm / np.maximum(size, 1))).astype(np.float32)
    gram = gram_of((sp.diags_array(scale) @ taken[:, candidates]).tocsr())
    known = np.flatnonzero(place[candidates] >= 0)
    there = place[candidates][known]
    shared = pairs[np.ix_(there, there)]
    # Items that no other platform has show how many platforms the mean is of.
    own, mean = np.diag(gram)[known], np.diag(shared)
    often = (own >= 5) & (mean > 0)
    several = float(np.max(own[often] / mean[often], initial=float(platforms)))
    gram[np.ix_(known, known)] = shared * np.float32(min(several, 100.0))
    return _graph(gram, candidates, taken.shape[1])


def order_graph(index: HistoryIndex, day: float, candidates: Int, items: int) -> ItemGraph | None:
    """Weights towards what comes next; None where visits have several items, or nobody came twice."""
    before, after = visit_pairs(index, day, items, fading=0.7)
    if after.shape[0] == 0 or after.nnz > MOST_A_VISIT * after.shape[0]:
        return None
    weights = ordered_weights(
        before[:, candidates].tocsr(), after[:, candidates].tocsr(), RIDGE_OF_ORDER
    )
    return ItemGraph(weights=_sparse(weights, candidates, items))


def order_evidence(graph: ItemGraph, latest: sp.csr_matrix) -> dict[str, Float]:
    """The score of an order graph for fading history rows."""
    return {"own order": _log(_dense(latest, graph.weights), _NEAR)}


def rows_of(
    index: HistoryIndex, users: Int, day: float, items: int
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Plain and fading history rows of users before `day`, csr [users, items] each."""
    plain = history_rows(index, users, day, items)
    return plain, history_rows(index, users, day, items, fading=0.5)


def binary_rows(histories: Histories, items: int, day: float) -> sp.csr_matrix:
    """Which items each user took before `day`, float32 csr [users, items]."""
    past = histories.before(day)
    ones = np.ones(len(past.item), dtype=np.float32)
    shape = (len(histories), items)
    taken = sp.csr_matrix((ones, (past.user_of_event(), past.item)), shape=shape)
    taken.data[:] = 1.0
    return taken


def _graph(gram: Float, candidates: Int, items: int) -> ItemGraph:
    """Solve, with more of the ridge where noise has left the matrix indefinite."""
    ridge = RIDGE
    while True:
        try:
            weights = item_weights(gram.copy(), ridge)
        except DataError:
            ridge *= 4
            if ridge > _MOST_RIDGE:
                raise
            continue
        return ItemGraph(weights=_sparse(weights, candidates, items))


def _sparse(weights: Float, candidates: Int, items: int) -> sp.csr_matrix:
    """The strongest positive weights into each candidate, over the rows of all items."""
    columns = []
    for part in blocks(weights.shape[1]):
        block = weights[:, part]
        if len(block) > EDGES:
            least = np.partition(block, -EDGES, axis=0)[-EDGES]
            block = np.where(block >= least, block, 0)
        columns.append(sp.csc_matrix(np.maximum(block, 0)))
    kept = sp.hstack(columns, format="coo")
    shape = (items, len(candidates))
    return sp.csr_matrix((kept.data, (candidates[kept.row], kept.col)), shape=shape)


def _dense(rows: sp.csr_matrix, weights: sp.csr_matrix) -> Float:
    product: Float = (rows @ weights).toarray()
    return product


def _log(sums: Float, floor: float) -> Float:
    score: Float = np.log(np.maximum(sums, 0) + np.float32(floor))
    return score

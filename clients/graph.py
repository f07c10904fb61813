"""The platform's own item graph: what its users take together. It never leaves the platform."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from crossrec_model.data.histories import Histories

#: Shrinkage of the cosine towards 0 for rarely taken items (Bell & Koren 2007).
SHRINK: Final = 10.0
NEIGHBOURS: Final = 200
LEAST_USERS: Final = 5
_CHUNK: Final = 512


def user_items(histories: Histories, items: int, day: float) -> sp.csr_matrix:
    """Who had what before `day`: number of takings, float32 csr [users, items]."""
    past = histories.before(day)
    ones = np.ones(len(past.item), dtype=np.float32)
    shape = (len(histories), items)
    return sp.csr_matrix((ones, (past.user_of_event(), past.item)), shape=shape)


def bought_together(taken: sp.csr_matrix, neighbours: int = NEIGHBOURS) -> sp.csr_matrix:
    """Shrunk cosine between items, the best `neighbours` of each row; float32 csr [items, items]."""
    binary = taken.copy()
    binary.data = np.ones_like(binary.data)
    users = np.asarray(binary.sum(axis=0)).ravel()
    kept = np.flatnonzero(users >= LEAST_USERS)
    part = binary[:, kept].tocsc()
    norm = np.sqrt(users[kept])
    rows, columns, values = [], [], []
    for start in range(0, len(kept), _CHUNK):
        block = (part[:, start : start + _CHUNK].T @ part).toarray()  # [chunk, kept]
        block /= norm[start : start + _CHUNK, None] * norm[None] + SHRINK
        block[np.arange(len(block)), start + np.arange(len(block))] = 0.0
        best = _top(block, neighbours)
        place = np.repeat(np.arange(len(block)), best.shape[1])
        value = block[place, best.ravel()]
        some = value > 0
        rows.append(kept[start + place[some]])
        columns.append(kept[best.ravel()[some]])
        values.append(value[some])
    shape = (taken.shape[1], taken.shape[1])
    if not rows:
        return sp.csr_matrix(shape, dtype=np.float32)
    index = (np.concatenate(rows), np.concatenate(columns))
    return sp.csr_matrix((np.concatenate(values).astype(np.float32), index), shape=shape)


def nearest(graph: sp.csr_matrix, count: int) -> npt.NDArray[np.int64]:
    """The `count` strongest neighbours of each item, int64 [items, count], -1 = none."""
    table = np.full((graph.shape[0], count), -1, dtype=np.int64)
    for row in np.flatnonzero(np.diff(graph.indptr)):
        start, end = graph.indptr[row], graph.indptr[row + 1]
        order = np.argsort(-graph.data[start:end], kind="stable")[:count]
        table[row, : len(order)] = graph.indices[start:end][order]
    return table


def _top(block: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    if block.shape[1] <= count:
        return np.tile(np.arange(block.shape[1]), (len(block), 1))
    return np.argpartition(-block, count, axis=1)[:, :count]

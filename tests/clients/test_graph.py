"""The platform's own item graph against a dense loop."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from clients import graph
from clients.graph import LEAST_USERS, SHRINK, bought_together, nearest, user_items


def _taken(users: int = 60, items: int = 25, seed: int = 0) -> sp.csr_matrix:
    random = np.random.default_rng(seed)
    table = random.poisson(0.25, (users, items)).astype(np.float32)
    table[:, 0] = 0
    table[:, 1] = 0
    table[: LEAST_USERS - 1, 1] = 1
    return sp.csr_matrix(table)


def _dense(taken: sp.csr_matrix) -> np.ndarray:
    binary = (taken.toarray() > 0).astype(np.float64)
    users = binary.sum(axis=0)
    together = binary.T @ binary
    found = np.zeros_like(together)
    for i in range(len(users)):
        for j in range(len(users)):
            if i != j and min(users[i], users[j]) >= LEAST_USERS:
                found[i, j] = together[i, j] / (np.sqrt(users[i] * users[j]) + SHRINK)
    return found


@pytest.mark.parametrize("chunk", [512, 7])
def test_affinities_equal_a_dense_loop(chunk, monkeypatch) -> None:
    monkeypatch.setattr(graph, "_CHUNK", chunk)
    taken = _taken()
    found = bought_together(taken)
    np.testing.assert_allclose(found.toarray(), _dense(taken), rtol=1e-5)
    assert found.diagonal().sum() == 0
    # Rarely taken items have no neighbours and are nobody's.
    assert found[1].nnz == found[:, 1].nnz == 0


def test_only_the_strongest_are_kept() -> None:
    taken = _taken()
    dense, found = _dense(taken), bought_together(taken, neighbours=3).toarray()
    assert ((found > 0).sum(axis=1) <= 3).all()
    for row in range(len(dense)):
        best = np.sort(dense[row])[::-1][:3]
        np.testing.assert_allclose(np.sort(found[row])[::-1][:3], best, rtol=1e-5)


def test_how_often_does_not_count_and_nothing_gives_an_empty_graph() -> None:
    taken = _taken()
    once = taken.copy()
    once.data = np.ones_like(once.data)
    np.testing.assert_array_equal(bought_together(taken).toarray(), bought_together(once).toarray())
    empty = bought_together(sp.csr_matrix((5, 8), dtype=np.float32))
    assert empty.shape == (8, 8)
    assert empty.nnz == 0
    assert (nearest(empty, 2) == -1).all()


def test_nearest_are_in_order_of_strength() -> None:
    table = sp.csr_matrix(np.array([[0, 0.2, 0.9, 0.5], [0.1, 0, 0, 0], [0] * 4, [0] * 4]))
    assert nearest(table, 2).tolist() == [[2, 3], [0, -1], [-1, -1], [-1, -1]]


def test_what_was_taken_is_counted_up_to_the_day(datasets) -> None:
    dataset = datasets["A"]
    day, histories = dataset.split.validation, dataset.histories
    found = user_items(histories, len(dataset.items), day).toarray()
    expected = np.zeros_like(found)
    for user in range(len(histories)):
        for event in range(*histories.offsets[user : user + 2]):
            if histories.day[event] < day:
                expected[user, histories.item[event]] += 1
    np.testing.assert_array_equal(found, expected)

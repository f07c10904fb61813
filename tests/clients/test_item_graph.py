"""Item graphs: which edges, from whose users, and what they say of a history."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from clients import item_graph
from clients.item_graph import own_graph, rows_of, shared_graph
from crossrec_model.closed_form import gram_of, item_weights
from crossrec_model.errors import DataError


def _taken(users: int, items: int, seed: int) -> sp.csr_matrix:
    taken = np.random.default_rng(seed).random((users, items)) < 0.3
    return sp.csr_matrix(taken.astype(np.float32))


CANDIDATES = np.array([0, 2, 3, 5])


def test_edges_are_the_strongest_weights_into_each_candidate(monkeypatch) -> None:
    monkeypatch.setattr(item_graph, "EDGES", 2)
    taken = _taken(50, 6, 0)
    found = own_graph(taken, CANDIDATES).weights.toarray()
    assert found.shape == (6, 4)
    dense = item_weights(gram_of(taken[:, CANDIDATES].tocsr()), item_graph.RIDGE)
    for column in range(4):
        best = np.sort(dense[:, column])[-2:]
        kept = np.where(dense[:, column] >= best[0], np.maximum(dense[:, column], 0), 0)
        np.testing.assert_allclose(found[CANDIDATES, column], kept, rtol=1e-6)
    assert not found[[1, 4]].any()


def test_a_graph_of_sums_is_that_of_all_platforms_users() -> None:
    """Where all items are shared, it does not matter which platform the rows lie on."""
    parts = [_taken(40, 6, seed) for seed in range(3)]
    place = np.arange(6)
    pairs = sum(gram_of(part) for part in parts) / 3
    everybody = own_graph(sp.vstack(parts, format="csr"), CANDIDATES).weights.toarray()
    for part in parts:
        found = shared_graph(part, CANDIDATES, place=place, pairs=pairs, platforms=3, norm=100.0)
        np.testing.assert_allclose(found.weights.toarray(), everybody, rtol=1e-4, atol=1e-7)


def test_items_that_are_not_shared_keep_the_platforms_own_pairs() -> None:
    taken = _taken(60, 6, 1)
    nothing_shared = shared_graph(
        taken,
        CANDIDATES,
        place=np.full(6, -1),
        pairs=np.zeros((4, 4), dtype=np.float32),
        platforms=3,
        norm=100.0,
    )
    own = own_graph(taken, CANDIDATES)
    np.testing.assert_allclose(nothing_shared.weights.toarray(), own.weights.toarray(), rtol=1e-5)


def test_exclusive_items_tell_how_many_platforms_there_are() -> None:
    """Five platforms though the plan needs three only: this one alone has all the items."""
    taken, place = _taken(60, 6, 2), np.arange(6)
    pairs = gram_of(taken) / 5
    found = shared_graph(taken, CANDIDATES, place=place, pairs=pairs, platforms=3, norm=100.0)
    own = own_graph(taken, CANDIDATES)
    np.testing.assert_allclose(found.weights.toarray(), own.weights.toarray(), rtol=1e-4)


def test_a_noised_matrix_gets_as_much_of_the_ridge_as_it_needs(monkeypatch) -> None:
    taken, place = _taken(60, 6, 3), np.arange(6)
    pairs = gram_of(taken) - np.float32(3000) * np.eye(6, dtype=np.float32)
    found = shared_graph(taken, CANDIDATES, place=place, pairs=pairs, platforms=1, norm=100.0)
    assert np.isfinite(found.weights.data).all()
    monkeypatch.setattr(item_graph, "_MOST_RIDGE", 1000.0)
    with pytest.raises(DataError, match="raise l2"):
        shared_graph(taken, CANDIDATES, place=place, pairs=pairs, platforms=1, norm=100.0)


def test_evidence_is_the_logarithm_of_the_summed_edges(datasets) -> None:
    dataset = datasets["A"]
    day, items = dataset.split.validation, len(dataset.items)
    candidates = dataset.candidates(day)
    graph = own_graph(item_graph.binary_rows(dataset.histories, items, day), candidates)
    users = np.array([3, 8])
    plain, latest = rows_of(dataset.index, users, day, items)
    found = graph.evidence(plain, latest, "g")
    assert list(found) == ["g", "g, wide", "g, latest"]
    weights = graph.weights.toarray()
    for row, user in enumerate(users):
        mine = slice(*dataset.histories.offsets[user : user + 2])
        past = dataset.histories.day[mine] < day
        sums = weights[sorted(set(dataset.histories.item[mine][past].tolist()))].sum(axis=0)
        np.testing.assert_allclose(found["g"][row], np.log(sums + 0.01), rtol=1e-4)
        np.testing.assert_allclose(found["g, wide"][row], np.log(sums + 0.1), rtol=1e-4)

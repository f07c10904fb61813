"""Closed-form weights against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from crossrec_model import closed_form
from crossrec_model.closed_form import gram_of, item_weights, ordered_weights
from crossrec_model.errors import DataError


def _rows(users: int, items: int, seed: int) -> sp.csr_matrix:
    taken = np.random.default_rng(seed).random((users, items)) < 0.2
    return sp.csr_matrix(taken.astype(np.float64))


def test_no_other_weights_with_a_zero_diagonal_explain_the_rows_better() -> None:
    rows, l2 = _rows(60, 12, 0), 3.0
    found = item_weights(gram_of(rows), l2)
    assert not np.diag(found).any()
    dense = rows.toarray()

    def loss(weights: np.ndarray) -> float:
        return float(((dense - dense @ weights) ** 2).sum() + l2 * (weights**2).sum())

    generator = np.random.default_rng(1)
    for _ in range(50):
        step = generator.normal(size=found.shape) * 1e-3
        np.fill_diagonal(step, 0)
        assert loss(found + step) > loss(found)


def test_ordered_weights_are_the_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "BLOCK", 5)
    before, after = _rows(80, 12, 2), _rows(80, 12, 3)
    found = ordered_weights(before, after, 2.0)
    x, y = before.toarray(), after.toarray()
    expected = np.linalg.solve(x.T @ x + 2.0 * np.eye(12), x.T @ y)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_sums_over_platforms_give_the_weights_of_all_users() -> None:
    one, two = _rows(40, 9, 4), _rows(30, 9, 5)
    together = item_weights(gram_of(sp.vstack([one, two], format="csr")), 1.0)
    summed = item_weights(gram_of(one) + gram_of(two), 1.0)
    np.testing.assert_allclose(together, summed, atol=1e-12)


def test_an_indefinite_matrix_is_refused() -> None:
    with pytest.raises(DataError, match="raise l2"):
        item_weights(np.diag([-5.0, 1.0]), 1.0)

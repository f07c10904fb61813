"""The k best of many items are those of a plain stable sort, whatever the ties, blocks and groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from crossrec_model.topk import NO_ITEM, given_scorer, product_scorer, ranked


def _plain(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, order, axis=1)
    best = np.where(np.isneginf(values), NO_ITEM, order)
    spare = ((0, 0), (0, k - order.shape[1]))
    return np.pad(best, spare, constant_values=NO_ITEM), np.pad(
        values, spare, constant_values=-np.inf
    )


@pytest.mark.parametrize("items", [1, 49, 50, 700, 5000, 6463])
@pytest.mark.parametrize("levels", [2, 300, 10**9])
@pytest.mark.parametrize("block", [None, 1, 4])
def test_as_a_stable_sort(items: int, levels: int, block: int | None) -> None:
    random = np.random.default_rng(items)
    scores = random.integers(levels, size=(9, items)).astype(np.float32) - 7
    scores[random.random(scores.shape) < 0.1] = -np.inf
    scores[3] = -np.inf
    scores[4, min(items, 20) :] = -np.inf
    hidden = random.random(scores.shape) < 0.05
    kept = scores.copy()
    for k in (1, 10, 50):
        best, values = ranked(
            given_scorer(scores),
            users=9,
            items=items,
            k=k,
            hidden=sparse.csr_matrix(hidden),
            block=block,
        )
        expected, numbers = _plain(np.where(hidden, -np.inf, scores), k)
        np.testing.assert_array_equal(best, expected)
        np.testing.assert_array_equal(values, numbers)
    np.testing.assert_array_equal(scores, kept)


def test_products_in_blocks_leave_out_what_was_bought() -> None:
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(n, 8, generator=generator) for n in (70, 9000))
    bought = sparse.random(70, 9000, density=0.01, format="csr", random_state=2)
    best, values = ranked(
        product_scorer(users, items), users=70, items=9000, k=50, hidden=bought, block=32
    )
    scores = np.where(bought.toarray() != 0, -np.inf, (users @ items.T).numpy())
    np.testing.assert_allclose(values, _plain(scores, 50)[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(scores, best, axis=1), values, rtol=1e-5)
    assert all(len(set(row)) == 50 for row in best.tolist())


def test_nothing_to_rank_and_what_is_no_number() -> None:
    best, values = ranked(given_scorer(np.zeros((0, 4))), users=0, items=4, k=2)
    assert best.shape == values.shape == (0, 2)
    best, values = ranked(given_scorer(np.zeros((2, 0))), users=2, items=0, k=2)
    assert (best == NO_ITEM).all()
    assert np.isneginf(values).all()
    with pytest.raises(ValueError, match="at least 1"):
        ranked(given_scorer(np.zeros((1, 4))), users=1, items=4, k=0)
    for items in (4, 9000):
        scores = np.zeros((1, items), dtype=np.float32)
        scores[0, items // 2] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            ranked(given_scorer(scores), users=1, items=items, k=2)

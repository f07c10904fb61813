from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from crossrec_model.errors import DataError
from crossrec_model.evaluation.metrics import (
    accuracy,
    auc,
    candidate_ndcg,
    hits,
    top_items,
)
from crossrec_model.topk import NO_ITEM

USERS, ITEMS = 60, 130


def random_case(
    seed: int, *, levels: int = 25
) -> tuple[np.ndarray, sparse.csr_array, sparse.csr_array]:
    """Scores with many ties; some users without relevant items."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(USERS, ITEMS)).astype(np.float32) - 5
    relevant = rng.random((USERS, ITEMS)) < rng.choice([0.0, 0.02, 0.2], size=(USERS, 1))
    excluded = (rng.random((USERS, ITEMS)) < 0.1) & ~relevant
    return scores, sparse.csr_array(relevant), sparse.csr_array(excluded)


def measured(
    scores: np.ndarray, relevant: sparse.csr_array, excluded: sparse.csr_array, k: int
) -> dict[str, np.ndarray]:
    found = hits(top_items(scores, excluded, k), relevant)
    return accuracy(found, np.diff(sparse.csr_array(relevant).indptr), k)


def test_order_is_the_stable_sort_of_the_scores() -> None:
    scores, _, excluded = random_case(1)
    ranked = top_items(scores, excluded, 50)
    masked = np.where(excluded.toarray(), np.inf, -scores.astype(np.float64))
    assert np.array_equal(ranked, np.argsort(masked, axis=1, kind="stable")[:, :50])


@given(
    st.lists(
        st.floats(width=32, allow_nan=False).filter(lambda x: x != math.inf),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 14),
)
@settings(max_examples=200, deadline=None)
def test_any_finite_scores_are_ordered_with_ties_by_item(row: list[float], k: int) -> None:
    scores = np.array([row], dtype=np.float32)
    ranked = top_items(scores, sparse.csr_array((1, len(row))), k)[0]
    # Python's own sort as the reference; −∞ is never shown.
    expected = sorted((i for i, x in enumerate(row) if x != -math.inf), key=lambda i: -row[i])[:k]
    assert ranked.tolist() == expected + [NO_ITEM] * (k - len(expected))


@pytest.mark.parametrize("k", [10, 50])
def test_agrees_with_ranx(k: int) -> None:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        import numba

        # The same code as plain Python: compiling it would take a minute.
        patch.setattr(numba.config, "DISABLE_JIT", True)
        from ranx import Qrels, Run, evaluate

        scores, relevant, excluded = random_case(2)
        ranked = top_items(scores, excluded, k)
        kept = np.flatnonzero(np.diff(relevant.indptr))
        truth = {
            str(u): {
                str(i): 1 for i in relevant.indices[relevant.indptr[u] : relevant.indptr[u + 1]]
            }
            for u in kept
        }
        # Distinct run scores in our order: ranx doesn't promise an order of ties.
        run = {str(u): {str(i): float(k - r) for r, i in enumerate(ranked[u])} for u in kept}
        names = {
            "ndcg": "ndcg",
            "recall": "recall",
            "precision": "precision",
            "hit_rate": "hit_rate",
            "mrr": "mrr",
        }
        reference = {
            ours: evaluate(Qrels(truth), Run(run), f"{theirs}@{k}", return_mean=False)
            for ours, theirs in names.items()
        }
        order = [int(u) for u in Qrels(truth).qrels]
    ours = measured(scores, relevant, excluded, k)
    assert len(kept) > 20
    for name, values in reference.items():
        np.testing.assert_allclose(ours[f"{name}@{k}"][order], values, atol=1e-9, rtol=0)


def test_accuracy_by_hand() -> None:
    scores = np.array([[5, 4, 3, 2, 1]], dtype=np.float32)
    relevant = sparse.csr_array([[0, 1, 0, 1, 1]])
    got = measured(scores, relevant, sparse.csr_array((1, 5)), 4)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert got["ndcg@4"][0] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert got["recall@4"][0] == pytest.approx(2 / 3)
    assert got["precision@4"][0] == 0.5
    assert got["hit_rate@4"][0] == 1
    assert got["mrr@4"][0] == 0.5


def test_user_without_relevant_items_is_nan_everywhere() -> None:
    scores = np.ones((2, 4), dtype=np.float32)
    relevant = sparse.csr_array([[0, 0, 0, 0], [1, 0, 0, 0]])
    nothing = sparse.csr_array((2, 4))
    got = measured(scores, relevant, nothing, 3) | {"auc": auc(scores, relevant, nothing)}
    for values in got.values():
        assert np.isnan(values[0])
        assert not np.isnan(values[1])


def test_k_beyond_the_items_pads_and_still_divides_precision_by_k() -> None:
    scores = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    excluded = sparse.csr_array([[0, 1, 0]])
    assert top_items(scores, excluded, 5).tolist() == [[2, 0, NO_ITEM, NO_ITEM, NO_ITEM]]
    got = measured(scores, sparse.csr_array([[1, 0, 1]]), excluded, 5)
    assert got["ndcg@5"][0] == pytest.approx(1)
    assert got["recall@5"][0] == 1
    assert got["precision@5"][0] == pytest.approx(2 / 5)
    # A cut-off beyond the list's own length is the same list.
    found = hits(top_items(scores, excluded, 2), sparse.csr_array([[1, 0, 1]]))
    assert accuracy(found, np.array([2]), 5)["precision@5"][0] == pytest.approx(2 / 5)


def test_no_users() -> None:
    scores, nothing = np.empty((0, 3), dtype=np.float32), sparse.csr_array((0, 3))
    assert top_items(scores, nothing, 2).shape == (0, 2)
    assert auc(scores, nothing, nothing).shape == (0,)
    assert all(v.shape == (0,) for v in measured(scores, nothing, nothing, 2).values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_score_is_refused_and_named(bad: float) -> None:
    scores = np.zeros((3, 4), dtype=np.float32)
    scores[1, 2] = bad
    with pytest.raises(DataError, match="user row 1 for item 2"):
        top_items(scores, sparse.csr_array((3, 4)), 2)
    with pytest.raises(DataError, match="user row 1 for item 2"):
        auc(scores, sparse.csr_array((3, 4)), sparse.csr_array((3, 4)))


def test_double_beyond_float32_is_refused() -> None:
    with pytest.raises(DataError, match="inf"):
        top_items(np.array([[1e300, 0.0]]), sparse.csr_array((1, 2)), 1)


@pytest.mark.parametrize(
    ("scores", "excluded", "k"),
    [
        (np.zeros((2, 0), dtype=np.float32), sparse.csr_array((2, 0)), 1),
        (np.zeros((2, 3), dtype=np.float32), sparse.csr_array((3, 3)), 1),
        (np.zeros((2, 3), dtype=np.float32), sparse.csr_array((2, 3)), 0),
        (np.zeros(3, dtype=np.float32), sparse.csr_array((1, 3)), 1),
    ],
)
def test_impossible_shapes_are_refused(
    scores: np.ndarray, excluded: sparse.csr_array, k: int
) -> None:
    with pytest.raises(DataError):
        top_items(scores, excluded, k)


def test_auc_agrees_with_the_mann_whitney_test() -> None:
    scores, relevant, excluded = random_case(3)
    got = auc(scores, relevant, excluded)
    wanted, hidden = relevant.toarray().astype(bool), excluded.toarray().astype(bool)
    checked = 0
    for user in range(USERS):
        positive = scores[user, wanted[user]].astype(np.float64)
        negative = scores[user, ~wanted[user] & ~hidden[user]].astype(np.float64)
        if len(positive) == 0:
            assert np.isnan(got[user])
            continue
        statistic = stats.mannwhitneyu(positive, negative, method="asymptotic").statistic
        assert got[user] == pytest.approx(statistic / (len(positive) * len(negative)), abs=1e-12)
        checked += 1
    assert checked > 20


def test_auc_of_all_ties_is_a_half_and_needs_both_sides() -> None:
    nothing = sparse.csr_array((1, 3))
    assert auc(np.zeros((1, 3), dtype=np.float32), sparse.csr_array([[1, 0, 0]]), nothing)[0] == 0.5
    assert np.isnan(
        auc(np.zeros((1, 3), dtype=np.float32), sparse.csr_array([[1, 1, 1]]), nothing)[0]
    )


def test_auc_takes_minus_infinity_as_the_lowest_score() -> None:
    scores = np.array([[-np.inf, 1.0, 0.0]], dtype=np.float32)
    got = auc(scores, sparse.csr_array([[1, 0, 0]]), sparse.csr_array((1, 3)))
    assert got[0] == 0


def test_item_both_relevant_and_excluded_is_refused() -> None:
    both = sparse.csr_array([[0, 0], [0, 1]])
    with pytest.raises(DataError, match="user row 1 has 1 item"):
        auc(np.zeros((2, 2), dtype=np.float32), both, both)


def test_sets_count_every_non_zero_once() -> None:
    ranked = np.array([[0, 1]])
    twice = sparse.csr_array((np.array([1.0, 1.0, 0.0]), ([0, 0, 0], [1, 1, 0])), shape=(1, 2))
    assert hits(ranked, twice).tolist() == [[False, True]]


def test_candidate_tie_counts_against_the_target() -> None:
    target = np.array([2.0, 2.0, 2.0])
    negatives = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 2.0]])
    assert candidate_ndcg(target, negatives, 10) == pytest.approx([1, 1 / math.log2(3), 0.5])
    assert candidate_ndcg(target, negatives, 2)[2] == 0
    with pytest.raises(DataError, match="NaN"):
        candidate_ndcg(np.array([np.nan]), negatives[:1])

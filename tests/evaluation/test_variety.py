from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cosine

from crossrec_model.errors import DataError
from crossrec_model.evaluation.variety import category_features, coverage, diversity, novelty
from crossrec_model.topk import NO_ITEM


def similarity(features: sparse.csr_array, a: int, b: int) -> float:
    rows = features.toarray()
    return float(1 - cosine(rows[a], rows[b]))


def test_shared_path_prefixes_make_items_alike() -> None:
    features = category_features(
        [
            ("food", "fruit", "apple"),
            ("food", "fruit", "pear"),
            ("food", "bread", "rye"),
            ("tools", "fruit", "apple"),
            None,
            (),
        ]
    )
    assert similarity(features, 0, 0) == pytest.approx(1)
    assert similarity(features, 0, 1) == pytest.approx(2 / 3)
    assert similarity(features, 0, 2) == pytest.approx(1 / 3)
    assert similarity(features, 0, 3) == pytest.approx(0)  # same words below another root
    assert features.toarray()[4:].sum() == 0


def test_no_paths_at_all_still_has_a_column() -> None:
    assert category_features([None, None]).shape == (2, 1)


def test_diversity_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(30, 5))
    ranked = np.stack([rng.permutation(30)[:8] for _ in range(12)])
    ranked[3, 5:] = NO_ITEM
    expected = [
        np.mean([cosine(features[a], features[b]) for a, b in combinations(row[row >= 0], 2)])
        for row in ranked
    ]
    np.testing.assert_allclose(diversity(ranked, features), expected, atol=1e-9, rtol=0)
    np.testing.assert_allclose(
        diversity(ranked, sparse.csr_array(features)), expected, atol=1e-9, rtol=0
    )


def test_item_without_features_is_unlike_every_other() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert diversity(np.array([[0, 1]]), features)[0] == pytest.approx(0)
    assert diversity(np.array([[0, 2]]), features)[0] == pytest.approx(1)
    assert diversity(np.array([[2, 3]]), features)[0] == pytest.approx(1)


def test_list_of_one_has_no_diversity_and_an_empty_one_no_novelty() -> None:
    ranked = np.array([[1, NO_ITEM], [NO_ITEM, NO_ITEM]])
    assert np.isnan(diversity(ranked, np.eye(2))).all()
    got = novelty(ranked, np.array([1, 1]), 4)
    assert got[0] == pytest.approx(2)
    assert np.isnan(got[1])


def test_novelty_is_mean_self_information() -> None:
    ranked = np.array([[0, 1], [2, 2]])
    # 8 users: shares 1, 1/4 and, for the item that nobody bought, as if one of 8 had.
    assert novelty(ranked, np.array([8, 2, 0]), 8) == pytest.approx([1.0, 3.0])
    with pytest.raises(DataError, match="9"):
        novelty(ranked, np.array([9, 2, 0]), 8)


def test_coverage_counts_distinct_items() -> None:
    assert coverage(np.array([[0, 1], [1, NO_ITEM]]), 8) == 0.25
    assert coverage(np.empty((0, 3), dtype=np.int64), 8) == 0
    with pytest.raises(DataError, match="no items"):
        coverage(np.empty((0, 3), dtype=np.int64), 0)
    with pytest.raises(DataError, match="item 8"):
        coverage(np.array([[8]]), 8)


def test_broken_or_missing_features_are_refused() -> None:
    with pytest.raises(DataError, match="NaN"):
        diversity(np.array([[0, 1]]), np.array([[np.nan], [1.0]]))
    with pytest.raises(DataError, match="only 2 items"):
        diversity(np.array([[0, 2]]), np.eye(2))

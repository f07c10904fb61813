from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from crossrec_model.errors import ConfigError, DataError
from crossrec_model.evaluation.metrics import accuracy, auc, hits, top_items
from crossrec_model.evaluation.results import (
    ALL_PURCHASES,
    FIRST_TIME,
    Group,
    MeasureConfig,
    Result,
    View,
    measure,
    purchase_views,
)
from crossrec_model.evaluation.variety import coverage, diversity, novelty

USERS, ITEMS = 23, 40


def views(seed: int = 0) -> tuple[View, View]:
    rng = np.random.default_rng(seed)
    return purchase_views(
        platform="A",
        users=np.arange(100, 100 + USERS),
        history=sparse.csr_array(rng.poisson(0.2, size=(USERS, ITEMS))),
        purchases=sparse.csr_array(rng.random((USERS, ITEMS)) < 0.15),
        item_features=np.eye(ITEMS),
        buyers=rng.integers(0, USERS, ITEMS),
        population=USERS,
    )


def test_first_time_view_leaves_out_what_she_bought_before() -> None:
    history = sparse.csr_array([[2, 0, 1, 0], [6, 0, 0, 0], [0, 5, 0, 0]])
    purchases = sparse.csr_array([[1, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    everything, first = purchase_views(
        platform="A",
        users=np.arange(3),
        history=history,
        purchases=purchases,
        item_features=np.eye(4),
        buyers=np.zeros(4, dtype=np.int64),
        population=3,
    )
    assert (everything.name, first.name) == (ALL_PURCHASES, FIRST_TIME)
    assert everything.relevant.toarray().astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 1],
    ]
    assert everything.excluded.nnz == 0
    assert first.relevant.toarray().astype(int).tolist() == [
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 1],
    ]
    assert first.excluded.toarray().astype(int).tolist() == [
        [1, 0, 1, 0],
        [1, 0, 0, 0],
        [0, 1, 0, 0],
    ]
    # Six interactions are warm, five or fewer are cold: counts, not distinct items.
    assert first.warm.tolist() == [False, True, False]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_give_the_whole_answer(chunk: int) -> None:
    view = views()[1]
    scores = np.random.default_rng(1).normal(size=(USERS, ITEMS)).astype(np.float32)
    result = measure(
        scores, view, row="x", seed=3, config=MeasureConfig(cutoffs=(3, 60), chunk_users=chunk)
    )
    ranked = top_items(scores, view.excluded, 60)
    size = np.diff(view.relevant.indptr)
    expected = {"auc": auc(scores, view.relevant, view.excluded)}
    for k in (3, 60):
        expected |= accuracy(hits(ranked, view.relevant), size, k)
        expected[f"diversity@{k}"] = diversity(ranked[:, :k], view.item_features)
        expected[f"novelty@{k}"] = novelty(ranked[:, :k], view.buyers, view.population)
    assert result.metrics.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(result.metrics[name], values, atol=1e-12)
    assert result.totals == {f"coverage@{k}": coverage(ranked[:, :k], ITEMS) for k in (3, 60)}
    assert (result.row, result.platform, result.seed) == ("x", "A", 3)


def test_view_without_users_gives_empty_arrays() -> None:
    view = dataclasses.replace(
        views()[0],
        users=np.empty(0, dtype=np.int64),
        relevant=sparse.csr_array((0, ITEMS)),
        excluded=sparse.csr_array((0, ITEMS)),
        warm=np.empty(0, dtype=bool),
    )
    result = measure(np.empty((0, ITEMS), dtype=np.float32), view, row="x")
    assert all(values.shape == (0,) for values in result.metrics.values())
    assert result.totals["coverage@10"] == 0


def test_groups_split_the_users() -> None:
    view = views()[0]
    result = measure(np.zeros((USERS, ITEMS), dtype=np.float32), view, row="x")
    cold, warm = result.members(Group.COLD), result.members(Group.WARM)
    assert 0 < cold.sum() < USERS
    assert (cold ^ warm).all()
    assert result.members(Group.ALL).all()


@pytest.mark.parametrize(
    "change",
    [
        {"users": np.arange(3)},
        {"warm": np.zeros(3, dtype=bool)},
        {"buyers": np.zeros(3, dtype=np.int64)},
        {"item_features": np.eye(3)},
        {"excluded": sparse.csr_array((USERS, 3))},
        {"users": np.zeros(USERS, dtype=np.int64)},
    ],
)
def test_view_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="platform A"):
        dataclasses.replace(views()[0], **change)


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="row 'x' on platform A"):
        measure(np.zeros((USERS, 3), dtype=np.float32), views()[0], row="x")


def test_result_refuses_infinity_and_odd_shapes() -> None:
    good = {"row": "x", "platform": "A", "view": "v", "seed": 0, "users": np.arange(2)}
    warm = np.zeros(2, dtype=bool)
    Result(**good, warm=warm, metrics={"m": np.array([np.nan, 1.0])})
    with pytest.raises(DataError, match="infinity"):
        Result(**good, warm=warm, metrics={"m": np.array([np.inf, 1.0])})
    with pytest.raises(DataError, match="shape"):
        Result(**good, warm=warm, metrics={"m": np.zeros(3)})
    with pytest.raises(DataError, match="warm"):
        Result(**good, warm=warm[:1], metrics={})


@pytest.mark.parametrize("bad", [{"cutoffs": ()}, {"cutoffs": (0,)}, {"chunk_users": 0}])
def test_impossible_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MeasureConfig(**bad)

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from crossrec_model.errors import ConfigError, DataError
from crossrec_model.evaluation.baselines import (
    EASE_GRID,
    KNN_GRID,
    Baseline,
    Ease,
    ItemKnn,
    Popularity,
    choose,
)
from crossrec_model.evaluation.metrics import candidate_ndcg
from crossrec_model.evaluation.results import MeasureConfig, purchase_views

XMREC = Path(__file__).parents[3] / "shared" / "data" / "xmrec"
BASELINES = [Popularity(), Popularity(own_first=True), ItemKnn(), ItemKnn(neighbours=3), Ease(l2=5)]


def history(users: int = 50, items: int = 20, seed: int = 0) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    return sparse.csr_array(rng.poisson(rng.gamma(0.3, 1.0, items), size=(users, items)))


def test_popularity_counts_buyers_not_purchases() -> None:
    rows = sparse.csr_array([[9, 1, 0], [0, 1, 0]])
    scores = Popularity().fit(rows).scores(rows[[1]])
    assert np.argsort(-scores[0], kind="stable").tolist() == [1, 0, 2]


def test_own_purchases_come_first_then_popularity() -> None:
    rows = sparse.csr_array([[0, 0, 3, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    scores = Popularity(own_first=True).fit(rows).scores(rows[[0]])
    assert np.argsort(-scores[0], kind="stable").tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("neighbours", [None, 4, 1000])
def test_knn_is_the_shrunk_cosine(neighbours: int | None) -> None:
    rows = history()
    got = ItemKnn(shrink=2.5, neighbours=neighbours).fit(rows).scores(rows)
    seen = (rows.toarray() > 0).astype(float)
    items = seen.shape[1]
    weights = np.zeros((items, items))
    for i in range(items):
        for j in range(items):
            if i != j:
                bound = np.linalg.norm(seen[:, i]) * np.linalg.norm(seen[:, j]) + 2.5
                weights[i, j] = seen[:, i] @ seen[:, j] / bound
    if neighbours == 4:
        for j in range(items):
            weights[np.argsort(-weights[:, j], kind="stable")[4:], j] = 0
    np.testing.assert_allclose(got, seen @ weights, atol=1e-5)


def test_knn_without_shrink_survives_an_item_that_nobody_bought() -> None:
    rows = sparse.csr_array([[1, 1, 0], [1, 0, 0]])
    assert np.isfinite(ItemKnn(shrink=0).fit(rows).scores(rows)).all()


@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-4), (True, 1e-6)])
def test_ease_solves_its_constrained_least_squares(double: bool, tolerance: float) -> None:
    rows = history(seed=2)
    got = Ease(l2=3.0, double=double).fit(rows).scores(rows)
    seen = (rows.toarray() > 0).astype(float)
    items = seen.shape[1]
    # Reference: the zero diagonal asks for one ridge regression an item, on all the others.
    weights = np.zeros((items, items))
    for j in range(items):
        others = np.delete(np.arange(items), j)
        x = seen[:, others]
        weights[others, j] = np.linalg.solve(x.T @ x + 3.0 * np.eye(items - 1), x.T @ seen[:, j])
    np.testing.assert_allclose(got, seen @ weights, atol=tolerance)


def test_ease_in_several_blocks_is_still_symmetric_inside() -> None:
    rows = history(users=300, items=1100, seed=3)
    scorer = Ease(l2=10.0, double=True).fit(rows)
    seen = (rows.toarray() > 0).astype(float)
    inverse = np.linalg.inv(seen.T @ seen + 10.0 * np.eye(1100))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    np.testing.assert_allclose(scorer.scores(rows), seen @ weights, atol=1e-4)


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_is_finite_and_serves_a_user_without_history(baseline: Baseline) -> None:
    rows = history()
    scores = baseline.fit(rows).scores(sparse.csr_array((2, rows.shape[1])))
    assert scores.shape == (2, rows.shape[1])
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("baseline", BASELINES)
def test_no_user_at_all_can_be_fitted(baseline: Baseline) -> None:
    scores = baseline.fit(sparse.csr_array((0, 4))).scores(sparse.csr_array((1, 4)))
    assert scores.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("baseline", BASELINES)
def test_broken_history_is_refused(baseline: Baseline) -> None:
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(DataError, match="counts"):
            baseline.fit(sparse.csr_array([[bad, 1.0]]))
    with pytest.raises(DataError, match="items"):
        baseline.fit(sparse.csr_array((3, 0)))
    with pytest.raises(DataError, match="20"):
        baseline.fit(history()).scores(sparse.csr_array((1, 3)))


def test_impossible_settings_are_refused() -> None:
    for shrink in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="shrink"):
            ItemKnn(shrink=shrink)
    with pytest.raises(ConfigError, match="neighbours"):
        ItemKnn(neighbours=0)
    for l2 in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="l2"):
            Ease(l2=l2)


def validation(rows: sparse.csr_array, purchases: sparse.csr_array):
    return purchase_views(
        platform="A",
        users=np.arange(rows.shape[0]),
        history=rows,
        purchases=purchases,
        item_features=np.eye(rows.shape[1]),
        buyers=np.zeros(rows.shape[1], dtype=np.int64),
        population=rows.shape[0],
    )[0]


def test_choice_is_the_best_on_validation_and_shows_all() -> None:
    rows = history()
    bought_again = sparse.csr_array(rows.toarray() > 0)
    grid = [Popularity(), Popularity(own_first=True), Popularity(own_first=True)]
    choice = choose(grid, history=rows, served=rows, validation=validation(rows, bought_again))
    assert choice.baseline is grid[1]  # the first of equally good ones
    assert [baseline for baseline, _ in choice.tried] == grid
    assert choice.value == choice.tried[1][1] > choice.tried[0][1]


def test_choice_needs_a_grid_a_known_metric_and_purchases() -> None:
    rows = history()
    view = validation(rows, rows)
    empty = validation(rows, sparse.csr_array(rows.shape))
    with pytest.raises(DataError, match="grid"):
        choose([], history=rows, served=rows, validation=view)
    with pytest.raises(DataError, match="ndcg@10"):
        choose([Popularity()], history=rows, served=rows, validation=view, metric="ndcg")
    with pytest.raises(DataError, match="validation period"):
        choose([Popularity()], history=rows, served=rows, validation=empty)
    settings = MeasureConfig(cutoffs=(5,))
    choose(
        [Popularity()], history=rows, served=rows, validation=view, metric="mrr@5", config=settings
    )


def test_grids_hold_distinct_settings() -> None:
    assert len(set(KNN_GRID)) == len(KNN_GRID) > 3
    assert len(set(EASE_GRID)) == len(EASE_GRID) > 3


needs_xmrec = pytest.mark.skipif(
    not XMREC.is_dir(), reason="the XMRec benchmark data is not at ../shared/data/xmrec"
)


def candidate_value(baseline: Baseline, market: str) -> float:
    rows, users, candidates = frozen_candidates(market)
    scores = baseline.fit(rows).scores(rows[users])
    picked = np.take_along_axis(scores, candidates, axis=1)  # [users, 1 + 99]
    return float(candidate_ndcg(picked[:, 0], picked[:, 1:], 10).mean())


@needs_xmrec
@pytest.mark.parametrize(
    ("baseline", "expected"), [(Popularity(), 0.3562), (ItemKnn(shrink=10.0), 0.4684)]
)
def test_known_averages_of_seven_markets(baseline: Baseline, expected: float) -> None:
    markets = ("ca", "de", "fr", "in", "jp", "mx", "uk")
    reached = [candidate_value(baseline, market) for market in markets]
    assert np.mean(reached) == pytest.approx(expected, abs=0.002)


@needs_xmrec
@pytest.mark.parametrize(
    ("market", "expected"),
    [
        ("de", 0.4552),
        ("fr", 0.4678),
        ("in", 0.4972),
        ("jp", 0.3534),
        ("mx", 0.6199),
        ("uk", 0.5539),
        pytest.param("ca", 0.3922, marks=pytest.mark.slow),
    ],
)
def test_known_values_of_ease(market: str, expected: float) -> None:
    assert candidate_value(Ease(l2=100.0), market) == pytest.approx(expected, abs=0.002)


def frozen_candidates(market: str) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """History, the test users' rows, and their candidates with the test item first."""
    rows = pl.read_parquet(XMREC / f"{market}.parquet")
    test = pl.read_parquet(XMREC / f"{market}_test99.parquet")
    items = {item: n for n, item in enumerate(rows["item_id"].unique().sort())}
    users = {user: n for n, user in enumerate(rows["user_id"].unique().sort())}
    before = rows.filter(pl.col("split") != "test")
    where = ([users[u] for u in before["user_id"]], [items[i] for i in before["item_id"]])
    matrix = sparse.csr_array((np.ones(len(before)), where), shape=(len(users), len(items)))
    candidates = [
        [items[item] for item in (target, *negatives)]
        for target, negatives in zip(test["item_id"], test["negatives"], strict=True)
    ]
    return matrix, np.array([users[u] for u in test["user_id"]]), np.array(candidates)

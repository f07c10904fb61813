"""Plain recommenders that a trained model must beat: popularity, item-kNN and EASE.

Each baseline is a frozen set of hyper-parameters; `fit` learns from a history (sparse
`[users, items]`, how often a user bought an item) and gives a scorer, whose `scores` takes history
rows of the users to serve and gives float32 `[users, items]`. Nothing is masked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from crossrec_model.closed_form import blocks, gram_of, item_weights
from crossrec_model.errors import ConfigError, DataError
from crossrec_model.evaluation.metrics import binary
from crossrec_model.evaluation.results import MeasureConfig, View, measure

Scores = NDArray[np.float32]


class Scorer(Protocol):
    """A fitted recommender."""

    def scores(self, history: Any) -> Scores:
        """Scores float32 `[users, items]` of users with these history rows."""
        ...


class Baseline(Protocol):
    """Hyper-parameters that can be fitted."""

    def fit(self, history: Any) -> Scorer:
        """Learn from a sparse `[users, items]` history; a user without rows teaches nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """Every user gets the items that most users bought.

    With `own_first`, what the user herself bought comes before, by how often: the row to beat where
    people buy the same things again, as in grocery.
    """

    own_first: bool = False

    def fit(self, history: Any) -> Scorer:
        """Count the buyers of each item."""
        buyers = np.asarray(binary(_checked(history)).sum(axis=0), dtype=np.float32)
        # Under 1, so that one own purchase outweighs any popularity.
        return _PopularityScorer(share=buyers / (buyers.max() + 1), own_first=self.own_first)


@dataclass(frozen=True, kw_only=True)
class _PopularityScorer:
    share: Scores  # [items], in [0, 1)
    own_first: bool

    def scores(self, history: Any) -> Scores:
        rows = _checked(history, len(self.share))
        if self.own_first:
            own: Scores = rows.toarray()  # [users, items]
            return own + self.share
        return np.repeat(self.share[None, :], rows.shape[0], axis=0)


@dataclass(frozen=True, kw_only=True)
class ItemKnn:
    """Items like those in the history: cosine of buyer sets, shrunk, the nearest neighbours kept.

    s(i, j) = |i ∩ j| / (√|i| √|j| + shrink), s(i, i) = 0 (Deshpande and Karypis 2004, with a shrunk
    denominator). A user's score is the sum over her items, each counted once. `neighbours=None`
    keeps all of them, as a dense `[items, items]` float32 matrix.
    """

    shrink: float = 10.0
    neighbours: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.shrink < np.inf:
            raise ConfigError(f"shrink is {self.shrink}; it must be a finite number ≥ 0")
        if self.neighbours is not None and self.neighbours < 1:
            raise ConfigError(
                f"neighbours is {self.neighbours}; it must be ≥ 1, or None for all of them"
            )

    def fit(self, history: Any) -> Scorer:
        """Similarities of all items, block by block; keeps `neighbours` a column."""
        rows = binary(_checked(history)).astype(np.float32)  # [users, items]
        items = rows.shape[1]
        root = np.sqrt(np.asarray(rows.sum(axis=0), dtype=np.float32))  # [items]
        if self.neighbours is None or self.neighbours >= items:
            dense = np.empty((items, items), dtype=np.float32)
            for part in blocks(items):
                dense[:, part] = self._similar(rows, root, part)
            return _LinearScorer(weights=dense)
        kept = [
            _nearest(self._similar(rows, root, part), self.neighbours) for part in blocks(items)
        ]
        return _LinearScorer(weights=sparse.hstack(kept, format="csr"))

    def _similar(self, rows: Any, root: Scores, part: slice) -> Scores:
        """Similarity of every item (row) to the items of `part`: `[items, block]`."""
        together: Scores = (rows.T @ rows[:, part]).toarray()
        bound = root[:, None] * root[None, part] + np.float32(self.shrink)
        similar: Scores = np.divide(together, bound, out=np.zeros_like(together), where=bound > 0)
        similar[np.arange(part.start, part.stop), np.arange(part.stop - part.start)] = 0
        return similar


@dataclass(frozen=True, kw_only=True)
class Ease:
    """Linear autoencoder with a zero diagonal in closed form (Steck 2019, equation 8).

    P = (XᵀX + λI)⁻¹ and B = I − P · diag(1 / diag P). The inverse goes through Cholesky in place,
    so memory peaks at about 1.2 matrices `[items, items]` of the given precision: in float32
    0.35 GB for 8,000 items and 1.2 GB for 16,000. Time grows with items³.
    """

    l2: float = 100.0
    double: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.l2 < np.inf:
            raise ConfigError(f"l2 is {self.l2}; it must be a finite number > 0")

    def fit(self, history: Any) -> Scorer:
        """Solve for the item-item weights."""
        kind = np.float64 if self.double else np.float32
        rows = binary(_checked(history)).astype(kind)
        weights = item_weights(gram_of(rows), self.l2)
        return _LinearScorer(weights=weights.astype(np.float32, copy=False))


@dataclass(frozen=True, kw_only=True)
class _LinearScorer:
    weights: Any  # [items, items], dense or sparse; from a history item (row) to a shown item

    def scores(self, history: Any) -> Scores:
        rows = binary(_checked(history, self.weights.shape[0])).astype(np.float32)
        product = rows @ self.weights
        dense: Scores = product.toarray() if sparse.issparse(product) else np.asarray(product)
        return dense


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best of several baselines on the validation users, and what each of them reached."""

    baseline: Baseline
    value: float
    tried: tuple[tuple[Baseline, float], ...]


KNN_GRID: Final = tuple(
    ItemKnn(shrink=shrink, neighbours=neighbours)
    for shrink in (0.0, 10.0, 100.0)
    for neighbours in (50, 200, None)
)
EASE_GRID: Final = tuple(Ease(l2=l2) for l2 in (50.0, 100.0, 200.0, 500.0, 1000.0))


def choose(
    grid: Sequence[Baseline],
    *,
    history: Any,
    served: Any,
    validation: View,
    metric: str = "ndcg@10",
    config: MeasureConfig | None = None,
) -> Choice:
    """Fit every baseline of `grid` and take the best mean `metric` on the validation view.

    Args:
        grid: the candidates; the first of equally good ones wins.
        history: sparse `[all users, items]`, up to the start of the validation period.
        served: sparse `[validation users, items]`, history rows of the validation view's users.
        validation: what they bought in the validation period. Never pass the test period.
        metric: a per-user metric of `measure`.
        config: cut-offs, if other than 10 and 50.

    Raises:
        DataError: the grid is empty, the metric is unknown, or no user has it.
    """
    if not grid:
        raise DataError("the grid of baselines is empty; give at least one")
    tried = []
    for baseline in grid:
        scores = baseline.fit(history).scores(served)
        result = measure(scores, validation, row="choice", config=config)
        if metric not in result.metrics:
            known = ", ".join(sorted(result.metrics))
            raise DataError(f"metric '{metric}' is unknown; choose one of {known}")
        values = result.metrics[metric]
        if np.isnan(values).all():
            raise DataError(
                f"no validation user of platform {validation.platform} has a relevant item; "
                "lengthen the validation period"
            )
        tried.append((baseline, float(np.nanmean(values))))
    best = max(tried, key=lambda pair: pair[1])
    return Choice(baseline=best[0], value=best[1], tried=tuple(tried))


def _checked(history: Any, items: int | None = None) -> Any:
    """The history as float32 rows, refused where it has no items or impossible counts."""
    rows = sparse.csr_array(history, dtype=np.float32)
    if rows.shape[1] == 0 or (items is not None and rows.shape[1] != items):
        raise DataError(
            f"the history has {rows.shape[1]} items; need {items or 'at least 1'} (the catalogue's)"
        )
    if not np.isfinite(rows.data).all() or (rows.data < 0).any():
        raise DataError("the history holds a negative, NaN or infinite count; counts must be ≥ 0")
    return rows


def _nearest(similar: Scores, neighbours: int) -> Any:
    """Sparse `[items, block]` with the largest `neighbours` entries of each column."""
    if neighbours < len(similar):
        # Stable, so that of equally similar items the lower number is kept.
        order = np.argsort(-similar, axis=0, kind="stable")[neighbours:]
        np.put_along_axis(similar, order, 0, axis=0)
    return sparse.csc_array(similar)

"""Ranking metrics of many users at once; one array entry a user.

A *ranked list* is an int64 matrix `[users, k]` of item numbers, best first, padded at the end with
`NO_ITEM`. A *relevant set* is a sparse matrix `[users, items]` in which every non-zero counts once.
A user without relevant items has no accuracy: her entries are NaN, and means skip them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from crossrec_model.errors import DataError
from crossrec_model.topk import given_scorer, ranked

Floats = NDArray[np.float64]
Items = NDArray[np.int64]


def binary(matrix: Any) -> Any:
    """A copy as `csr_array` of booleans: every non-zero counts once, in item order."""
    rows = sparse.csr_array(matrix, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows.astype(bool)


def top_items(scores: NDArray[Any], excluded: Any, k: int) -> Items:
    """The `k` best items of each user, best first.

    Args:
        scores: `[users, items]`; compared as float32. −∞ means "never show this item".
        excluded: sparse `[users, items]`; non-zeros are never shown.
        k: length of the lists, at least 1; a list ends early where items run out.

    Returns:
        int64 `[users, k]`, padded with `NO_ITEM`. Equal scores are ordered by item number.

    Raises:
        DataError: a score is NaN or +∞, shapes differ, there are no items, or `k` < 1.
    """
    if k < 1:
        raise DataError(f"a list of {k} items can't be ranked; ask for at least 1")
    values = _checked_scores(scores, excluded)
    users, items = values.shape
    best, _ = ranked(given_scorer(values), users=users, items=items, k=k, hidden=binary(excluded))
    return best


def _checked_scores(scores: NDArray[Any], *matrices: Any) -> NDArray[np.float32]:
    """The scores as float32, once they and the shapes beside them are usable."""
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise DataError(f"scores have shape {scores.shape}; need [users, items] with ≥ 1 item")
    for matrix in matrices:
        if matrix.shape != scores.shape:
            raise DataError(
                f"scores have shape {scores.shape}, a set beside them {matrix.shape}; "
                "give both the same users and items"
            )
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = np.asarray(scores, dtype=np.float32)
    bad = np.isnan(values) | np.isposinf(values)
    if bad.any():
        user, item = np.argwhere(bad)[0]
        raise DataError(
            f"the score of user row {user} for item {item} is {values[user, item]}; "
            "scores must be finite numbers (or −∞ for an item never to be shown)"
        )
    return values


def hits(ranked: Items, relevant: Any) -> NDArray[np.bool_]:
    """Boolean `[users, k]`: whether the item in each place is relevant."""
    sets = binary(relevant)
    if sets.shape[0] != len(ranked):
        raise DataError(f"{len(ranked)} ranked lists, but relevant sets of {sets.shape[0]} users")
    dense = np.zeros((sets.shape[0], sets.shape[1] + 1), dtype=bool)  # last column: NO_ITEM
    dense[sets.nonzero()] = True
    found: NDArray[np.bool_] = np.take_along_axis(dense, ranked, axis=1)
    return found


def accuracy(found: NDArray[np.bool_], relevant_count: NDArray[Any], k: int) -> dict[str, Floats]:
    """nDCG, recall, precision, hit rate and MRR at `k`, each `[users]`.

    Gains are 0 or 1, the discount is 1 / log2(place + 1) (Järvelin and Kekäläinen 2002), and the
    ideal list holds min(k, relevant) hits. Precision divides by `k` even where a list is shorter.

    Args:
        found: boolean `[users, ≥ k or all items]` from `hits`.
        relevant_count: `[users]`, sizes of the relevant sets; 0 gives NaN.
        k: the cut-off, at least 1; may exceed the length of the lists.
    """
    if k < 1:
        raise DataError(f"cut-off {k} is too small; use at least 1")
    size = np.asarray(relevant_count, dtype=np.float64)
    size = np.where(size > 0, size, np.nan)  # NaN runs through every metric below
    cut = found[:, :k]
    discount = 1 / np.log2(np.arange(2, k + 2))  # [k]
    ideal = np.concatenate([[0.0], np.cumsum(discount)])  # [k + 1]
    best = ideal[np.minimum(np.nan_to_num(size), k).astype(np.int64)]
    count = cut.sum(axis=1)
    known = np.where(np.isnan(size), np.nan, 1.0)
    any_hit = count > 0
    first = cut.argmax(axis=1) + 1 if cut.shape[1] else np.ones(len(cut))
    return {
        f"ndcg@{k}": (cut @ discount[: cut.shape[1]]) / np.where(best > 0, best, np.nan),
        f"recall@{k}": count / size,
        f"precision@{k}": count / k * known,
        f"hit_rate@{k}": any_hit * known,
        f"mrr@{k}": np.where(any_hit, 1 / first, 0.0) * known,
    }


def auc(scores: NDArray[Any], relevant: Any, excluded: Any) -> Floats:
    """Chance that a relevant item scores above an irrelevant one, ties counted half; `[users]`.

    Only items that are not excluded take part. NaN where either side of the pair is missing.
    This is the Mann-Whitney statistic over its largest value.
    """
    values = _checked_scores(scores, relevant, excluded).copy()
    wanted, masked = binary(relevant), binary(excluded)
    _refuse_overlap(wanted, masked)
    values[masked.nonzero()] = np.inf  # sorts behind all that may be shown
    ordered = np.sort(values, axis=1)
    result = np.full(len(values), np.nan)
    shown = values.shape[1] - np.diff(masked.indptr)
    for user in range(len(values)):
        items = wanted.indices[wanted.indptr[user] : wanted.indptr[user + 1]]
        positives, negatives = len(items), shown[user] - len(items)
        if positives == 0 or negatives == 0:
            continue
        row = ordered[user, : shown[user]]
        below = np.searchsorted(row, values[user, items], side="left")
        through = np.searchsorted(row, values[user, items], side="right")
        rank_sum = float((below + through + 1).sum()) / 2  # mid-ranks, from 1
        result[user] = (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
    return result


def _refuse_overlap(wanted: Any, masked: Any) -> None:
    """An item both relevant and masked could never be found: the caller's sets contradict."""
    both = wanted.multiply(masked)
    if both.nnz:
        user = int(both.nonzero()[0][0])
        raise DataError(
            f"user row {user} has {both[[user], :].nnz} item(s) both relevant and excluded; "
            "take them out of one of the two sets"
        )


def candidate_ndcg(target: NDArray[Any], negatives: NDArray[Any], k: int = 10) -> Floats:
    """Gain (nDCG at `k`) of one relevant item among sampled candidates; `[users]`.

    Args:
        target: `[users]`, the relevant item's score.
        negatives: `[users, candidates]`, the others' scores. A tie counts against the target.
    """
    if np.isnan(target).any() or np.isnan(negatives).any():
        raise DataError("a candidate's score is NaN; scores must be numbers")
    place = 1 + (negatives >= target[:, None]).sum(axis=1)
    gain: Floats = np.where(place <= k, 1 / np.log2(place + 1), 0.0)
    return gain

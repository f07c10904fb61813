"""Beyond accuracy: how varied, how surprising and how broad ranked lists are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from crossrec_model.errors import DataError
from crossrec_model.evaluation.metrics import Floats, Items
from crossrec_model.topk import NO_ITEM


def category_features(paths: Iterable[Sequence[str] | None]) -> Any:
    """Sparse float64 `[items, prefixes]`: 1 for every prefix of an item's category path.

    Two items that share more of the path, root first, are more alike: with paths of length 3, the
    cosine is 1/3 where only the department agrees and 2/3 where the next level agrees too. An
    item without a path (null or empty) gets an empty row.
    """
    numbers: dict[tuple[str, ...], int] = {}
    indices: list[int] = []
    starts = [0]
    for path in paths:
        steps = tuple(path or ())
        indices += [
            numbers.setdefault(steps[:depth], len(numbers)) for depth in range(1, len(steps) + 1)
        ]
        starts.append(len(indices))
    data = np.ones(len(indices))
    return sparse.csr_array((data, indices, starts), shape=(len(starts) - 1, max(len(numbers), 1)))


def diversity(ranked: Items, features: Any) -> Floats:
    """Intra-list diversity (Ziegler et al. 2005): mean of 1 − cosine over a list's pairs.

    Args:
        ranked: `[users, k]`, padded with `NO_ITEM`.
        features: sparse or dense `[items, features]`, such as `category_features`. An item with an
            all-zero row is unlike every other item (cosine 0).

    Returns:
        `[users]`, in [0, 1] for non-negative features (at most 2 otherwise). NaN for lists of
        fewer than two items.

    Raises:
        DataError: features hold NaN or infinity, or have too few rows.
    """
    rows = sparse.csr_array(features, dtype=np.float64)
    if not np.isfinite(rows.data).all():
        raise DataError("item features hold NaN or infinity; diversity needs finite numbers")
    picked = _picked(ranked, rows.shape[0])
    length = np.sqrt(rows.multiply(rows).sum(axis=1))
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    unit = sparse.diags_array(scale) @ rows  # [items, features], rows of length 1 or 0
    total = sparse.csr_array(picked @ unit)  # [users, features]
    # Sum over ordered pairs of cosines = |sum of the unit vectors|² − sum of their own |·|².
    pair_sum = total.multiply(total).sum(axis=1) - picked @ (length > 0).astype(np.float64)
    count = (ranked != NO_ITEM).sum(axis=1)
    pairs = np.where(count > 1, count * (count - 1), np.nan)
    result: Floats = 1 - pair_sum / pairs
    return result


def novelty(ranked: Items, buyers: Any, population: int) -> Floats:
    """Mean self-information, −log2(share of users who bought the item); `[users]`, in bits.

    Zhou et al. 2010, over a list's items. An item that nobody bought counts as bought by one user,
    so values lie in [0, log2(population)]. NaN for an empty list.

    Args:
        ranked: `[users, k]`, padded with `NO_ITEM`.
        buyers: `[items]`, how many users bought the item in the history.
        population: how many users the history has.
    """
    counts = np.asarray(buyers)
    if len(counts) and (counts.min() < 0 or counts.max() > population):
        raise DataError(
            f"buyers range from {counts.min()} to {counts.max()}; they must lie between 0 "
            f"and the {population} users of the history"
        )
    picked = _picked(ranked, len(counts))
    information = -np.log2(np.maximum(counts, 1) / max(population, 1))
    count = (ranked != NO_ITEM).sum(axis=1)
    result: Floats = (picked @ information) / np.where(count > 0, count, np.nan)
    return result


def coverage(ranked: Items, items: int) -> float:
    """Share of a catalogue of `items` that stands in at least one list; 0 without users."""
    if items < 1:
        raise DataError("the catalogue has no items; coverage needs at least 1")
    shown = np.unique(ranked[ranked != NO_ITEM])
    if len(shown) and shown[-1] >= items:
        raise DataError(f"a list shows item {shown[-1]}, but the catalogue has {items} items")
    return len(shown) / items


def _picked(ranked: Items, items: int) -> Any:
    """Sparse float64 `[users, items]` with 1 for every item in a user's list."""
    users, places = np.nonzero(ranked != NO_ITEM)
    columns = ranked[users, places]
    if len(columns) and columns.max() >= items:
        raise DataError(f"a list shows item {columns.max()}, but only {items} items are described")
    return sparse.csr_array((np.ones(len(users)), (users, columns)), shape=(len(ranked), items))

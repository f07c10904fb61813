"""Item-item weights in closed form: what a history says about every item, learnt without a gradient step.

`item_weights` is the linear autoencoder with a zero diagonal of Steck 2019 (EASE, equation 8).
`ordered_weights` is its counterpart for what comes next: ridge regression from faded histories to the
items of the following visit (Choi et al. 2021, "Session-aware linear item-item models", section 4).
Both read sums over users only: a sum of platforms' sums gives the weights of all their users.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from crossrec_model.errors import DataError

#: Columns of a large matrix that are worked on at once.
BLOCK = 1024


def item_weights(gram: NDArray[Any], l2: float) -> NDArray[Any]:
    """B [items, items] = I − P·diag(1 / diag P) with P = (XᵀX + λI)⁻¹; the Gram matrix XᵀX is overwritten.

    Row: an item of a history; column: an item that is ranked; the diagonal is 0. Time grows with items³.

    Raises:
        DataError: if the matrix is not positive definite in its precision.
    """
    gram[np.diag_indices(len(gram))] += l2
    weights = inverse(gram, l2)
    weights /= -np.diag(weights).copy()[None, :]
    np.fill_diagonal(weights, 0)
    return weights


def ordered_weights(sources: Any, targets: Any, l2: float) -> NDArray[Any]:
    """B = (SᵀS + λI)⁻¹ SᵀT [items, items], from sparse rows [visits, items] to those of the next visit.

    Raises:
        DataError: as `item_weights`.
    """
    total = inverse(gram_of(sources, l2), l2)
    weights: NDArray[Any] = np.empty_like(total)
    crossed = sources.T.tocsr() @ targets.tocsc()
    for part in blocks(total.shape[0]):
        weights[:, part] = total @ crossed[:, part].toarray()
    return weights


def gram_of(rows: Any, l2: float = 0.0) -> NDArray[Any]:
    """XᵀX + λI, dense `[items, items]`, made in blocks so that no large sparse product exists."""
    items = rows.shape[1]
    gram = np.empty((items, items), dtype=rows.dtype)
    for part in blocks(items):
        gram[part] = (rows[:, part].T @ rows).toarray()
    gram[np.diag_indices(items)] += l2
    return gram


def inverse(gram: NDArray[Any], l2: float) -> NDArray[Any]:
    """Inverse of a symmetric positive definite matrix, overwriting it."""
    single = gram.dtype == np.float32
    factorise, invert = (lapack.spotrf, lapack.spotri) if single else (lapack.dpotrf, lapack.dpotri)
    # The transpose of a symmetric C-ordered array is the same matrix in LAPACK's order: no copy.
    factor, failed = factorise(gram.T, lower=1, overwrite_a=1, clean=0)
    if not failed:
        half, failed = invert(factor, lower=1, overwrite_c=1)
    if failed:
        raise DataError(
            f"EASE can't be solved with l2 = {l2} in {gram.dtype}; raise l2 or set double=True"
        )
    for part in blocks(len(half)):  # mirror the lower triangle, block by block
        half[part.start : part.stop, part.stop :] = half[part.stop :, part].T
        corner = np.tril(half[part, part])
        half[part, part] = corner + np.tril(corner, -1).T
    whole: NDArray[Any] = half.T  # symmetric by now, and C-ordered again: `rows @ whole` won't copy
    return whole


def blocks(items: int) -> list[slice]:
    """Ranges of at most `BLOCK` that cover `items`."""
    return [slice(start, min(start + BLOCK, items)) for start in range(0, items, BLOCK)]

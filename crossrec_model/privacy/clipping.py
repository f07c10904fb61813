"""Bounds on one platform's update."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crossrec_model.secagg.errors import NotFiniteError


def clip_update(update: npt.NDArray[np.float32], *, norm: float, bound: float) -> float:
    """Scale an update float32 [d] in place to a Euclidean norm and a bound on each coordinate.

    Returns:
        The factor it was scaled by, 1.0 where it was within both.

    Raises:
        NotFiniteError: for an update that holds NaN or an infinity; it is left as it was.
    """
    if not len(update):
        return 1.0
    # In double precision: the squares of large finite numbers must not overflow to an infinity.
    length = float(np.sqrt(np.einsum("i,i->", update, update, dtype=np.float64)))
    largest = float(max(update.max(), -update.min()))
    if not (np.isfinite(length) and np.isfinite(largest)):
        raise NotFiniteError("the update holds NaN or an infinity; nothing is sent")
    factor = min(1.0, norm / length if length else 1.0, bound / largest if largest else 1.0)
    if factor < 1.0:
        # Multiplied in double precision: float32 would round the smallest factors.
        np.multiply(update, factor, out=update, dtype=np.float64, casting="unsafe")
        # Rounding may leave the last bit above the bound.
        np.clip(update, -bound, bound, out=update)
    return factor

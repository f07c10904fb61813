"""What a platform adds to a round, as one vector: [weight · update, weight, weight · metrics].

The coordinator only ever adds such vectors and reads the sum. That is what lets secure aggregation
hide every single one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossrec_model.errors import WireError
from crossrec_model.wire.codec import FloatVector


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean:
    """The weighted mean over a cohort: update float64 [d], total weight, metrics float64 [m]."""

    update: npt.NDArray[np.float64]
    weight: float
    metrics: npt.NDArray[np.float64]


def pack(
    update: npt.NDArray[np.floating], weight: float, metrics: tuple[float, ...]
) -> FloatVector:
    """Return the contribution float32 [d + 1 + m] of an update float [d], its weight and metrics.

    A weight of 0 is allowed: such a platform moves nothing.

    Raises:
        WireError: for a weight below 0, or a number that is NaN, infinite or too large for float32.
    """
    if not (np.isfinite(weight) and weight >= 0):
        raise WireError(f"weight is {weight}; a finite number of at least 0 is needed")
    tail = np.array([1.0, *metrics], dtype=np.float64)
    whole = np.concatenate([np.asarray(update, dtype=np.float64), tail]) * weight
    if not (np.abs(whole) <= np.finfo(np.float32).max).all():
        raise WireError("the update holds NaN, an infinity or a number beyond float32; check it")
    return whole.astype(np.float32)


def mean_of(total: npt.NDArray[np.float64], dimension: int) -> Mean:
    """Return the weighted mean in a sum of contributions, float64 [dimension + 1 + m].

    Raises:
        WireError: if the sum is shorter than dimension + 1, or its total weight is not above 0.
    """
    if len(total) <= dimension:
        raise WireError(f"the sum has {len(total)} numbers; at least {dimension + 1} are needed")
    weight = float(total[dimension])
    if not weight > 0:
        raise WireError(f"the cohort's total weight is {weight}; it must be above 0")
    scaled = total / weight
    return Mean(update=scaled[:dimension], weight=weight, metrics=scaled[dimension + 1 :])

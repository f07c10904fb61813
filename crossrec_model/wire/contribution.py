"""What a platform adds to a sum, and what the coordinator reads from it.

The sum is over [weight · update, weight, weight · metrics]: one vector holds everything, so that an
aggregation that hides single vectors hides the weights and metrics too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crossrec_model.wire.codec import FloatVector

#: Largest size of a metric that a sum takes; a metric that is not named here lies in [-1, 1].
METRIC_BOUNDS: Final = {"loss": 64.0}


def metric_bounds(names: tuple[str, ...]) -> tuple[float, ...]:
    """Return the largest size of each metric."""
    return tuple(METRIC_BOUNDS.get(name, 1.0) for name in names)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contribution:
    """One platform's part: update float32 [d], its weight of at least 0, metrics.

    Whoever seals it may overwrite `update`.
    """

    update: FloatVector
    weight: float
    metrics: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean:
    """The weighted mean over a cohort: update float64 [d], total weight, metrics float64 [m].

    `update_error` and `metric_errors` [m] bound how far rounding can have moved any coordinate of
    the update, and each metric.
    """

    update: npt.NDArray[np.float64]
    weight: float
    metrics: npt.NDArray[np.float64]
    update_error: float = 0.0
    metric_errors: tuple[float, ...] = ()

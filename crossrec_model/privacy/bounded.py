"""A sum over users whose bound travels with it, and the two ways in which it may leave a platform."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crossrec_model.config import AggregationConfig
from crossrec_model.errors import ConfigError
from crossrec_model.privacy.noise import NoiseSource

#: Deviations of noise that the grid keeps room for: beyond it a number would be cut, once in 10^30.
_ROOM: Final = 12.0


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundedSum:
    """`values` float64 [d]; one user more or less moves them by at most `sensitivity` (L2).

    Private until noise is added: neither the values nor anything computed from them may be sent.
    """

    values: npt.NDArray[np.float64]
    sensitivity: float

    def __repr__(self) -> str:
        return f"BoundedSum([{len(self.values)} numbers], sensitivity={self.sensitivity})"

    def noised(self, multiplier: float, source: NoiseSource) -> npt.NDArray[np.float32]:
        """The values with normal noise of deviation `multiplier` x sensitivity: safe by itself."""
        noise = source.normal(len(self.values))
        noise *= multiplier * self.sensitivity
        noise += self.values
        return noise.astype(np.float32)

    def on_grid(
        self,
        limits: AggregationConfig,
        *,
        multiplier: float,
        honest: int,
        source: NoiseSource,
        less: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """The values rounded to the grid, with this platform's share of the noise: safe in a sum only.

        `less` [d] is public; its nearest grid points are subtracted.

        A sum of `honest` such shares has noise of at least `multiplier` x the sensitivity. Rounding
        is v → ⌊v / step + u⌋ with u uniform, drawn before and without regard to the values. For the
        same u two values a, b differ by less than |a - b| / step + 1 afterwards, and not at all where
        a = b; so a sensitivity of Δ becomes at most Δ / step + √d steps. The noise is that of
        discrete normal numbers: n shares of variance s² have the law of one of n·s² to within
        5 n exp(-π² s²) in every coordinate (Kairouz, Liu & Steinke 2021, Proposition 14), which is 0
        for s of at least 8.

        Returns:
            Multiples of the grid's step, float32 [d]. `Grid` encodes them as they are if the step is a
            power of two and `levels` at most 2^24; float32 can't hold others, which move by one step
            at most, after all noise.

        Raises:
            ConfigError: for a grid too coarse or too narrow for the noise.
        """
        step = limits.step
        sensitivity = self.sensitivity / step + math.sqrt(len(self.values))
        deviation = multiplier * sensitivity / math.sqrt(honest)
        room = limits.levels - math.ceil(_ROOM * deviation)
        if room < limits.levels / 2 or deviation < 8.0:
            raise ConfigError(
                f"the share of noise is {deviation:.3g} of {limits.levels} grid steps; between 8 and "
                f"{limits.levels / 2 / _ROOM:.3g} are needed: change privacy.population or "
                "aggregation.bound in the plan"
            )
        whole = np.floor(self.values / step + source.uniform(len(self.values)))
        if less is not None:
            whole -= np.rint(less / np.float64(step))
        # Held within the grid before the noise: that brings no two sums further apart.
        np.clip(whole, -room, room, out=whole)
        whole += source.discrete_normal(len(whole), deviation)
        np.clip(whole, -limits.levels, limits.levels, out=whole)
        return (whole * step).astype(np.float32)

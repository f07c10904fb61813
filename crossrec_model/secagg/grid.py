"""Contributions as integers on a grid, and the mean in a sum of such integers.

The vector that is summed is [w · update, w, w · metrics] of a weight w, each block with a bound and a
step of bound / levels: B · W for the update, W for the weight, M · W for a metric, where B bounds an
update's coordinates, W a weight and M the metric. So every integer lies in [-levels, levels], and a
sum over n platforms can't wrap modulo 2^bits if n · levels <= 2^(bits - 1) - 1.

Rounding is stochastic: a value between two integers becomes the upper one with the probability of its
distance from the lower one, to within 2^-32, and an integer always stays itself. So no rounding
error is larger than a step, and errors average out over platforms and rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from crossrec_model.errors import ConfigError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import ImplausibleSumError, NotFiniteError, ValueOutOfBoundsError
from crossrec_model.secagg.masking import CHUNK_BYTES, WIDTHS, KeyStream, Numbers, number_type
from crossrec_model.wire.contribution import Mean, metric_bounds

if TYPE_CHECKING:
    from crossrec_model.config import AggregationConfig

#: Numbers that are encoded and decoded at once.
CHUNK: Final = CHUNK_BYTES // 4
#: Numbers are rounded in fixed point, with this many bits after the point.
_FRACTION_BITS: Final = 32
#: Relative error of a few double-precision operations, with room to spare.
_SLACK: Final = 2.0**-48


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How contributions become integers: the same for all platforms of a sum.

    Attributes:
        levels: steps from 0 to each bound, 1 to 2^31 - 1.
        bound: largest size of an update's coordinate, as the nearest float32.
        max_weight: largest weight.
        metric_bounds: largest size of each metric.

    Raises:
        ConfigError: for levels out of range, or a bound that is not finite and positive.
    """

    levels: int
    bound: float
    max_weight: float
    metric_bounds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.levels < 1 << 31:
            raise ConfigError(f"levels are {self.levels}; 1 to {(1 << 31) - 1} are possible")
        bounds = {"bound": self.bound, "max_weight": self.max_weight}
        bounds |= {f"metric_bounds[{at}]": m for at, m in enumerate(self.metric_bounds)}
        for name, value in bounds.items():
            # So that no product of two bounds overflows, and float32 holds each with full precision.
            if not 1e-30 <= value <= 1e30:
                raise ConfigError(f"{name} is {value}; a number of 1e-30 to 1e30 is needed")

    @classmethod
    def of(cls, limits: AggregationConfig, metrics: tuple[str, ...]) -> Grid:
        """Return the grid of a plan for contributions with these metrics."""
        return cls(
            levels=limits.levels,
            bound=limits.bound,
            max_weight=limits.max_weight,
            metric_bounds=metric_bounds(metrics),
        )

    def bits(self, members: int) -> int:
        """Return the least of 16, 24 and 32 bits in which no sum over `members` can wrap.

        Raises:
            ConfigError: if 32 are too few.
        """
        for bits in WIDTHS:
            if members * self.levels < 1 << (bits - 1):
                return bits
        raise ConfigError(
            f"{members} platforms of {self.levels} levels need more than 32 bits; "
            f"lower the levels to at most {((1 << 31) - 1) // members}"
        )

    def length(self, dimension: int) -> int:
        """Return how many numbers are summed for updates of `dimension` coordinates."""
        return dimension + 1 + len(self.metric_bounds)

    def encode_into(
        self,
        update: npt.NDArray[np.float32],
        weight: float,
        metrics: tuple[float, ...],
        *,
        bits: int,
        randomness: SystemRandomness,
    ) -> Iterator[Numbers]:
        """Check a contribution, then return its integers modulo 2^bits, chunk by chunk.

        Together the chunks are the vector of `length(len(update))` numbers, in order. All but the
        last are of the update: chunk i holds coordinates CHUNK · i up to CHUNK · (i + 1) or the end.
        The last one holds the weight and the metrics alone. (Without coordinates there is only it.)

        Each chunk is the same scratch memory, valid until the next is asked for; mask it in place.
        The coordinates of a chunk were read when it is handed out, and a packed number is no longer
        than a float32: chunk i of the update may be packed to byte CHUNK · i · bits / 8 of the
        update's own memory before the next is asked for. The last chunk needs memory of its own.

        Args:
            update: float32 [d], contiguous; not changed.
            weight: 0 to `max_weight`; 0 moves nothing.
            metrics: one for each of `metric_bounds`.
            bits: as `bits` gives for the sum.

        Raises:
            NotFiniteError, ValueOutOfBoundsError: for what the grid can't hold. Before anything is
                produced: at the call, not at the first chunk.
        """
        number_type(bits)
        self._check(update, weight, metrics)
        return self._encode(update, weight, metrics, bits, KeyStream(randomness.bytes(32)))

    def decode(self, total: Numbers, dimension: int, *, bits: int, members: int) -> Mean:
        """Return the weighted mean in a sum of encoded contributions, and its rounding error.

        Each contribution is off by less than a step, so the sum X of a block is off by at most
        e = members · step, and likewise the weight W by e_w. Where X', W' are decoded and m' = X' / W',
        the mean is off by |X / W - X' / W'| <= (e + |m'| e_w) / (W' - e_w), which is infinite where W'
        does not exceed e_w. The stated errors are the largest over the coordinates, and one for each
        metric, with room for double precision's own rounding.

        Args:
            total: [length(dimension)], modulo 2^bits; the bits above are not read.
            members: how many contributions are in the sum.

        Raises:
            ValueError: for a total of another length or type.
            ImplausibleSumError: if the total weight is not above 0, or a number is larger than
                `members` contributions can make it: one of them was not on the grid.
        """
        if len(total) != self.length(dimension) or total.dtype != number_type(bits):
            raise ValueError(
                f"the sum has {len(total)} {total.dtype} numbers; "
                f"{self.length(dimension)} of {number_type(bits)} are needed"
            )
        tail = _signed(total[dimension:], bits).astype(np.float64)
        weight = float(tail[0]) * self.max_weight / self.levels
        most = members * self.levels
        if not (weight > 0 and float(np.abs(tail).max()) <= most):
            raise ImplausibleSumError(
                "the sum's weight or metrics are not those of any contributions: no platform has "
                "data, or one did not follow the protocol"
            )
        # The weight's step cancels: a mean is the ratio of two integers, times the block's bound.
        scales = np.array(self.metric_bounds, dtype=np.float64) / float(tail[0])
        metrics = tail[1:] * scales
        update = np.empty(dimension, dtype=np.float64)
        limit, largest = self._limit, 0.0
        for start in range(0, dimension, CHUNK):
            part = update[start : start + CHUNK]
            numbers = _signed(total[start : start + len(part)], bits)
            if len(numbers) and max(int(numbers.max()), -int(numbers.min())) > most:
                raise ImplausibleSumError(
                    "a coordinate of the sum is beyond the grid's bounds: the platforms were sent "
                    "different models, or one did not follow the protocol"
                )
            np.multiply(numbers, limit / float(tail[0]), out=part)
            largest = max(largest, float(part.max()), -float(part.min()))
        return Mean(
            update=update,
            weight=weight,
            metrics=metrics,
            update_error=self._error(limit, largest, weight, members) if dimension else 0.0,
            metric_errors=tuple(
                self._error(bound, abs(float(metric)), weight, members)
                for bound, metric in zip(self.metric_bounds, metrics, strict=True)
            ),
        )

    @property
    def _limit(self) -> float:
        """The bound of a coordinate: it is float32, so that this may be the next one above."""
        return float(np.float32(self.bound))

    def _error(self, bound: float, mean: float, weight: float, members: int) -> float:
        """The largest error of a mean of values with a bound; see `decode`."""
        # Encoding in double precision adds a few last places of the value itself.
        step = self.max_weight * (1 / self.levels + _SLACK) * members
        if weight <= step:
            return math.inf
        error = (bound + mean) * step / (weight - step)
        return error * (1 + _SLACK) + mean * _SLACK

    def _check(
        self, update: npt.NDArray[np.float32], weight: float, metrics: tuple[float, ...]
    ) -> None:
        """Refuse what the grid can't hold; see `encode_into`."""
        if update.dtype != np.float32 or update.ndim != 1 or not update.flags.c_contiguous:
            raise ValueError(f"the update is {update.dtype} {update.shape}; float32 [d] is needed")
        if len(metrics) != len(self.metric_bounds):
            raise ValueError(f"{len(metrics)} metrics came; {len(self.metric_bounds)} are needed")
        _check_value("weight", weight, self.max_weight)
        if weight < 0:
            raise ValueOutOfBoundsError(f"the weight is {weight}; at least 0 is needed")
        for at, (value, bound) in enumerate(zip(metrics, self.metric_bounds, strict=True)):
            _check_value(f"metric {at + 1}", value, bound)
        for start in range(0, len(update), CHUNK):
            part = update[start : start + CHUNK]
            # A NaN goes through both, and then fails every comparison.
            high, low = float(part.max()), float(part.min())
            if not (high <= self._limit and low >= -self._limit):
                worst = high if high > -low else low
                _check_value("a coordinate of the update", worst, self._limit)

    def _encode(
        self,
        update: npt.NDArray[np.float32],
        weight: float,
        metrics: tuple[float, ...],
        bits: int,
        stream: KeyStream,
    ) -> Iterator[Numbers]:
        rounding = _Rounding(bits, min(CHUNK, max(len(update), 1 + len(metrics))), stream)
        factor = _scale(self.levels, self._limit, self.max_weight) * weight
        for start in range(0, len(update), CHUNK):
            yield rounding.apply(update[start : start + CHUNK], factor)
        values = np.array([1.0, *metrics], dtype=np.float64)
        factors = [
            _scale(self.levels, bound, self.max_weight) * weight
            for bound in (1.0, *self.metric_bounds)
        ]
        yield rounding.apply(values, np.array(factors))


class _Rounding:
    """Rounds numbers to integers modulo 2^bits, up or down by chance, in one scratch memory."""

    def __init__(self, bits: int, longest: int, stream: KeyStream) -> None:
        self._stream = stream
        self._scaled = np.empty(longest, dtype=np.float64)
        self._fixed = np.empty(longest, dtype=np.int64)
        self._random = np.empty(longest, dtype="<u4")
        self._whole = np.empty(longest, dtype=number_type(bits))

    def apply(
        self,
        values: npt.NDArray[np.float32] | npt.NDArray[np.float64],
        factor: float | npt.NDArray[np.float64],
    ) -> Numbers:
        """Return values · factor / 2^32, rounded; the same memory each time."""
        count = len(values)
        scaled, fixed = self._scaled[:count], self._fixed[:count]
        random, whole = self._random[:count], self._whole[:count]
        np.multiply(values, factor, out=scaled, dtype=np.float64)
        np.copyto(fixed, scaled, casting="unsafe")
        self._stream.fill(random.view(np.uint8))
        # In fixed point this is floor(x + u) for u uniform in [0, 1), without any further rounding.
        np.add(fixed, random, out=fixed)
        np.right_shift(fixed, _FRACTION_BITS, out=fixed)
        np.copyto(whole, fixed, casting="unsafe")
        return whole


def _scale(levels: int, bound: float, max_weight: float) -> float:
    """Fixed-point units for each unit of weight times value, so that no product passes `levels`.

    Products are rounded, but never against the order of their factors: it is enough that the two
    largest factors give no more than `levels`.
    """
    most = math.ldexp(levels, _FRACTION_BITS)
    scale = most / bound / max_weight
    while scale * max_weight * bound > most:
        scale = math.nextafter(scale, 0.0)
    return scale


def _check_value(what: str, value: float, bound: float) -> None:
    if not math.isfinite(value):
        raise NotFiniteError(f"{what} is {value}; a finite number is needed, nothing is sent")
    if abs(value) > bound:
        raise ValueOutOfBoundsError(
            f"{what} is {value}, beyond the plan's bound of {bound}; clip it before it is sent"
        )


def _signed(numbers: Numbers, bits: int) -> npt.NDArray[np.int32] | npt.NDArray[np.int16]:
    """The numbers of smallest size that are equal modulo 2^bits."""
    if bits == 16:
        return numbers.view(np.int16)
    shift = 32 - bits
    return (numbers << shift).view(np.int32) >> shift

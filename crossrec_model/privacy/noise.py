"""Noise from the operating system's source: an AES-256-CTR key stream turned into normal numbers.

torch's CPU generator keeps 32 bits of its seed and no general generator withstands somebody who
knows part of its output, so neither may stand between a user and whoever gets the model. A key from
the operating system serves for one `NoiseSource`. None of this takes a seed.
"""

from __future__ import annotations

from typing import Final, final

import numpy as np
import numpy.typing as npt

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.masking import CHUNK_BYTES, KeyStream

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Numbers made at once; two of 8 bytes each go into a pair of normal numbers.
_BLOCK: Final = CHUNK_BYTES // 8
_UNIT: Final = 2.0**-53


@final
class NoiseSource:
    """Uniform, normal and discrete normal numbers that nobody can foresee or repeat."""

    def __init__(self, randomness: SystemRandomness) -> None:
        self._stream = KeyStream(randomness.bytes(32))
        self._words = np.empty(_BLOCK, dtype="<u8")

    def uniform(self, count: int) -> Float64:
        """`count` numbers in [0, 1), multiples of 2^-53."""
        out = np.empty(count)
        for start in range(0, count, _BLOCK):
            part = out[start : start + _BLOCK]
            np.multiply(self._draw(len(part)), _UNIT, out=part)
        return out

    def chosen(self, population: int, rate: float) -> Int64:
        """Poisson sampling: each of 0 … population - 1 with probability `rate` on its own."""
        return np.flatnonzero(self.uniform(population) < rate)

    def normal(self, count: int) -> Float64:
        """`count` standard normal numbers (Box & Muller 1958), of size up to 8.57."""
        out = np.empty(count)
        for start in range(0, count, _BLOCK):
            part = out[start : start + _BLOCK]
            self._normal_into(part)
        return out

    def discrete_normal(self, count: int, deviation: float) -> Int64:
        """`count` integers with P(x) ∝ exp(-x² / 2σ²), σ = `deviation` of at least 1.

        Canonne, Kamath & Steinke 2020, Algorithm 3: a discrete Laplace number of scale t = ⌊σ⌋ + 1 is
        kept with probability exp(-(|y| - σ²/t)² / 2σ²). Probabilities are right to about 2^-50.

        Raises:
            ValueError: for a deviation outside [1, 2^40].
        """
        if not 1.0 <= deviation <= 2.0**40:
            raise ValueError(f"deviation is {deviation}; 1 to 2^40 is needed")
        out, filled = np.empty(count, dtype=np.int64), 0
        while filled < count:
            kept = self._kept(min(_BLOCK, 2 * (count - filled) + 16), deviation)[: count - filled]
            out[filled : filled + len(kept)] = kept
            filled += len(kept)
        return out

    def _kept(self, tries: int, deviation: float) -> Int64:
        scale = np.floor(deviation) + 1.0
        # ⌊t · E⌋ for a standard exponential E is geometric of ratio exp(-1 / t).
        size = np.floor(-np.log1p(-self.uniform(tries)) * scale)
        negative = self.uniform(tries) < 0.5
        # -0 would make zero twice as likely.
        twice = negative & (size == 0)
        chance = np.exp(-((size - deviation**2 / scale) ** 2) / (2 * deviation**2))
        kept = ~twice & (self.uniform(tries) < chance)
        signed: Int64 = np.where(negative, -size, size)[kept].astype(np.int64)
        return signed

    def _normal_into(self, out: Float64) -> None:
        pairs = (len(out) + 1) // 2
        words = self._draw(2 * pairs)
        # 1 - u lies in (0, 1]: the logarithm is finite.
        radius = words[:pairs] * -_UNIT
        np.log1p(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle = words[pairs:] * (2 * np.pi * _UNIT)
        np.multiply(radius, np.cos(angle), out=out[:pairs])
        rest = len(out) - pairs
        np.multiply(radius[:rest], np.sin(angle[:rest]), out=out[pairs:])

    def _draw(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count` words of the stream, 53 random bits each; the same memory each time."""
        words = self._words[:count]
        self._stream.fill(words.view(np.uint8))
        np.right_shift(words, 11, out=words)
        return words


def unseeded_generator(randomness: SystemRandomness) -> np.random.Generator:
    """Draws that must be secret and independent from user to user, but are no noise: moments, negatives.

    The bound on one user's influence holds for every fixed outcome of these draws.
    """
    return np.random.default_rng(np.frombuffer(randomness.bytes(32), dtype=np.uint32))

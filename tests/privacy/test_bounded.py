"""Bounded sums: their noise, the grid they leave on, and how far one user moves them there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crossrec_model.config import AggregationConfig
from crossrec_model.errors import ConfigError
from crossrec_model.privacy.bounded import BoundedSum
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.grid import Grid

CHANCE = 1e-9
#: Three platforms in 16 bits and in 32.
NARROW = AggregationConfig(levels=(1 << 13), bound=1.0, max_weight=1.0)
WIDE = AggregationConfig(levels=1 << 24, bound=0.5, max_weight=1.0)
#: Steps that are no power of two.
ODD = AggregationConfig(levels=10_000_019, bound=0.3, max_weight=1.0)


class Fixed:
    """Draws that a test has chosen; noise of a whole constant."""

    def __init__(self, uniform: np.ndarray, whole: int = 0) -> None:
        self._uniform, self._whole = uniform, whole

    def uniform(self, count: int) -> np.ndarray:
        assert count == len(self._uniform)
        return self._uniform

    def discrete_normal(self, count: int, deviation: float) -> np.ndarray:
        assert deviation >= 8
        return np.full(count, self._whole, dtype=np.int64)


def source() -> NoiseSource:
    return NoiseSource(SystemRandomness())


def bounded(values: np.ndarray, sensitivity: float) -> BoundedSum:
    return BoundedSum(values=np.asarray(values, dtype=np.float64), sensitivity=sensitivity)


def step(limits: AggregationConfig) -> float:
    return limits.bound / limits.levels


def integers(found: np.ndarray, limits: AggregationConfig, members: int = 3) -> np.ndarray:
    """What the secure sum makes of an update of weight 1."""
    grid = Grid.of(limits, ())
    bits = grid.bits(members)
    chunks = [
        chunk.copy()
        for chunk in grid.encode_into(found, 1.0, (), bits=bits, randomness=SystemRandomness())
    ]
    raw = np.concatenate(chunks)[: len(found)].astype(np.int64)
    return np.where(raw >= 1 << (bits - 1), raw - (1 << bits), raw)


@pytest.mark.parametrize(("limits", "bits"), [(NARROW, 16), (WIDE, 32)])
def test_what_leaves_is_on_the_grid_and_is_encoded_as_it_is(limits, bits) -> None:
    assert Grid.of(limits, ()).bits(3) == bits
    draw = np.random.default_rng(0)
    values = draw.normal(size=3000) * limits.bound / 10
    made = bounded(values, sensitivity=10 * step(limits))
    less = (draw.integers(-100, 100, 3000) * step(limits)).astype(np.float32)
    for public in (None, less):
        found = made.on_grid(limits, multiplier=0.5, honest=3, source=source(), less=public)
        assert found.dtype == np.float32
        whole = found / np.float64(step(limits))
        assert np.array_equal(whole, np.rint(whole))
        for _ in range(2):  # nothing about it is left to chance
            assert np.array_equal(integers(found, limits), whole)
        # Within rounding and noise of the values.
        off = found + (0 if public is None else public) - values
        assert np.abs(off).max() < 12 * 0.5 * (10 + math.sqrt(3000)) * step(limits)


def test_a_step_that_float32_can_not_hold_is_off_by_one_integer_at_most() -> None:
    """That is rounding after the noise: it costs nothing."""
    made = bounded(np.random.default_rng(0).normal(size=3000) * 0.03, sensitivity=10 * step(ODD))
    found = made.on_grid(ODD, multiplier=0.5, honest=3, source=source())
    whole = np.rint(found / np.float64(step(ODD)))
    assert np.abs(integers(found, ODD) - whole).max() <= 1


def test_a_value_and_its_public_subtrahend_cancel() -> None:
    """Where the noise is nothing, a released grid point minus itself is 0."""
    points = (np.arange(-50, 50) * step(WIDE)).astype(np.float32)
    found = bounded(points, 10 * step(WIDE)).on_grid(
        WIDE, multiplier=1.0, honest=1, source=Fixed(np.zeros(100)), less=points
    )
    assert not found.any()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dimension=st.integers(1, 40),
    moved=st.sampled_from([0.0, 1e-9, 0.3, 0.999, 1.0, 7.5, 300.0]),
    coordinates=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1.0, 1e3, 5e6, 1e9]),
    with_less=st.booleans(),
    limits=st.sampled_from([NARROW, WIDE, ODD]),
)
def test_one_user_moves_the_integers_by_at_most_the_rounded_sensitivity(
    seed, dimension, moved, coordinates, scale, with_less, limits
) -> None:
    """For the same uniform draw: |a - b| / step + √d, also where the grid cuts them off."""
    draw = np.random.default_rng(seed)
    delta = draw.normal(size=dimension)
    delta[coordinates:] = 0.0
    delta *= moved / np.linalg.norm(delta)  # in steps
    one = draw.normal(size=dimension) * scale
    if seed % 2:
        one = np.rint(one)
    less = None
    if with_less:
        less = (np.rint(draw.normal(size=dimension) * scale) * step(limits)).astype(np.float32)
    # Both ends of [0, 1) too.
    uniform = np.choose(draw.integers(0, 3, dimension), [draw.random(dimension), 0.0, 1 - 2.0**-53])
    sensitivity = max(moved, 30.0)
    found = [
        bounded(values * step(limits), sensitivity * step(limits)).on_grid(
            limits, multiplier=1.0, honest=1, source=Fixed(uniform), less=less
        )
        / np.float64(step(limits))
        for values in (one, one + delta)
    ]
    changed = np.rint(found[1]) - np.rint(found[0])
    assert np.linalg.norm(changed) <= moved + math.sqrt(min(coordinates, dimension)) + 1e-6
    assert not changed[coordinates:].any()


def test_the_shares_of_the_honest_add_up_to_the_whole_noise() -> None:
    dimension, honest, multiplier, moved = 40_000, 3, 1.3, 50.0
    made = bounded(np.zeros(dimension), moved * step(WIDE))
    total = np.zeros(dimension)
    for _ in range(honest):
        found = made.on_grid(WIDE, multiplier=multiplier, honest=honest, source=source())
        total += found / np.float64(step(WIDE))
    deviation = multiplier * (moved + math.sqrt(dimension))
    low, high = stats.chi2.interval(1 - CHANCE, dimension)
    # Whole numbers add 1/12 at most: nothing beside the noise's square.
    assert low < float(np.square(total / deviation).sum()) < high * 1.001
    assert stats.kstest(total / deviation, "norm").pvalue > 1e-6


def test_rounding_is_even_handed() -> None:
    """⌊v + u⌋ is v on average: sums over platforms and rounds do not drift."""
    values = np.full(200_000, 0.25 * step(WIDE))
    found = bounded(values, 30 * step(WIDE)).on_grid(
        WIDE, multiplier=1.0, honest=1, source=Fixed(np.random.default_rng(1).random(200_000))
    )
    assert float((found / np.float64(step(WIDE))).mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("limits", "sensitivity", "multiplier", "honest"),
    [
        (replace(NARROW, levels=2000), 30.0, 10.0, 1),  # no room for the noise
        (WIDE, 1e-3, 0.01, 100),  # the noise would be less than the grid
        (NARROW, 1e9, 1.0, 1),
        (WIDE, 1.0, 1e6, 1),
    ],
)
def test_a_grid_too_narrow_or_too_coarse_for_the_noise_is_refused(
    limits, sensitivity, multiplier, honest
) -> None:
    """Whether it is must depend on public figures alone."""
    for values in (np.zeros(4), np.full(4, 1e9), np.full(4, np.nan)):
        with pytest.raises(ConfigError, match="grid steps"):
            bounded(values, sensitivity * step(limits)).on_grid(
                limits, multiplier=multiplier, honest=honest, source=source()
            )


def test_numbers_beyond_the_grid_are_held_within_it() -> None:
    values = np.array([1e9, -1e9, 0.0, -1e300])
    found = bounded(values, 30 * step(WIDE)).on_grid(
        WIDE, multiplier=1.0, honest=1, source=source()
    )
    assert np.abs(found).max() <= WIDE.bound
    integers(found, WIDE)  # nothing is refused


@pytest.mark.parametrize("public", [3.4e38, -3.4e38])
def test_a_received_vector_of_any_finite_size_is_subtracted(public: float) -> None:
    less = np.full(4, public, dtype=np.float32)
    found = bounded(np.zeros(4), 30 * step(WIDE)).on_grid(
        WIDE, multiplier=1.0, honest=1, source=source(), less=less
    )
    assert np.isfinite(found).all()
    integers(found, WIDE)


def test_local_noise_is_in_proportion_to_the_sensitivity() -> None:
    values = np.linspace(-1, 1, 100_000)
    found = bounded(values, 0.02).noised(1.7, source())
    assert found.dtype == np.float32
    z = (found - values) / (1.7 * 0.02)
    low, high = stats.chi2.interval(1 - CHANCE, len(z))
    assert low < float(np.square(z).sum()) < high
    assert stats.kstest(z, "norm").pvalue > CHANCE


def test_values_are_not_shown() -> None:
    shown = repr(bounded(np.array([0.123456, 77.0]), 0.5))
    assert "123456" not in shown
    assert "77" not in shown
    assert "2 numbers" in shown
    assert "0.5" in shown

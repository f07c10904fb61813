"""The bounds of an update, against exact arithmetic; what is not finite never passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrec_model.privacy.clipping import clip_update
from crossrec_model.secagg.errors import NotFiniteError

LARGEST = float(np.finfo(np.float32).max)
#: float32 has 24 bits: scaling may move each coordinate by half a last place, and the factor itself.
LAST_PLACE = 2.0**-23


def _update(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def _norm(update: np.ndarray) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for x in update))


def test_an_update_within_both_bounds_stays_bit_for_bit() -> None:
    # On the bounds exactly, and far within.
    for update in (_update(3, -4), _update(1e-40, -1e-3), _update(-0.0)):
        before = update.tobytes()
        assert clip_update(update, norm=5.0, bound=4.0) == 1.0
        assert update.tobytes() == before


def test_a_long_update_is_scaled_to_the_norm() -> None:
    update = _update(3, -4, 12)
    assert clip_update(update, norm=6.5, bound=100.0) == 0.5
    np.testing.assert_array_equal(update, _update(1.5, -2, 6))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_large_coordinate_scales_all_of_them(sign: int) -> None:
    update = _update(sign * 8, 2, 1)
    assert clip_update(update, norm=100.0, bound=2.0) == 0.25
    # The direction stays: it is not the one coordinate alone that is cut.
    np.testing.assert_array_equal(update, _update(sign * 2, 0.5, 0.25))


def test_the_tighter_of_the_two_bounds_counts() -> None:
    for norm, bound, factor in ((2.5, 1.0, 0.25), (1.25, 4.0, 0.25), (10.0, 8.0, 1.0)):
        update = _update(3, -4)
        assert clip_update(update, norm=norm, bound=bound) == factor
        np.testing.assert_array_equal(update, _update(3 * factor, -4 * factor))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_is_refused_and_left_alone(bad: float, place: int) -> None:
    update = _update(1, 2, 3)
    update[place] = bad
    before = update.tobytes()
    with pytest.raises(NotFiniteError, match="NaN or an infinity; nothing is sent"):
        clip_update(update, norm=1.0, bound=1.0)
    assert update.tobytes() == before


def test_infinities_of_both_signs_do_not_cancel() -> None:
    with pytest.raises(NotFiniteError):
        clip_update(_update(np.inf, -np.inf), norm=1.0, bound=1.0)


def test_nothing_and_zero_are_within_every_bound() -> None:
    for update in (_update(), np.zeros(5, dtype=np.float32), _update(-0.0, 0.0)):
        before = update.tobytes()
        assert clip_update(update, norm=1e-6, bound=1e-6) == 1.0
        assert update.tobytes() == before


def test_the_squares_of_huge_numbers_do_not_overflow() -> None:
    # Each square is beyond float32; their sum is not beyond double precision.
    huge = float(np.float32(1e30))
    update = np.full(1000, huge, dtype=np.float32)
    update[::2] *= -1
    factor = clip_update(update, norm=1.0, bound=1e6)
    assert factor == pytest.approx(1 / (huge * math.sqrt(1000)), rel=1e-12)
    assert _norm(update) == pytest.approx(1.0, rel=2 * LAST_PLACE)
    for largest in (LARGEST, -LARGEST):
        one = _update(largest)
        assert clip_update(one, norm=1e9, bound=1e-6) == pytest.approx(1e-6 / LARGEST, rel=1e-12)
        assert 0.9e-6 < abs(float(one[0])) <= float(np.float32(1e-6))


def test_the_norm_holds_for_the_largest_numbers_too() -> None:
    update = np.full(4, LARGEST, dtype=np.float32)
    # The factor is 0.8 of float32's least number, which it is rounded up to.
    clip_update(update, norm=1.12e-45 * 2 * LARGEST, bound=1.0)
    assert _norm(update) <= 1.12e-45 * 2 * LARGEST * (1 + 2 * LAST_PLACE)


def test_a_long_update_is_measured_in_double_precision() -> None:
    # In single precision a running sum would stop at 2^24 ones.
    update = np.ones(20_000_000, dtype=np.float32)
    assert clip_update(update, norm=1.0, bound=1.0) == pytest.approx(20_000_000**-0.5, rel=1e-9)


def test_the_factor_says_what_was_done() -> None:
    before = np.random.default_rng(0).normal(size=300).astype(np.float32)
    update = before.copy()
    factor = clip_update(update, norm=2.0, bound=0.3)
    expected = min(2.0 / _norm(before), 0.3 / float(np.abs(before).max()))
    assert factor == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(update, before * factor, rtol=2 * LAST_PLACE, atol=1e-40)


@settings(max_examples=300)
@given(
    numbers=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40
    ),
    norm=st.floats(1e-6, 1e9),
    bound=st.floats(1e-6, 1e6),
)
def test_no_bound_is_passed_after_rounding(numbers: list[float], norm: float, bound: float) -> None:
    update = np.array(numbers, dtype=np.float32)
    before = update.copy()
    factor = clip_update(update, norm=norm, bound=bound)
    assert 0.0 <= factor <= 1.0
    # A bound between two float32 numbers is met by the nearest of them, as the grid of a sum counts.
    assert float(np.abs(update).max()) <= float(np.float32(bound))
    if factor >= np.finfo(np.float32).tiny:
        assert _norm(update) <= norm * (1 + 2 * LAST_PLACE)
    assert (np.sign(update) * np.sign(before) >= 0).all()
    if factor == 1.0:
        assert update.tobytes() == before.tobytes()

"""Encoding and decoding against exact fractions: within the stated error, never beyond the bounds."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrec_model.errors import ConfigError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import ImplausibleSumError, NotFiniteError, ValueOutOfBoundsError
from crossrec_model.secagg.grid import CHUNK, Grid, _scale
from crossrec_model.secagg.masking import (
    WIDTHS,
    Numbers,
    add_packed,
    pack,
    unpack,
    zeros,
)
from crossrec_model.wire.contribution import Mean

SYSTEM = SystemRandomness()
Update = npt.NDArray[np.float32]


def _grid(
    levels: int = 1 << 20,
    bound: float = 1.0,
    max_weight: float = 1000.0,
    metric_bounds: tuple[float, ...] = (),
) -> Grid:
    return Grid(levels=levels, bound=bound, max_weight=max_weight, metric_bounds=metric_bounds)


def _encode(
    grid: Grid, update: Update, weight: float, metrics: tuple[float, ...], bits: int
) -> Numbers:
    chunks = grid.encode_into(update, weight, metrics, bits=bits, randomness=SYSTEM)
    return np.concatenate([chunk.copy() for chunk in chunks])


def _signed(numbers: Numbers, bits: int) -> list[int]:
    half = 1 << (bits - 1)
    return [(int(n) + half) % (1 << bits) - half for n in numbers]


Case = tuple[Grid, int, list[tuple[Update, float, tuple[float, ...]]]]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    members = draw(st.integers(1, 9))
    levels = draw(st.sampled_from([1, 2, 100, 3641, 1 << 16, 900_000, 1 << 24, (2**31 - 1) // 9]))
    sizes = st.sampled_from([1e-6, 0.1, 1 / 3, 1.0, 7.5, 64.0, 1e6])
    bounds = tuple(draw(st.lists(sizes, max_size=3)))
    grid = _grid(levels, draw(sizes), draw(st.sampled_from([1.0, 0.3, 1000.0, 65536.0])), bounds)
    share = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1))
    dimension = draw(st.integers(0, 6))
    limit = np.float32(grid.bound)
    parts = []
    for _ in range(members):
        shares = draw(st.lists(share, min_size=dimension, max_size=dimension))
        update = np.clip(np.array(shares, dtype=np.float32) * limit, -limit, limit)
        weight = abs(draw(share)) * grid.max_weight
        parts.append((update, weight, tuple(draw(share) * bound for bound in bounds)))
    return grid, members, parts


def _exact(parts: list[tuple[Update, float, tuple[float, ...]]]) -> tuple[Fraction, list[Fraction]]:
    """The total weight, and the sums of [w · update, w · metrics], without any rounding."""
    weights = [Fraction(weight) for _, weight, _ in parts]
    rows = [[*map(Fraction, update.tolist()), *map(Fraction, ms)] for update, _, ms in parts]
    columns = zip(*rows, strict=True)
    sums = [sum((w * x for w, x in zip(weights, c, strict=True)), Fraction(0)) for c in columns]
    return sum(weights, start=Fraction(0)), sums


def _check_errors(mean: Mean, weight: Fraction, sums: list[Fraction], dimension: int) -> None:
    found = [*mean.update.tolist(), *mean.metrics.tolist()]
    errors = [mean.update_error] * dimension + list(mean.metric_errors)
    assert len(found) == len(sums) == len(errors)
    for value, exact, error in zip(found, sums, errors, strict=True):
        if math.isfinite(error):
            assert abs(Fraction(value) - exact / weight) <= Fraction(error)


@given(case=_cases())
@settings(max_examples=300, deadline=None)
def test_the_mean_is_within_the_stated_error(case: Case) -> None:
    grid, members, parts = case
    bits = grid.bits(members)
    dimension = len(parts[0][0])
    total = zeros(grid.length(dimension), bits)
    integers = [0] * len(total)
    for update, weight, metrics in parts:
        vector = _encode(grid, update, weight, metrics, bits)
        assert len(vector) == grid.length(dimension) == dimension + 1 + len(metrics)
        integers = [a + b for a, b in zip(integers, _signed(vector, bits), strict=True)]
        np.add(total, vector, out=total)
    assert _signed(total, bits) == integers  # the sum never wrapped
    exact_weight, sums = _exact(parts)
    weight_step = Fraction(grid.max_weight) / grid.levels
    if integers[dimension] <= 0:
        assert exact_weight < members * weight_step
        with pytest.raises(ImplausibleSumError, match="no platform has data"):
            grid.decode(total, dimension, bits=bits, members=members)
        return
    mean = grid.decode(total, dimension, bits=bits, members=members)
    assert mean.weight == pytest.approx(float(integers[dimension] * weight_step), rel=1e-12)
    assert abs(Fraction(mean.weight) - exact_weight) <= members * weight_step * (
        1 + Fraction(1, 2**10)
    )
    assert mean.update.dtype == np.float64
    assert math.isinf(mean.update_error) == (dimension > 0 and integers[dimension] <= members)
    _check_errors(mean, exact_weight, sums, dimension)


@pytest.mark.parametrize(
    ("members", "weight", "update"), [(1, 2, 1), (1, 700, -699), (3, 40, 40), (9, 10, 0)]
)
def test_the_stated_error_is_reached_by_the_worst_rounding(
    members: int, weight: int, update: int
) -> None:
    # Every weight rounded up by a whole step, every coordinate towards zero by a whole step.
    grid = _grid(1000, bound=7.0, metric_bounds=(7.0,))
    sums = np.array([update, weight, update], dtype=np.int32).view(np.uint32)
    mean = grid.decode(sums, 1, bits=32, members=members)
    farther = update + (members if update >= 0 else -members)
    worst = 7 * abs(Fraction(farther, weight - members) - Fraction(update, weight))
    for error in (mean.update_error, *mean.metric_errors):
        assert worst < Fraction(error) < worst * (1 + Fraction(1, 10**9))


def test_the_stated_error_is_of_the_size_of_a_step() -> None:
    grid = _grid(levels=1 << 24, max_weight=100.0, metric_bounds=(2.0,))
    total = zeros(5, 32)
    for _ in range(3):
        total += _encode(grid, np.array([1, -1, 0.3], dtype=np.float32), 100.0, (1.5,), 32)
    mean = grid.decode(total, 3, bits=32, members=3)
    step = 2.0**-24
    assert step < mean.update_error < 2.001 * step
    assert 2 * step < mean.metric_errors[0] < 3.502 * step
    exact = np.array([1, -1, 0.3], dtype=np.float32)
    assert np.abs(mean.update - exact).max() < mean.update_error


@given(
    levels=st.integers(1, 2**31 - 1),
    bound=st.floats(1e-6, 1e6),
    max_weight=st.floats(1e-3, 1e9),
    metric=st.floats(1e-6, 1e6),
)
@settings(max_examples=300, deadline=None)
def test_the_outermost_values_stay_within_the_levels(
    levels: int, bound: float, max_weight: float, metric: float
) -> None:
    grid = _grid(levels, bound, max_weight, (metric, metric))
    limit = np.float32(bound)
    update = np.array([limit, -limit] * 8, dtype=np.float32)
    bits = grid.bits(1)
    numbers = _signed(_encode(grid, update, max_weight, (metric, -metric), bits), bits)
    assert all(levels - 1 <= abs(number) <= levels for number in numbers)
    assert numbers[16] > 0 > numbers[18]


def test_no_product_passes_the_levels_by_its_rounding() -> None:
    # One unit too many would become a whole level once in 2^32 roundings: too rare to be seen above.
    source = np.random.default_rng(6)
    plain_is_too_large = 0
    for levels in source.integers(1, 2**31, 2000).tolist():
        bound, max_weight = np.exp(source.uniform(-12, 18, 2)).tolist()
        most = levels * 2.0**32
        scale = _scale(levels, bound, max_weight)
        plain_is_too_large += most / bound / max_weight * max_weight * bound > most
        assert most * (1 - 2.0**-50) <= scale * max_weight * bound <= most
    assert plain_is_too_large > 100


@pytest.mark.parametrize("members", [1, 3, 30, 100])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_largest_cohort_at_its_bounds_does_not_wrap(members: int, bits: int) -> None:
    levels = ((1 << (bits - 1)) - 1) // members
    grid = _grid(levels, metric_bounds=(1.0,))
    assert grid.bits(members) == bits
    total = zeros(4, bits)
    for _ in range(members):
        total += _encode(grid, np.array([1, -1], dtype=np.float32), 1000.0, (-1.0,), bits)
    assert _signed(total, bits) == [members * levels * sign for sign in (1, -1, 1, -1)]
    mean = grid.decode(total, 2, bits=bits, members=members)
    assert mean.update == pytest.approx([1.0, -1.0], rel=1e-15)
    assert mean.metrics == pytest.approx([-1.0], rel=1e-15)
    assert mean.weight == 1000.0 * members


def test_bits_are_the_least_that_can_not_wrap() -> None:
    assert [_grid(levels).bits(1) for levels in (32767, 32768)] == [16, 24]
    assert [_grid(levels).bits(1) for levels in (8388607, 8388608)] == [24, 32]
    assert [_grid(327).bits(members) for members in (100, 101)] == [16, 24]
    assert _grid(21474836).bits(100) == 32
    with pytest.raises(ConfigError, match=r"^100 platforms of 21474837 levels .* at most 21474836"):
        _grid(21474837).bits(100)


@pytest.mark.parametrize(("levels", "bits"), [(30_000, 16), (8_000_000, 24), (1 << 24, 32)])
def test_integers_stay_exactly_themselves(levels: int, bits: int) -> None:
    grid = _grid(levels, bound=float(levels), max_weight=1.0, metric_bounds=(float(levels),))
    integers = np.random.default_rng(3).integers(-levels, levels + 1, 50_000)
    integers[:3] = (-levels, 0, levels)
    numbers = _encode(grid, integers.astype(np.float32), 1.0, (float(-levels),), bits)
    assert _signed(numbers, bits) == [*integers.tolist(), levels, -levels]


@pytest.mark.parametrize("value", [0.25, -0.25, 0.5, 3.8, -3.8, 0.001, -0.999])
def test_rounding_goes_to_both_neighbours_and_is_unbiased(value: float) -> None:
    grid = _grid(1000, bound=1000.0, max_weight=1.0)
    count = 1_000_000
    exact = float(np.float32(value))
    update = np.full(count, value, dtype=np.float32)
    numbers = np.array(_signed(_encode(grid, update, 1.0, (), 16)[:-1], 16))
    assert set(numbers.tolist()) == {math.floor(exact), math.ceil(exact)}
    up = exact - math.floor(exact)
    deviation = math.sqrt(up * (1 - up) / count)
    assert abs(float(numbers.mean()) - exact) < 9 * deviation


def test_rounding_differs_each_time_and_between_chunks() -> None:
    grid = _grid(1000, bound=1000.0, max_weight=1.0)
    update = np.full(2 * CHUNK, 0.5, dtype=np.float32)
    one, other = (_encode(grid, update, 1.0, (), 16) for _ in range(2))
    for a, b in ((one, other), (one[:CHUNK], one[CHUNK : 2 * CHUNK])):
        same = float(np.mean(a[:CHUNK] == b[:CHUNK]))
        assert abs(same - 0.5) < 9 * 0.5 / math.sqrt(CHUNK)


def test_weights_multiply_and_a_weight_of_zero_moves_nothing() -> None:
    grid = _grid(1 << 20, bound=4.0, max_weight=256.0, metric_bounds=(8.0,))
    update = np.array([4, -2, 0.5], dtype=np.float32)
    numbers = _signed(_encode(grid, update, 128.0, (-1.0,), 24), 24)
    assert numbers == [1 << 19, -(1 << 18), 1 << 16, 1 << 19, -(1 << 16)]
    assert _signed(_encode(grid, update, 0.0, (-1.0,), 24), 24) == [0] * 5


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dimension", [0, 1, CHUNK, 2 * CHUNK + 3])
def test_chunks_can_be_packed_into_the_updates_own_memory(bits: int, dimension: int) -> None:
    grid = _grid(100, bound=100.0, max_weight=1.0, metric_bounds=(100.0, 100.0))
    integers = np.random.default_rng(4).integers(-100, 101, dimension)
    update = integers.astype(np.float32)
    memory = update.view(np.uint8)
    chunks = grid.encode_into(update, 1.0, (7.0, -9.0), bits=bits, randomness=SYSTEM)
    lengths, at, tail = [], 0, bytearray(3 * bits // 8)
    for chunk in chunks:
        size = len(chunk) * bits // 8
        lengths.append(len(chunk))
        if sum(lengths) > dimension:
            pack(chunk, bits, memoryview(tail))
        else:
            pack(chunk, bits, memory[at : at + size].data)
            at += size
        chunk[:] = 123  # the scratch memory may be changed
    full, rest = divmod(dimension, CHUNK)
    assert lengths == [CHUNK] * full + [rest] * (rest > 0) + [3]
    assert at == dimension * bits // 8
    numbers = np.concatenate([unpack(memory[:at].tobytes(), bits), unpack(tail, bits)])
    assert _signed(numbers, bits) == [*integers.tolist(), 100, 7, -9]


def test_numbers_of_24_bits_may_carry_anything_above() -> None:
    grid = _grid(100, bound=100.0, max_weight=1.0)
    clean = _encode(grid, np.array([5, -6], dtype=np.float32), 1.0, (), 24)
    dirty: Numbers = ((clean & 0xFFFFFF) | 0xAB000000).astype(np.uint32)
    means = [grid.decode(total, 2, bits=24, members=1) for total in (clean, dirty)]
    assert [mean.update.tolist() for mean in means] == [[5.0, -6.0]] * 2
    assert [mean.weight for mean in means] == [1.0] * 2


_FAR = 2 * CHUNK + 3


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, _FAR - 1])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.nan, NotFiniteError),
        (np.inf, NotFiniteError),
        (-np.inf, NotFiniteError),
        (np.nextafter(np.float32(0.1), np.float32(1)), ValueOutOfBoundsError),
        (-np.nextafter(np.float32(0.1), np.float32(1)), ValueOutOfBoundsError),
        (3e38, ValueOutOfBoundsError),
    ],
)
def test_an_update_that_the_grid_can_not_hold_is_refused_at_once(
    at: int, value: float, error: type[Exception]
) -> None:
    update = np.full(_FAR, 0.1, dtype=np.float32)
    grid = _grid(bound=0.1)
    grid.encode_into(update, 1.0, (), bits=24, randomness=SYSTEM)  # 0.1 as float32 is allowed
    update[at] = value
    before = update.tobytes()
    with pytest.raises(error, match="coordinate of the update is"):
        grid.encode_into(update, 1.0, (), bits=24, randomness=SYSTEM)
    assert update.tobytes() == before


def test_a_nan_among_values_out_of_bounds_is_named() -> None:
    update = np.array([5.0, np.nan, -7.0], dtype=np.float32)
    with pytest.raises(NotFiniteError, match="is nan"):
        _grid().encode_into(update, 1.0, (), bits=32, randomness=SYSTEM)


@pytest.mark.parametrize(
    ("weight", "metrics", "error", "message"),
    [
        (math.nan, (0.0,), NotFiniteError, "weight is nan"),
        (math.inf, (0.0,), NotFiniteError, "weight is inf"),
        (-1e-300, (0.0,), ValueOutOfBoundsError, "weight is -1e-300; at least 0"),
        (-1001.0, (0.0,), ValueOutOfBoundsError, "weight is -1001"),
        (1000.1, (0.0,), ValueOutOfBoundsError, "weight is 1000.1, beyond the plan's bound of 10"),
        (1.0, (math.nan,), NotFiniteError, "metric 1 is nan"),
        (1.0, (-math.inf,), NotFiniteError, "metric 1 is -inf"),
        (1.0, (2.5,), ValueOutOfBoundsError, "metric 1 is 2.5, beyond the plan's bound of 2"),
        (0.0, (-2.5,), ValueOutOfBoundsError, "metric 1 is -2.5"),
    ],
)
def test_weights_and_metrics_that_the_grid_can_not_hold_are_refused(
    weight: float, metrics: tuple[float, ...], error: type[Exception], message: str
) -> None:
    grid = _grid(metric_bounds=(2.0,))
    with pytest.raises(error, match=message):
        grid.encode_into(np.zeros(2, np.float32), weight, metrics, bits=24, randomness=SYSTEM)


def test_wrong_shapes_and_types_are_refused() -> None:
    grid = _grid()
    for update in (np.zeros(3), np.zeros((2, 2), np.float32), np.zeros(6, np.float32)[::2]):
        with pytest.raises(ValueError, match=r"float32 \[d\] is needed"):
            grid.encode_into(update, 1.0, (), bits=24, randomness=SYSTEM)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 metrics came; 0 are needed"):
        grid.encode_into(np.zeros(3, np.float32), 1.0, (0.5,), bits=24, randomness=SYSTEM)
    with pytest.raises(ValueError, match="bits are 20"):
        grid.encode_into(np.zeros(3, np.float32), 1.0, (), bits=20, randomness=SYSTEM)
    for total in (zeros(3, 32), zeros(5, 32), zeros(4, 16)):
        with pytest.raises(ValueError, match="are needed"):
            grid.decode(total, 3, bits=32, members=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 0}, "levels are 0"),
        ({"levels": 1 << 31}, "levels are 2147483648"),
        ({"bound": 0.0}, "bound is 0.0"),
        ({"bound": math.nan}, "bound is nan"),
        ({"max_weight": math.inf}, "max_weight is inf"),
        ({"max_weight": -1.0}, "max_weight is -1.0"),
        ({"metric_bounds": (1.0, 0.0)}, r"metric_bounds\[1\] is 0.0"),
    ],
)
def test_impossible_grids_are_refused(change: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {
        "levels": 10,
        "bound": 1.0,
        "max_weight": 1.0,
        "metric_bounds": (),
    }
    with pytest.raises(ConfigError, match=f"^{message}"):
        Grid(**(settings | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [16, 32])
def test_a_weight_of_nothing_or_less_has_no_mean(bits: int) -> None:
    total = zeros(2, bits)
    total[:] = (3, -1 % (1 << bits))
    with pytest.raises(ImplausibleSumError, match="weight or metrics"):
        _grid(100).decode(total, 1, bits=bits, members=1)
    total[1] = 0
    with pytest.raises(ImplausibleSumError, match="no platform has data"):
        _grid(100).decode(total, 1, bits=bits, members=1)


def test_memory_is_a_few_chunks_and_the_result() -> None:
    grid, dimension = _grid(), 3_000_000
    update = np.full(dimension, 0.5, dtype=np.float32)
    memory, total = memoryview(bytearray(4)), zeros(grid.length(dimension), 32)
    tracemalloc.start()
    try:
        for chunk in grid.encode_into(update, 1.0, (), bits=32, randomness=SYSTEM):
            pack(chunk[:1], 32, memory)
            add_packed(total[:1], memory, 32)
        _, encoding = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        total[-1] = 1000
        grid.decode(total, dimension, bits=32, members=1)
        _, decoding = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert encoding < 3 << 20
    assert decoding < 8 * dimension + (3 << 20)

"""Prices against published values, Opacus' accountant and the analytic Gaussian mechanism."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from crossrec_model.errors import ConfigError
from crossrec_model.privacy import pricing
from crossrec_model.privacy.events import (
    DistributedGaussian,
    Event,
    GaussianRelease,
    SampledGaussian,
    tally,
)
from crossrec_model.privacy.pricing import (
    calibrate_distributed,
    calibrate_sampled,
    epsilon,
    prices,
)

DELTA = 1e-5


def _steps(multiplier: float, rate: float, steps: int) -> SampledGaussian:
    return SampledGaussian(multiplier=multiplier, rate=rate, steps=steps)


def _prv(multiplier: float, rate: float, steps: int, delta: float = DELTA) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(multiplier, rate, steps)]
    with warnings.catch_warnings():
        # It integrates over infinite ranges and says so.
        warnings.simplefilter("ignore")
        # Its upper bound, of which so much is its own error.
        return float(accountant.get_epsilon(delta, eps_error=0.001))


def _renyi_alone(events: list[Event], delta: float) -> float:
    return pricing._renyi_epsilon(tuple(tally(events).items()), delta)


def _analytic(multiplier: float, delta: float) -> float:
    """Balle & Wang 2018, Theorem 8, for sensitivity 1."""

    def excess(price: float) -> float:
        a, b = 1 / (2 * multiplier), price * multiplier
        lost = norm.cdf(a - b) - math.exp(price + norm.logcdf(-a - b))
        return float(lost - delta)

    return float(brentq(excess, 0.0, 200.0, xtol=1e-12))


@pytest.mark.parametrize(
    ("multiplier", "rate", "steps", "expected"),
    [
        (0.7, 0.3, 300, 88.19),
        (20.0, 0.5, 1000, 3.348),
        (0.4, 0.001, 200, 5.46),
        (1.0, 0.01, 1000, 1.828),
        (0.735, 0.01, 1000, 3.997),
    ],
)
def test_published_prices(multiplier: float, rate: float, steps: int, expected: float) -> None:
    event = _steps(multiplier, rate, steps)
    assert epsilon([event], DELTA) == pytest.approx(expected, rel=1e-3)
    assert _renyi_alone([event], DELTA) > epsilon([event], DELTA)


@pytest.mark.parametrize(
    ("multiplier", "rate", "steps"),
    [(1.0, 0.01, 1000), (0.4, 0.001, 200), (20.0, 0.5, 1000), (1.0, 0.001, 3000), (2.0, 0.1, 100)],
)
def test_opacus_agrees(multiplier: float, rate: float, steps: int) -> None:
    ours = epsilon([_steps(multiplier, rate, steps)], DELTA)
    assert ours == pytest.approx(_prv(multiplier, rate, steps), rel=0.01)


def test_the_central_limit_would_promise_far_too_much() -> None:
    from opacus.accountants import GaussianAccountant

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="GDP accounting is experimental")
        limit = GaussianAccountant()
    limit.history = [(0.4, 0.001, 200)]
    ours = epsilon([_steps(0.4, 0.001, 200)], DELTA)
    assert limit.get_epsilon(DELTA) < 1.3
    assert ours > 4 * limit.get_epsilon(DELTA)
    assert ours >= 0.99 * _prv(0.4, 0.001, 200)


@pytest.mark.parametrize("multiplier", [0.3, 0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_one_release_agrees_with_the_analytic_formula(multiplier: float, delta: float) -> None:
    exact = _analytic(multiplier, delta)
    for events in (
        [GaussianRelease(multiplier=multiplier)],
        [_steps(multiplier, 1.0, 1)],
        [GaussianRelease(multiplier=multiplier * 2)] * 4,
        [GaussianRelease(multiplier=multiplier * 2)] * 3 + [_steps(multiplier * 2, 1.0, 1)],
    ):
        assert exact <= epsilon(events, delta) * (1 + 1e-9)
        assert epsilon(events, delta) == pytest.approx(exact, rel=3e-3)
    shared = epsilon([DistributedGaussian(multiplier=multiplier, honest=2)], delta)
    assert exact <= shared <= 1.25 * exact


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0.0
    assert prices([], DELTA) == pricing.Prices(sums=0.0, everyone=0.0)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf, 1, None])
def test_a_delta_that_is_none(delta: float) -> None:
    for events in ([], [GaussianRelease(multiplier=1.0)]):
        with pytest.raises(ConfigError, match="delta = "):
            epsilon(events, delta)


@pytest.mark.parametrize(
    "rising",
    [
        [_steps(m, 0.02, 100) for m in (50.0, 3.0, 1.0, 0.8, 0.3, 0.05, 0.001)],
        [_steps(1.0, q, 100) for q in (1e-6, 1e-4, 0.01, 0.011, 0.5, 0.999, 1.0)],
        [_steps(1.0, 0.01, n) for n in (1, 10, 11, 500, 10_000, 10**6, 10**8)],
        [GaussianRelease(multiplier=m) for m in (1e6, 100.0, 1.0, 0.5, 0.05, 0.01, 0.001)],
        [DistributedGaussian(multiplier=m, honest=2) for m in (1e6, 100.0, 1.0, 0.05, 0.001)],
    ],
)
def test_more_use_and_less_noise_cost_more(rising: list[Event]) -> None:
    for less, more in pairwise(rising):
        assert epsilon([less], DELTA) <= epsilon([more], DELTA)
    assert epsilon(rising[:1], DELTA) < epsilon(rising[-1:], DELTA)


@pytest.mark.parametrize(
    "event", [_steps(1.0, 0.01, 500), DistributedGaussian(multiplier=2, honest=2)]
)
def test_a_smaller_delta_costs_more(event: Event) -> None:
    found = [epsilon([event], delta) for delta in (0.1, 1e-3, 1e-5, 1e-9, 1e-10, 1e-12, 1e-300)]
    assert found == sorted(found)
    assert all(math.isfinite(price) for price in found)


SAMPLED = st.builds(
    SampledGaussian,
    multiplier=st.floats(0.3, 5.0),
    rate=st.floats(0.001, 0.5),
    steps=st.integers(1, 100),
)
RELEASED = st.builds(GaussianRelease, multiplier=st.floats(0.3, 50.0))


@settings(max_examples=10, deadline=None)
@given(SAMPLED, st.one_of(SAMPLED, RELEASED), st.integers(2, 4))
def test_what_is_added_costs_and_order_does_not(first: Event, second: Event, times: int) -> None:
    both = epsilon([first, second], DELTA)
    # Rounding the loss up may differ a little.
    assert both >= max(epsilon([first], DELTA), epsilon([second], DELTA)) * 0.998
    assert both == epsilon([second, first], DELTA)
    assert both <= _renyi_alone([first, second], DELTA)
    assert isinstance(first, SampledGaussian)
    merged = replace(first, steps=first.steps * times)
    assert epsilon([first] * times, DELTA) == epsilon([merged], DELTA)


def test_distributed_noise_is_priced_by_renyi_and_holds_against_sums_only() -> None:
    local: list[Event] = [_steps(1.0, 0.01, 1000)]
    mixed = [*local, DistributedGaussian(multiplier=1000.0, honest=3)]
    assert prices(local, DELTA).sums == prices(local, DELTA).everyone == epsilon(local, DELTA)
    assert prices(mixed, DELTA).everyone == math.inf
    assert prices(mixed, DELTA).sums == epsilon(mixed, DELTA)
    # Almost free by itself, yet it takes the tight price away.
    assert epsilon(mixed, DELTA) == pytest.approx(_renyi_alone(local, DELTA), rel=1e-3)
    assert epsilon(mixed, DELTA) > 1.1 * epsilon(local, DELTA)


def test_renyi_steps_in_where_loss_distributions_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    event = _steps(1.25, 0.0123, 77)

    class Failing:
        def __init__(self, **_settings: object) -> None:
            raise MemoryError

    class NotFinite:
        def __init__(self, **_settings: object) -> None: ...

        def compose(self, *_event: object) -> None: ...

        def get_epsilon(self, _delta: float) -> float:
            return math.nan

    for broken in (Failing, NotFinite):
        pricing._price.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr("dp_accounting.pld.PLDAccountant", broken)
            assert epsilon([event], DELTA) == _renyi_alone([event], DELTA)
    pricing._price.cache_clear()
    assert epsilon([event], DELTA) < _renyi_alone([event], DELTA)


def test_extremes_have_a_price() -> None:
    assert epsilon([_steps(1e-3, 1.0, 10**9)], DELTA) > 1e10
    assert epsilon([_steps(1e9, 1e-9, 1)], DELTA) == pytest.approx(0.0, abs=1e-6)
    assert math.isfinite(epsilon([_steps(0.02, 1e-6, 10)], DELTA))


def test_prices_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [_steps(1.5, 0.013, 40), GaussianRelease(multiplier=11.0)]
    price = epsilon(events, DELTA)
    monkeypatch.setattr(pricing, "_renyi_epsilon", None)
    halves = [_steps(1.5, 0.013, 20), GaussianRelease(multiplier=11.0), _steps(1.5, 0.013, 20)]
    assert epsilon(halves, DELTA) == price


def test_the_calibrated_noise_is_the_smallest() -> None:
    found = calibrate_sampled(4.0, DELTA, rate=0.01, steps=1000)
    assert found == pytest.approx(0.735, abs=2e-3)
    assert epsilon([_steps(found, 0.01, 1000)], DELTA) <= 4.0
    assert epsilon([_steps(found / 1.002, 0.01, 1000)], DELTA) > 4.0


def test_releases_beside_it_take_their_part() -> None:
    releases = (GaussianRelease(multiplier=5.0),) * 2
    found = calibrate_sampled(4.0, DELTA, rate=0.02, steps=200, releases=releases)
    assert epsilon([_steps(found, 0.02, 200), *releases], DELTA) <= 4.0
    assert epsilon([_steps(found / 1.002, 0.02, 200), *releases], DELTA) > 4.0
    assert found > calibrate_sampled(4.0, DELTA, rate=0.02, steps=200)


def test_distributed_noise_can_be_calibrated() -> None:
    releases = (DistributedGaussian(multiplier=15.0, honest=2),) * 2
    found = calibrate_distributed(4.0, DELTA, rounds=12, honest=2, releases=releases)

    def price(multiplier: float) -> float:
        one = DistributedGaussian(multiplier=multiplier, honest=2)
        return epsilon([one] * 12 + list(releases), DELTA)

    assert price(found) <= 4.0 < price(found / 1.002)


def test_calibrating_far_ends() -> None:
    tiny = calibrate_sampled(1e12, DELTA, rate=0.02, steps=10)
    assert 1e-3 <= tiny < 2e-3
    large = calibrate_distributed(1e-3, DELTA, rounds=100, honest=2)
    assert epsilon([DistributedGaussian(multiplier=large, honest=2)] * 100, DELTA) <= 1e-3


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_an_epsilon_that_is_none(target: float) -> None:
    with pytest.raises(ConfigError, match="epsilon = "):
        calibrate_sampled(target, DELTA, rate=0.01, steps=10)


def test_an_epsilon_out_of_reach() -> None:
    releases = (GaussianRelease(multiplier=1.0),)
    for act in (
        lambda: calibrate_sampled(1.0, DELTA, rate=0.01, steps=10, releases=releases),
        lambda: calibrate_distributed(1.0, DELTA, rounds=3, honest=2, releases=releases),
    ):
        with pytest.raises(
            ConfigError, match=r"out of reach for .* come to 4\.\d+; raise"
        ) as caught:
            act()
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="rounds = 0"):
        calibrate_distributed(1.0, DELTA, rounds=0, honest=2)

"""What events cost: the epsilon of (epsilon, delta)-differential privacy that they come to together.

Continuous noise is priced by privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022,
"Connect the dots"), which are tight, and by Renyi divergences (Mironov 2017; Mironov, Talwar & Zhang
2019), which never fail. The central-limit ("Gaussian DP") approximation is never used: it can be far
too low (1.22 instead of 5.46 for noise 0.4, rate 0.001, 200 steps).

Prices hold for parameters that were not chosen by what earlier releases showed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from crossrec_model.errors import ConfigError
from crossrec_model.privacy.events import (
    LEAST_MULTIPLIER,
    DistributedGaussian,
    Event,
    SampledGaussian,
    check_delta,
    tally,
)

#: Renyi orders of sampled steps: whole ones only, as the series for others need not converge.
_WHOLE: Final = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1024)
#: Renyi orders where all noise is plain Gaussian, whose divergence has a closed form.
_FINE: Final = (*(1.05 + 0.05 * n for n in range(200)), *_WHOLE[10:], 2048, 4096, 16384, 65536)
#: What rounding may add to the divergence of one sampled step, computed in double precision.
_ROUNDING: Final = 1e-15
#: Below it, or below so much a step, the rounding of the Fourier transforms could matter.
_LEAST_PLD_DELTA: Final = 1e-10
_LEAST_PLD_DELTA_A_STEP: Final = 1e-13
#: Above it a tight price takes minutes, and a plan that a platform is shown may ask for 10^10 steps.
_MOST_PLD_STEPS: Final = 2_000_000
#: Above it a tight price is not worth the memory that it takes.
_MOST_PLD_EPSILON: Final = 1000.0
#: Steps of the privacy loss that distributions are rounded up to: coarser ones cost more epsilon,
#: finer ones more time. From 1e-3 they are halved until they are fine beside one event's loss, or
#: beside the whole epsilon.
_COARSEST: Final = 1e-3
_HALVINGS: Final = 6
_OF_ONE_LOSS: Final = 1 / 8
_OF_EPSILON: Final = 2e-5
_HUGE_MULTIPLIER: Final = 2.0**20
#: How near to the smallest multiplier a calibrated one is.
_PRECISION: Final = 1e-3

_Counts = tuple[tuple[Event, int], ...]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Epsilon of the same events against two observers.

    `sums` is against whoever sees only sums of many platforms; `everyone` is against whoever sees this
    platform's own messages too, or knows the other platforms' noise: infinite as soon as any of the
    noise was distributed.
    """

    sums: float
    everyone: float


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Return the epsilon of all events together, in any order, at `delta`; 0.0 for no events.

    Continuous noise alone costs the smaller of two bounds, one by privacy loss distributions and one
    by Renyi divergences. Each is an upper bound on the same number, the epsilon of the composition at
    this delta: discretisation rounds the privacy loss up, tails that are cut count as lost entirely,
    and every Renyi order bounds on its own. Both depend on public parameters only, never on data or
    noise, so that taking the smaller one is no further choice that would have to be paid for. Where
    the first fails, is not finite, or could be hurt by rounding (delta below 1e-10 or below
    1e-13 a step; epsilon above 1,000; more than 2 million steps), the second stands alone.

    With any distributed noise the whole is priced by Renyi divergences: discrete Gaussian noise in
    any number of dimensions has at most the divergence of continuous noise (Canonne, Kamath & Steinke
    2020), and no exact loss distribution is known for it. A sum of shares is not exactly discrete
    Gaussian; the gap in a coordinate, below 10·n·exp(-π²·s²) for n shares of s grid steps (Kairouz,
    Liu & Steinke 2021), is 0 in double precision for s of 10 or more, which whoever makes the noise
    must ensure. The price is against whoever sees sums only, see `prices`.

    Returns:
        A float of at least 0, infinite where no bound is known.

    Raises:
        ConfigError: for a delta outside (0, 1).
    """
    check_delta(delta)
    return _price(tuple(tally(events).items()), float(delta))


def prices(events: Iterable[Event], delta: float) -> Prices:
    """Return the price against whoever sees only sums, and against everyone.

    Raises:
        ConfigError: for a delta outside (0, 1).
    """
    kept = tuple(events)
    sums = epsilon(kept, delta)
    distributed = any(isinstance(event, DistributedGaussian) for event in kept)
    return Prices(sums=sums, everyone=math.inf if distributed else sums)


def calibrate_sampled(
    epsilon: float, delta: float, *, rate: float, steps: int, releases: tuple[Event, ...] = ()
) -> float:
    """Return the smallest noise multiplier with which `steps` steps and `releases` cost `epsilon`.

    It is found to a relative 1e-3, rounded up: the price of the result is at most `epsilon`.

    Raises:
        ConfigError: if no noise is enough, or for a value outside its bounds.
    """

    def steps_with(multiplier: float) -> tuple[Event, ...]:
        return (SampledGaussian(multiplier=multiplier, rate=rate, steps=steps), *releases)

    return _calibrate(epsilon, delta, steps_with, f"{steps} steps at rate {rate}")


def calibrate_distributed(
    epsilon: float, delta: float, *, rounds: int, honest: int, releases: tuple[Event, ...] = ()
) -> float:
    """Return the smallest effective multiplier of one distributed release in each of `rounds` rounds.

    With `releases` they cost `epsilon` against whoever sees only sums; found as `calibrate_sampled`.

    Raises:
        ConfigError: if no noise is enough, or for a value outside its bounds.
    """
    if rounds < 1:
        raise ConfigError(f"rounds = {rounds} must be at least 1; plan one or more")

    def rounds_with(multiplier: float) -> tuple[Event, ...]:
        return (*releases, *[DistributedGaussian(multiplier=multiplier, honest=honest)] * rounds)

    return _calibrate(epsilon, delta, rounds_with, f"{rounds} rounds")


def _calibrate(
    target: float, delta: float, events_with: Callable[[float], tuple[Event, ...]], what: str
) -> float:
    if not 0 < target < math.inf:
        raise ConfigError(f"epsilon = {target} must be above 0 and finite; choose e.g. 4")

    def enough(multiplier: float) -> bool:
        return epsilon(events_with(multiplier), delta) <= target

    high = 1.0
    while not enough(high):
        high *= 2
        if high > _HUGE_MULTIPLIER:
            raise ConfigError(
                f"epsilon = {target} at delta = {delta} is out of reach for {what}, whatever their "
                f"noise: the releases beside them come to {_without(events_with, delta):.4g}; raise "
                "epsilon or the releases' noise, or plan fewer"
            )
    low = high / 2
    while enough(low):
        low, high = low / 2, low
        if low < LEAST_MULTIPLIER:
            return high
    # Between an insufficient and a sufficient one; the sufficient one is what is returned.
    while high > low * (1 + _PRECISION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _without(events_with: Callable[[float], tuple[Event, ...]], delta: float) -> float:
    """Price what is left when the calibrated noise is as good as endless."""
    return epsilon(events_with(_HUGE_MULTIPLIER), delta)


@lru_cache(maxsize=4096)
def _price(counts: _Counts, delta: float) -> float:
    if not counts:
        return 0.0
    by_renyi = _renyi_epsilon(counts, delta)
    steps = sum(count for _event, count in counts)
    exact = delta >= max(_LEAST_PLD_DELTA, steps * _LEAST_PLD_DELTA_A_STEP)
    distributed = any(isinstance(event, DistributedGaussian) for event, _count in counts)
    if distributed or not exact or not by_renyi <= _MOST_PLD_EPSILON or steps > _MOST_PLD_STEPS:
        return by_renyi
    return min(by_renyi, _loss_epsilon(counts, delta, _interval(counts, by_renyi)))


def _renyi_epsilon(counts: _Counts, delta: float) -> float:
    from dp_accounting.rdp import compute_epsilon  # type: ignore[import-untyped]

    sampled, precision = _split(counts)
    orders = np.array(_WHOLE if sampled else _FINE, dtype=np.float64)
    # Gaussians compose to one whose precisions (1 / multiplier²) add up; divergence order / 2σ².
    divergence = orders * precision / 2
    for event, steps in sampled:
        divergence = divergence + steps * (_step_divergence(event) + _ROUNDING)
    # A negative one could only come from rounding, and the library would price it as nothing.
    usable = np.isfinite(divergence) & (divergence >= 0)
    if not usable.any():
        return math.inf
    price, _order = compute_epsilon(orders[usable].tolist(), divergence[usable].tolist(), delta)
    return float(price) if math.isfinite(price) else math.inf


@lru_cache(maxsize=256)
def _step_divergence(event: SampledGaussian) -> _Floats:
    """Return the Renyi divergences of one step at `_WHOLE` orders."""
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_WHOLE)
    with np.errstate(all="ignore"):
        accountant.compose(_dp_event(event))
    divergence: _Floats = accountant.rdp
    divergence.setflags(write=False)
    return divergence


def _loss_epsilon(counts: _Counts, delta: float, interval: float) -> float:
    """Return the price by privacy loss distributions; infinite where they fail."""
    from dp_accounting import dp_event  # type: ignore[import-untyped]
    from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]

    sampled, precision = _split(counts)
    try:
        accountant = PLDAccountant(value_discretization_interval=interval)
        with np.errstate(all="ignore"):
            for event, steps in sampled:
                accountant.compose(_dp_event(event), steps)
            if precision:
                accountant.compose(dp_event.GaussianDpEvent(1 / math.sqrt(precision)))
            price = float(accountant.get_epsilon(delta))
    except (ArithmeticError, ValueError, MemoryError, IndexError):
        return math.inf
    return price if price >= 0 else math.inf


def _interval(counts: _Counts, by_renyi: float) -> float:
    """Return how finely to divide the privacy loss, by a rough look at its spread in one event."""
    sampled, precision = _split(counts)
    spread, events = precision, 1
    for event, steps in sampled:
        # The root of the chi-squared divergence, and at most the loss without sampling.
        chi = math.expm1(min(700.0, event.multiplier**-2))
        spread += steps * min(event.multiplier**-2, event.rate**2 * chi)
        events += steps
    interval, fine = _COARSEST, math.sqrt(spread / events) * _OF_ONE_LOSS
    for _ in range(_HALVINGS):
        if interval <= fine or interval / 2 < by_renyi * _OF_EPSILON:
            break
        interval /= 2
    return interval


def _split(counts: _Counts) -> tuple[list[tuple[SampledGaussian, int]], float]:
    """Part truly sampled steps from plain Gaussian noise, given as its total precision."""
    sampled: list[tuple[SampledGaussian, int]] = []
    precision = 0.0
    for event, count in counts:
        if isinstance(event, SampledGaussian) and event.rate < 1:
            sampled.append((event, count))
        else:
            precision += count / event.multiplier**2
    return sampled, precision


def _dp_event(event: SampledGaussian) -> object:
    from dp_accounting import dp_event

    return dp_event.PoissonSampledDpEvent(event.rate, dp_event.GaussianDpEvent(event.multiplier))

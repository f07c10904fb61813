"""A person on several platforms: what she is protected by there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crossrec_model.errors import ConfigError
from crossrec_model.privacy.events import (
    DistributedGaussian,
    GaussianRelease,
    SampledGaussian,
)
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.privacy.unit import for_person

DELTA = 1e-5
STEPS = SampledGaussian(multiplier=1.2, rate=0.05, steps=20)
RELEASE = GaussianRelease(multiplier=5.0)
SHARED = DistributedGaussian(multiplier=9.0, honest=3)


def test_on_one_platform_a_person_is_its_user() -> None:
    events = (RELEASE, STEPS, SHARED)
    assert for_person(events, 1) == events


@pytest.mark.parametrize("platforms", [2, 4, 9])
def test_own_noise_of_p_platforms_is_that_of_one_with_less(platforms: int) -> None:
    """P releases of noise s are one of noise s / sqrt(P): the sum moves by P, its noise by sqrt(P)."""
    met = epsilon(for_person([RELEASE], platforms), DELTA)
    same = epsilon([GaussianRelease(multiplier=5.0 / math.sqrt(platforms))], DELTA)
    assert met == pytest.approx(same, rel=2e-3)


def test_distributed_noise_is_there_once_for_p_bounds() -> None:
    assert for_person([SHARED], 3) == (DistributedGaussian(multiplier=3.0, honest=3),)


def test_more_platforms_cost_more_and_the_price_covers_what_an_attacker_reaches() -> None:
    prices = [epsilon(for_person([STEPS, RELEASE], p), DELTA) for p in (1, 2, 3)]
    assert prices == sorted(prices)
    assert prices[2] > 1.3 * prices[0]
    # The best attack on three releases of a person's rows, by the exact curve of the normal law.
    found = epsilon(for_person([RELEASE], 3), DELTA)
    mu = math.sqrt(3) / 5.0
    sample = np.random.default_rng(3).normal(size=2_000_000)
    loss = mu * sample + mu * mu / 2
    reached = np.maximum(0, 1 - np.exp(found * 0.8 - loss)).mean()
    assert reached > DELTA  # four fifths of the price would be too little
    assert np.maximum(0, 1 - np.exp(found - loss)).mean() < 1.2 * DELTA


@pytest.mark.parametrize("platforms", [0, -1, 101])
def test_a_number_of_platforms_that_is_none(platforms: int) -> None:
    with pytest.raises(ConfigError, match=rf"a person on {platforms} platforms is outside"):
        for_person([STEPS], platforms)

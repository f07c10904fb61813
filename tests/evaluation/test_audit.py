from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from crossrec_model.errors import ConfigError
from crossrec_model.evaluation.audit import Guesses, epsilon_lower_bound, guess, p_value

DELTA = 1e-5


def guesses(right: int, made: int = 400, canaries: int = 10_000) -> Guesses:
    return Guesses(canaries=canaries, made=made, right=right)


@pytest.mark.parametrize(("made", "right"), [(1, 1), (20, 20), (50, 41), (400, 300), (2000, 1010)])
def test_without_delta_it_is_the_exact_binomial_limit(made: int, right: int) -> None:
    exact = stats.binomtest(right, made, alternative="greater").proportion_ci(0.95).low
    wanted = max(0.0, math.log(exact / (1 - exact)))
    assert epsilon_lower_bound(guesses(right, made), 0.0) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("right", [0, 1, 7, 20, 30])
@pytest.mark.parametrize("epsilon", [0.0, 0.4, 2.0, 9.0])
def test_the_p_value_is_the_theorem_written_out(right: int, epsilon: float) -> None:
    made, canaries, delta = 30, 200, 1e-3
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    chance = [math.comb(made, w) * q**w * (1 - q) ** (made - w) for w in range(made + 1)]

    def at_least(v: int) -> float:
        return sum(chance[max(v, 0) :])

    most = max((at_least(right - i) - at_least(right)) / i for i in range(1, canaries + 1))
    wanted = min(1.0, at_least(right) + 2 * canaries * delta * most)
    found = p_value(guesses(right, made, canaries), epsilon, delta)
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("delta", [0.0, DELTA])
def test_randomised_response_is_bounded_below_its_epsilon(epsilon: float, delta: float) -> None:
    """Exactly: over all outcomes, the bound is right in at least 95 % and not vacuous."""
    made = 400
    right = np.arange(made + 1)
    weight = stats.binom.pmf(right, made, 1 / (1 + math.exp(-epsilon)))
    likely = right[weight > 1e-9]
    bounds = np.array([epsilon_lower_bound(guesses(int(v), made, made), delta) for v in likely])
    assert weight[likely][bounds <= epsilon].sum() >= 0.95
    if epsilon >= 1.0:
        assert weight[likely] @ bounds > 0.8 * epsilon


def test_a_mechanism_that_tells_all_with_probability_delta_is_covered() -> None:
    """With probability delta a canary's coin is told; otherwise it is randomised response."""
    rng, epsilon, delta, m, runs = np.random.default_rng(3), 1.0, 0.1, 500, 300
    rate = 1 / (1 + math.exp(-epsilon))
    told = rng.random((runs, m)) < delta
    right = (rng.random((runs, m)) < np.where(told, 1.0, rate)).sum(1)

    def covered(claimed: float) -> float:
        # A right bound is one that does not refute the true epsilon.
        return float(
            np.mean([p_value(guesses(int(v), m, m), epsilon, claimed) > 0.05 for v in right])
        )

    assert covered(delta) >= 0.95
    # Left out, the same delta would refute what is true more often than that.
    assert covered(0.0) < 0.95


def test_more_right_guesses_give_a_larger_bound_and_more_delta_a_smaller_one() -> None:
    bounds = [epsilon_lower_bound(guesses(right), DELTA) for right in range(0, 401, 10)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0.0
    assert bounds[-1] > 4.0
    deltas = [epsilon_lower_bound(guesses(300), delta) for delta in (0.0, 1e-6, 1e-5, 1e-4, 1.0)]
    assert deltas == sorted(deltas, reverse=True)
    assert deltas[-1] == 0.0
    sure = [epsilon_lower_bound(guesses(300), DELTA, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert sure == sorted(sure, reverse=True)


@pytest.mark.parametrize("right", [220, 300, 400])
def test_all_below_the_bound_are_refuted_and_what_is_above_is_not(right: int) -> None:
    found = epsilon_lower_bound(guesses(right), DELTA)
    assert all(p_value(guesses(right), e, DELTA) <= 0.05 for e in np.linspace(0, found, 50))
    assert all(p_value(guesses(right), e, DELTA) > 0.05 for e in np.linspace(found + 1e-6, 15, 99))


@pytest.mark.parametrize("right", [0, 200])
def test_guesses_no_better_than_a_coin_bound_nothing(right: int) -> None:
    assert epsilon_lower_bound(guesses(right), DELTA) == 0.0


def test_no_guesses_bound_nothing() -> None:
    none = guesses(0, 0)
    assert p_value(none, 0.0, DELTA) == 1.0
    assert epsilon_lower_bound(none, DELTA) == 0.0


def test_even_all_right_bound_only_what_so_many_guesses_can_tell() -> None:
    everything = Guesses(canaries=10**4, made=10**4, right=10**4)
    assert 8.0 < epsilon_lower_bound(everything, 0.0) < 8.2


def test_noise_that_is_halved_is_found() -> None:
    """Orthogonal canaries against normal noise, as in benchmarks/dp_audit.py: 1.995 costs epsilon 2."""
    rng, m = np.random.default_rng(5), 16_000
    for deviation, exceeds in ((1.995, False), (1.995 / 2, True)):
        took_part = rng.random(m) < 0.5
        scores = took_part + deviation * rng.standard_normal(m)
        found = epsilon_lower_bound(guess(scores, took_part, inside=200, outside=200), DELTA)
        assert (found > 2.0) == exceeds
        assert found > 0.5


def test_the_highest_are_guessed_in_and_the_lowest_out() -> None:
    scores = np.array([0.3, -1.0, 2.0, 0.1, 5.0, -3.0])
    took_part = np.array([True, True, True, False, False, False])
    assert guess(scores, took_part, inside=2, outside=1) == Guesses(canaries=6, made=3, right=2)
    assert guess(scores, took_part, inside=0, outside=2) == Guesses(canaries=6, made=2, right=1)
    assert guess(scores, took_part, inside=6, outside=0) == Guesses(canaries=6, made=6, right=3)
    assert guess(scores, took_part, inside=0, outside=0) == Guesses(canaries=6, made=0, right=0)
    assert guess(scores[:0], took_part[:0], inside=0, outside=0).canaries == 0


def test_what_cannot_be_is_refused() -> None:
    for canaries, made, right in ((5, 6, 1), (5, 4, 5), (5, 4, -1)):
        with pytest.raises(ConfigError, match="count again"):
            Guesses(canaries=canaries, made=made, right=right)
    coins = np.array([True, False])
    with pytest.raises(ConfigError, match="not finite"):
        guess(np.array([1.0, math.nan]), coins, inside=1, outside=0)
    with pytest.raises(ConfigError, match="choose fewer"):
        guess(np.array([1.0, 2.0]), coins, inside=2, outside=1)
    with pytest.raises(ConfigError, match="truth value"):
        guess(np.array([1.0, 2.0]), coins.astype(float), inside=1, outside=1)
    with pytest.raises(ConfigError, match="epsilon"):
        p_value(guesses(3), math.nan, DELTA)
    with pytest.raises(ConfigError, match="delta"):
        p_value(guesses(3), 1.0, 1.5)
    with pytest.raises(ConfigError, match="confidence"):
        epsilon_lower_bound(guesses(3), DELTA, confidence=1.0)

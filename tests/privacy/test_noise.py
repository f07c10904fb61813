"""Noise has the law that is paid for, and nothing about it can be chosen or repeated."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from scipy import stats

from crossrec_model.privacy import noise
from crossrec_model.privacy.noise import _BLOCK, NoiseSource, unseeded_generator
from crossrec_model.randomness import ExperimentRandomness, SystemRandomness

#: A right implementation fails once in 10^9 runs of an assertion.
CHANCE = 1e-9
COUNTS = [0, 1, 2, 3, 7, _BLOCK - 1, _BLOCK, _BLOCK + 1, 2 * _BLOCK + 3]


@pytest.fixture
def source() -> NoiseSource:
    return NoiseSource(SystemRandomness())


def fits(found: np.ndarray, expected: np.ndarray) -> None:
    """Chi-squared over cells of which none expects fewer than 20."""
    order = np.argsort(expected)[::-1]
    found, expected = found[order], expected[order]
    few = expected < 20
    found = np.append(found[~few], found[few].sum())
    expected = np.append(expected[~few], expected[few].sum())
    if expected[-1] < 20:
        found = np.append(found[:-2], found[-2:].sum())
        expected = np.append(expected[:-2], expected[-2:].sum())
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > CHANCE


@pytest.mark.parametrize("count", COUNTS)
def test_any_number_of_numbers(source, count: int) -> None:
    for found in (source.uniform(count), source.normal(count)):
        assert found.shape == (count,)
        assert found.dtype == np.float64
        assert np.isfinite(found).all()
        assert len(np.unique(found)) == count
    whole = source.discrete_normal(count, 2.5)
    assert whole.shape == (count,)
    assert whole.dtype == np.int64


def test_uniform_numbers(source) -> None:
    found = source.uniform(400_000)
    assert found.min() >= 0.0
    assert found.max() < 1.0
    assert np.array_equal(np.ldexp(found, 53), np.floor(np.ldexp(found, 53)))
    fits(np.histogram(found, 1000, (0, 1))[0], np.full(1000, 400.0))
    # The lowest of the 53 bits and neighbours are as random.
    low = np.ldexp(found, 53).astype(np.int64) % 16
    fits(np.bincount(low, minlength=16), np.full(16, 25_000.0))
    pairs = (found[::2] * 20).astype(int) * 20 + (found[1::2] * 20).astype(int)
    fits(np.bincount(pairs, minlength=400), np.full(400, 500.0))


@pytest.mark.parametrize("count", [400_000, 399_999])
def test_normal_numbers(source, count: int) -> None:
    found = source.normal(count)
    assert stats.kstest(found, "norm").pvalue > CHANCE
    low, high = stats.chi2.interval(1 - CHANCE, count)
    assert low < float(np.square(found).sum()) < high
    assert abs(float(found.sum())) < stats.norm.isf(CHANCE / 2) * np.sqrt(count)
    edges = stats.norm.ppf(np.linspace(0, 1, 501))
    fits(np.histogram(found, edges)[0], np.full(500, count / 500))
    for size in (3.0, 4.0):
        for beyond in (int((found > size).sum()), int((found < -size).sum())):
            assert stats.binomtest(beyond, count, stats.norm.sf(size)).pvalue > CHANCE
    assert np.abs(found).max() < 8.58


def test_normal_numbers_of_one_pair_are_independent(source) -> None:
    """Cosine and sine of one radius: halves of a block, and neighbours, are uncorrelated."""
    found = source.normal(8 * _BLOCK).reshape(8, 2, _BLOCK // 2)
    for one, other in (
        (found[:, 0].ravel(), found[:, 1].ravel()),
        (np.square(found[:, 0]).ravel(), np.square(found[:, 1]).ravel()),
        (found.ravel()[:-1], found.ravel()[1:]),
    ):
        # The bound of a normal statistic, with room for the squares' heavier tails.
        assert abs(np.corrcoef(one, other)[0, 1]) < 8 / np.sqrt(len(one))


def test_the_radius_is_finite_at_the_ends_of_the_range(source, monkeypatch) -> None:
    top = np.uint64(2**53 - 1)
    for word in (np.uint64(0), top):
        monkeypatch.setattr(source, "_draw", lambda n, word=word: np.full(n, word))
        assert np.isfinite(source.normal(6)).all()


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 1.0])
def test_poisson_sampling_takes_each_with_its_rate(source, rate: float) -> None:
    population, rounds = 500, 200
    times = np.zeros(population)
    sizes = []
    for _ in range(rounds):
        found = source.chosen(population, rate)
        assert found.dtype == np.int64
        assert (np.diff(found) > 0).all()
        times[found] += 1
        sizes.append(len(found))
    assert stats.binomtest(int(times.sum()), population * rounds, rate).pvalue > CHANCE
    if rate == 1.0:
        assert (times == rounds).all()
    else:
        # The size of a sample is as random as independent choices make it: no fixed batches.
        spread = np.var(sizes) * rounds / (population * rate * (1 - rate))
        assert stats.chi2.ppf(CHANCE, rounds - 1) < spread < 2 * stats.chi2.isf(CHANCE, rounds - 1)
    assert len(source.chosen(0, rate)) == 0


@pytest.mark.parametrize("deviation", [1.0, 1.5, 7.0, 1000.0])
def test_discrete_normal_numbers_have_their_exact_law(source, deviation: float) -> None:
    count = 200_000
    found = source.discrete_normal(count, deviation)
    reach = int(12 * deviation) + 2
    at = np.arange(-reach, reach + 1)
    law = np.exp(-np.square(at / deviation) / 2)
    law /= law.sum()
    fits(np.bincount(found + reach, minlength=len(at)), law * count)
    # Zero is not doubled, and both signs are as likely.
    zeros = int((found == 0).sum())
    assert stats.binomtest(zeros, count, float(law[reach])).pvalue > CHANCE
    above, below = int((found > 0).sum()), int((found < 0).sum())
    assert stats.binomtest(above, above + below, 0.5).pvalue > CHANCE
    variance = float((law * at.astype(float) ** 2).sum())
    assert float(np.square(found.astype(float)).mean()) == pytest.approx(variance, rel=0.03)


def test_large_discrete_normal_numbers(source) -> None:
    """Of 2^40 grid steps, they are normal numbers to all intents."""
    found = source.discrete_normal(100_000, 2.0**40) / 2.0**40
    assert stats.kstest(found, "norm").pvalue > CHANCE


@pytest.mark.parametrize(
    "deviation", [0.0, 0.999, -3.0, 2.0**40 * 1.01, float("nan"), float("inf")]
)
def test_a_deviation_out_of_range_is_refused(source, deviation: float) -> None:
    with pytest.raises(ValueError, match="is needed"):
        source.discrete_normal(3, deviation)


def test_two_sources_have_nothing_in_common() -> None:
    one, other = (NoiseSource(SystemRandomness()) for _ in range(2))
    assert not np.intersect1d(one.uniform(1000), other.uniform(1000)).size
    assert not np.intersect1d(one.normal(1000), one.normal(1000)).size
    first, second = (unseeded_generator(SystemRandomness()).random(1000) for _ in range(2))
    assert not np.intersect1d(first, second).size


def test_results_are_not_overwritten_by_later_draws(source) -> None:
    for draw in (source.uniform, source.normal):
        one = draw(10)
        kept = one.copy()
        draw(10)
        source.discrete_normal(5, 3.0)
        assert np.array_equal(one, kept)


def test_nothing_takes_a_seed() -> None:
    functions = [noise.unseeded_generator, SystemRandomness.__init__, SystemRandomness.bytes]
    functions += [f for _, f in inspect.getmembers(NoiseSource, inspect.isfunction)]
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            assert not {"seed", "key", "state", "generator"} & set(name.split("_")), function
            assert "Experiment" not in str(parameter.annotation)
    with pytest.raises(TypeError):
        SystemRandomness(5)


def test_seeded_randomness_can_not_stand_in_for_the_systems() -> None:
    seeded = ExperimentRandomness(1)
    for make in (NoiseSource, unseeded_generator):
        with pytest.raises((TypeError, AttributeError)):
            make(seeded)
    for name in ("numpy", "torch", "child"):
        assert not hasattr(SystemRandomness(), name)

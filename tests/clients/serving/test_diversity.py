"""Re-ranking against brute force: the determinant itself, and the definition of marginal relevance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.serving.diversity import best, explored, greedy_dpp, log_quality, mmr, spread


def pool(seed: int, size: int, dimension: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(size, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return random.normal(size=size).astype(np.float32), vectors


@pytest.mark.parametrize("seed", range(8))
def test_the_fast_greedy_choice_equals_one_by_determinants(seed: int) -> None:
    scores, vectors = pool(seed, 14)
    alike = vectors.astype(np.float64) @ vectors.T
    quality = log_quality(scores.astype(np.float64), 0.3)
    kernel = np.exp(quality)[:, None] * alike * np.exp(quality)[None]
    chosen: list[int] = []
    while len(chosen) < 6:
        rest = [one for one in range(14) if one not in chosen]
        volume = [np.linalg.det(kernel[np.ix_([*chosen, one], [*chosen, one])]) for one in rest]
        chosen.append(rest[int(np.argmax(volume))])
    assert greedy_dpp(alike, quality, 6).tolist() == chosen


def test_the_determinant_ends_where_nothing_new_is_left() -> None:
    alike = np.ones((5, 5))
    assert greedy_dpp(alike, np.arange(5.0), 5).tolist() == [4]


@pytest.mark.parametrize("seed", range(4))
def test_marginal_relevance_equals_its_definition(seed: int) -> None:
    scores, vectors = pool(seed, 12)
    alike = vectors.astype(np.float64) @ vectors.T
    relevance, chosen = (scores - scores.min()) / np.ptp(scores), []
    while len(chosen) < 7:
        rest = [one for one in range(12) if one not in chosen]
        gain = [
            0.4 * relevance[one] - 0.6 * max((alike[one, other] for other in chosen), default=0.0)
            for one in rest
        ]
        chosen.append(rest[int(np.argmax(gain))])
    assert mmr(relevance.astype(np.float64), alike, 7, 0.6).tolist() == chosen


@settings(deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.integers(0, 40),
    k=st.integers(1, 50),
    knob=st.sampled_from([0.0, 1e-6, 0.01, 0.5, 0.99, 1.0]),
    method=st.sampled_from(["dpp", "mmr"]),
    dimension=st.integers(1, 4),
)
def test_a_list_is_never_shorter_for_being_varied(seed, size, k, knob, method, dimension) -> None:
    scores, vectors = pool(seed, size, dimension)
    found = spread(scores, vectors, k, knob, method)
    assert len(found) == len(set(found.tolist())) == min(k, size)


@pytest.mark.parametrize("method", ["dpp", "mmr"])
def test_a_knob_near_0_gives_the_best(method: str) -> None:
    scores, vectors = pool(1, 30)
    assert spread(scores, vectors, 10, 1e-9, method).tolist() == best(scores, 10).tolist()


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(1, 35))
def test_the_best_equal_a_stable_sort(values: list[int], k: int) -> None:
    scores = np.array(values, dtype=np.float32)
    assert best(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_hidden_items_are_never_the_best() -> None:
    assert best(np.array([-np.inf, 1.0, -np.inf], dtype=np.float32), 3).tolist() == [1]


def test_exploring_follows_the_scores() -> None:
    """Drawn in proportion to exp(score): twice as likely, twice as often."""
    random = np.random.default_rng(3)
    scores = np.log(np.array([1.0, 2.0, 4.0, 1e-9], dtype=np.float32))
    drawn = [int(explored(scores, np.array([0, 1, 2]), 1, random)[0]) for _ in range(7000)]
    share = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(share, [1 / 7, 2 / 7, 4 / 7, 0], atol=0.03)

"""The mixture: it finds planted weights, and refuses what it was not fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from crossrec_model.ranking import REPEAT_NAMES, Components, Mixture, fit_mixture

NAMES = ("one", "two", "noise")


def _components(users: int = 300, candidates: int = 40, seed: int = 0) -> Components:
    random = np.random.default_rng(seed)
    count = np.where(
        random.random((users, candidates)) < 0.3, random.integers(1, 6, (users, candidates)), 0
    )
    return Components(
        names=NAMES,
        values=random.normal(size=(3, users, candidates)).astype(np.float32),
        count=count.astype(np.float32),
        age=random.uniform(0, 90, (users, candidates)).astype(np.float32),
    )


def _taken(components: Components, weights: list[float], seed: int = 1) -> np.ndarray:
    """Each user takes 10 items by the softmax of the planted mixture (Gumbel top-10)."""
    score = Mixture(names=NAMES, weights=tuple(weights)).scores(components)
    noisy = score + np.random.default_rng(seed).gumbel(size=score.shape)
    taken = np.zeros(score.shape, dtype=bool)
    np.put_along_axis(taken, np.argsort(-noisy, axis=1)[:, :3], values=True, axis=1)
    return taken


def test_planted_weights_are_found() -> None:
    components = _components()
    planted = [1.0, -0.5, 0.0, 0.3, 1.0, 0.0, 1.0, 0.8, 0.5]
    found = np.array(fit_mixture(components, _taken(components, planted)).weights)
    assert np.corrcoef(found, planted)[0, 1] > 0.97
    np.testing.assert_allclose(found[:3], planted[:3], atol=0.2)
    assert abs(found[2]) < 0.1
    assert abs(found[5]) < 0.1


def test_fitting_has_no_chance_in_it_and_beats_even_weights() -> None:
    components = _components()
    taken = _taken(components, [2.0, 0, 0, 2.0, 0, 0, 0, 0, 0])
    one, two = fit_mixture(components, taken), fit_mixture(components, taken)
    assert one == two

    def hits(mixture: Mixture) -> float:
        best = mixture.scores(components).argmax(axis=1)
        return float(taken[np.arange(len(best)), best].mean())

    even = Mixture(names=NAMES, weights=(1.0,) * 6 + (0.0,) * 3)
    assert hits(one) > hits(even) + 0.1


def test_scores_are_the_weighted_features() -> None:
    components = _components(users=4, candidates=5)
    weights = tuple(float(w) for w in np.random.default_rng(3).normal(size=9))
    found = Mixture(names=NAMES, weights=weights).scores(components)
    assert found.shape == (4, 5)
    assert found.dtype == np.float32
    for user in range(4):
        for item in range(5):
            values = components.values[:, user, item]
            count, age = components.count[user, item], components.age[user, item]
            if count == 0:
                expected = np.dot(weights[:3], values)
            else:
                again = [1.0, np.log1p(count), np.exp(-age / 30)]
                expected = np.dot(weights[3:6], values) + np.dot(weights[6:], again)
            assert found[user, item] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_users_without_a_taking_change_nothing() -> None:
    components = _components(users=50)
    taken = _taken(components, [1.0] * 6 + [0.0] * 3)
    taken[10:20] = False
    rows = np.r_[0:10, 20:50]
    whole = fit_mixture(components, taken).weights
    part = fit_mixture(components.users(rows), taken[rows]).weights
    np.testing.assert_allclose(whole, part, rtol=1e-6)
    with pytest.raises(ValueError, match="no user took a candidate"):
        fit_mixture(components, np.zeros_like(taken))


def test_selecting_orders_components_by_name() -> None:
    components = _components(users=3, candidates=4)
    chosen = components.select(("noise", "one"))
    assert chosen.names == ("noise", "one")
    np.testing.assert_array_equal(chosen.values, components.values[[2, 0]])
    mixture = Mixture(names=NAMES, weights=(0.0,) * 9)
    with pytest.raises(ValueError, match="components are"):
        mixture.scores(chosen)


@pytest.mark.parametrize("weights", [(0.0,) * 8, (0.0,) * 8 + (float("nan"),)])
def test_a_mixture_needs_its_finite_weights(weights) -> None:
    assert len(REPEAT_NAMES) == 3
    with pytest.raises(ValueError, match="9 finite ones are needed"):
        Mixture(names=NAMES, weights=weights)

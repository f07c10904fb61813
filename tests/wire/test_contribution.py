"""The mean of a cohort is the weighted mean, and nothing that is not finite gets in."""

from __future__ import annotations

import numpy as np
import pytest

from crossrec_model.errors import WireError
from crossrec_model.wire.contribution import mean_of, pack


def test_the_sum_gives_the_weighted_mean() -> None:
    rng = np.random.default_rng(5)
    updates, weights = rng.normal(size=(3, 7)), np.array([2.0, 5.0, 0.0])
    losses = np.array([0.5, 0.25, 100.0])
    parts = [pack(updates[i], weights[i], (losses[i],)) for i in range(3)]
    assert all(part.dtype == np.float32 and part.shape == (9,) for part in parts)
    mean = mean_of(np.sum(np.stack(parts), axis=0, dtype=np.float64), 7)
    np.testing.assert_allclose(mean.update, np.average(updates, axis=0, weights=weights), rtol=1e-6)
    assert mean.weight == 7.0
    assert mean.metrics == pytest.approx([np.average(losses, weights=weights)], rel=1e-6)


@pytest.mark.parametrize(
    ("update", "weight", "metrics"),
    [
        ([np.nan], 1.0, ()),
        ([np.inf], 1.0, ()),
        ([1e30], 1e30, ()),
        ([1.0], -1.0, ()),
        ([1.0], np.nan, ()),
        ([1.0], 1.0, (np.nan,)),
    ],
)
def test_what_is_not_finite_or_too_large_is_refused(
    update: list[float], weight: float, metrics: tuple[float, ...]
) -> None:
    with pytest.raises(WireError):
        pack(np.array(update), weight, metrics)


def test_a_cohort_without_weight_or_of_the_wrong_length_has_no_mean() -> None:
    with pytest.raises(WireError, match=r"total weight is 0\.0"):
        mean_of(np.zeros(4), 3)
    with pytest.raises(WireError, match="3 numbers; at least 4"):
        mean_of(np.ones(3), 3)

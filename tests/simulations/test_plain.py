"""Sums in the open: the weighted mean, and nothing that is not finite gets in."""

from __future__ import annotations

import numpy as np
import pytest

from crossrec_model.config import Plan
from crossrec_model.errors import FederationError
from crossrec_model.secagg.errors import NotFiniteError, OutOfTurnError
from crossrec_model.secagg.messages import Kind
from crossrec_model.wire.codec import Reader, Vector
from crossrec_model.wire.contribution import Contribution
from simulations.plain import PlainSealer, mean_of, pack


def _contribution(
    update: list[float] | np.ndarray, weight: float, metrics: tuple[float, ...]
) -> Contribution:
    numbers = np.asarray(update, dtype=np.float32)
    return Contribution(update=numbers, weight=weight, metrics=metrics)


def test_the_sum_gives_the_weighted_mean() -> None:
    rng = np.random.default_rng(5)
    updates, weights = rng.normal(size=(3, 7)), np.array([2.0, 5.0, 0.0])
    losses = np.array([0.5, 0.25, 100.0])
    parts = [pack(_contribution(updates[i], weights[i], (losses[i],))) for i in range(3)]
    assert all(part.dtype == np.float32 and part.shape == (9,) for part in parts)
    mean = mean_of(np.sum(np.stack(parts), axis=0, dtype=np.float64), 7)
    np.testing.assert_allclose(mean.update, np.average(updates, axis=0, weights=weights), rtol=1e-6)
    assert mean.weight == 7.0
    assert mean.metrics == pytest.approx([np.average(losses, weights=weights)], rel=1e-6)
    # Nothing is rounded to a grid here.
    assert (mean.update_error, mean.metric_errors) == (0.0, ())


@pytest.mark.parametrize(
    ("update", "weight", "metrics"),
    [
        ([np.nan], 1.0, ()),
        ([np.inf], 1.0, ()),
        ([-np.inf], 0.0, ()),
        ([1e30], 1e30, ()),
        ([1.0], -1.0, ()),
        ([1.0], np.nan, ()),
        ([1.0], np.inf, ()),
        ([1.0], 1.0, (np.nan,)),
    ],
)
def test_what_is_not_finite_or_too_large_is_refused(
    update: list[float], weight: float, metrics: tuple[float, ...]
) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(NotFiniteError):
        pack(_contribution(update, weight, metrics))


def test_a_cohort_without_weight_has_no_mean() -> None:
    with pytest.raises(FederationError, match=r"total weight is 0\.0"):
        mean_of(np.zeros(4), 3)


def test_a_plain_sealer_sends_the_vector_and_knows_no_protocol() -> None:
    sealer, contribution = PlainSealer(Plan()), _contribution([0.5, -2.0], 3.0, (0.25,))
    pieces = sealer.seal(b"", contribution, run=bytes(16), kind=Kind.TRAIN, number=1, subject=b"")
    reader = Reader(b"".join(pieces))
    np.testing.assert_array_equal(Vector("sent").read(reader), [1.5, -6.0, 3.0, 0.75])
    reader.end()
    with pytest.raises(OutOfTurnError, match="7 bytes came, but sums are not secure here"):
        sealer.answer(b"invited")

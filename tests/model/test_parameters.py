"""The flat vector: what is packed comes out, and nothing private has a place in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import MODEL

from clients.private import private_config
from crossrec_model.config import Plan
from crossrec_model.data.users import USER_NUMBERS
from crossrec_model.errors import WireError
from crossrec_model.network import Network
from crossrec_model.parameters import (
    MOMENT_SCALE,
    Layout,
    initial_network,
    initial_vector,
    no_statistics,
)
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import Statistics

PLAN = Plan(model=MODEL, seed=3)
MOMENTS = 2 * len(USER_NUMBERS)


def test_packing_and_unpacking_are_inverse() -> None:
    layout = Layout(MODEL)
    vector = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    # Moments travel within [-1, 1], the ends included.
    vector[-MOMENTS:] = np.clip(vector[-MOMENTS:], -1, 1)
    assert np.abs(vector[-MOMENTS:]).max() == 1.0
    network, statistics = layout.unpack(vector, torch.device("cpu"))
    np.testing.assert_array_equal(layout.pack(network, statistics), vector)
    np.testing.assert_array_equal(statistics.sketch, vector[layout.trained :][: 2 * 32])
    # The copy is deep: what is trained does not change the vector received.
    before = vector.copy()
    with torch.no_grad():
        network.items.weight += 1
    np.testing.assert_array_equal(vector, before)


def _statistics(mean: np.ndarray, square: np.ndarray) -> Statistics:
    sketch = np.random.default_rng(1).random(2 * 32).astype(np.float32)
    return Statistics(sketch=sketch, mean=mean.astype(np.float32), square=square.astype(np.float32))


def test_moments_within_the_scale_come_back_to_the_last_bit() -> None:
    layout, random = Layout(MODEL), np.random.default_rng(2)
    network = initial_network(MODEL, ExperimentRandomness(3))
    half = MOMENTS // 2
    for size in (1e-30, 1e-3, 1.0, 30.0, MOMENT_SCALE):
        mean = random.uniform(-size, size, half)
        square = np.concatenate([random.uniform(0, size, half - 1), [size]])
        statistics = _statistics(mean, square)
        vector = layout.pack(network, statistics)
        # All that travels of them is within the bound of what a sum takes.
        assert np.abs(vector[layout.trained :]).max() <= 1.0
        np.testing.assert_array_equal(layout.tail(statistics), vector[layout.trained :])
        _, back = layout.unpack(vector, torch.device("cpu"))
        for name in ("sketch", "mean", "square"):
            np.testing.assert_array_equal(getattr(back, name), getattr(statistics, name))
            assert getattr(back, name).dtype == np.float32


def test_moments_beyond_the_scale_are_held_at_it() -> None:
    layout, half = Layout(MODEL), MOMENTS // 2
    mean, square = np.zeros(half), np.full(half, 2 * MOMENT_SCALE)
    mean[:3] = -2 * MOMENT_SCALE, 1e30, 0.5
    vector = layout.pack(Network(MODEL), _statistics(mean, square))
    _, back = layout.unpack(vector, torch.device("cpu"))
    np.testing.assert_array_equal(back.mean[:3], [-MOMENT_SCALE, MOMENT_SCALE, 0.5])
    np.testing.assert_array_equal(back.square, MOMENT_SCALE)


def test_the_vector_has_every_trained_parameter_once_in_a_fixed_order() -> None:
    layout = Layout(MODEL)
    network = Network(MODEL)
    assert list(layout.shapes) == [name for name, _ in network.named_parameters()]
    assert layout.trained == sum(p.numel() for p in network.parameters())
    assert layout.size == layout.trained + 2 * 32 + 2 * 14


def test_a_vector_of_another_length_is_refused() -> None:
    layout = Layout(MODEL)
    with pytest.raises(WireError, match=f"{layout.size - 1} numbers"):
        layout.unpack(np.zeros(layout.size - 1, dtype=np.float32), torch.device("cpu"))


def test_the_private_network_does_not_fit_into_the_vector() -> None:
    private = Network(private_config(MODEL))
    assert "bought_together" not in MODEL.relations
    packed = Layout(MODEL).pack(private, no_statistics(MODEL))
    with pytest.raises(WireError, match="use the plan"):
        Layout(MODEL).unpack(packed, torch.device("cpu"))


def test_the_first_vector_depends_on_the_plan_alone() -> None:
    one, two = initial_vector(PLAN), initial_vector(PLAN)
    np.testing.assert_array_equal(one, two)
    other = initial_vector(Plan(model=MODEL, seed=4))
    assert np.abs(one - other).max() > 0
    np.testing.assert_array_equal(one[Layout(MODEL).trained :], 0.0)
    network = initial_network(MODEL, ExperimentRandomness(3))
    np.testing.assert_array_equal(Layout(MODEL).pack(network, no_statistics(MODEL)), one)

"""The flat vector: what is packed comes out, and nothing private has a place in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import MODEL

from clients.private import private_config
from crossrec_model.config import Plan
from crossrec_model.errors import WireError
from crossrec_model.network import Network
from crossrec_model.parameters import Layout, initial_network, initial_vector, no_statistics
from crossrec_model.randomness import ExperimentRandomness

PLAN = Plan(model=MODEL, seed=3)


def test_packing_and_unpacking_are_inverse() -> None:
    layout = Layout(MODEL)
    vector = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    network, statistics = layout.unpack(vector, torch.device("cpu"))
    np.testing.assert_array_equal(layout.pack(network, statistics), vector)
    np.testing.assert_array_equal(statistics.sketch, vector[layout.trained :][: 2 * 32])
    # The copy is deep: what is trained does not change the vector received.
    before = vector.copy()
    with torch.no_grad():
        network.items += 1
    np.testing.assert_array_equal(vector, before)


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

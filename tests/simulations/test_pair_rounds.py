"""Rounds for pairs: what the federation sums up is what all rows in one place would give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_private_runs import PLAN, _Lines, _run, datasets  # noqa: F401

from crossrec_model.config import Plan
from crossrec_model.pairs import as_matrix, popular_cells
from crossrec_model.parameters import Layout
from crossrec_model.privacy.planning import private_plan
from crossrec_model.statistics import Statistics
from simulations.pooled import pooled_statistics
from simulations.sums import plain_sums, secure_sums

WITH_PAIRS: Plan = replace(
    PLAN,
    model=replace(PLAN.model, pair_items=10),
    federation=replace(PLAN.federation, rounds=6),
)


@pytest.mark.parametrize("secure", [False, True])
def test_the_shared_pairs_are_those_of_all_rows_in_one_place(datasets, secure: bool) -> None:  # noqa: F811
    three = {name: datasets[name] for name in "ABC"}
    sums = secure_sums("ABC") if secure else plain_sums("ABC")
    end = _run(WITH_PAIRS, sums, three, {}, _Lines())
    assert end.round == 6
    network, found = Layout(WITH_PAIRS.model).unpack(end.parameters, torch.device("cpu"))
    expected = pooled_statistics(three, WITH_PAIRS, at_test=True)
    assert expected.pairs.max() > 0
    np.testing.assert_allclose(found.sketch, expected.sketch, atol=1e-4 if secure else 1e-6)
    # Cells that are equally popular may stand in another order, after rounding at random.
    one, both = _pairs_by_cell(found, expected)
    assert len(one) >= 8
    # Within the grid's steps, in users.
    assert np.abs(one - both).max() * WITH_PAIRS.pair_unit < 0.05
    assert all(torch.isfinite(p).all() for p in network.parameters())


def _pairs_by_cell(*found: Statistics) -> list[np.ndarray]:
    """The pairs of the cells that all have among the popular ones, in one order."""
    model = WITH_PAIRS.model
    cells = [popular_cells(one, model.sketch_width, model.pair_items) for one in found]
    shared = sorted(set.intersection(*(set(c.tolist()) for c in cells)))
    matrices = []
    for one, own in zip(found, cells, strict=True):
        place = [own.tolist().index(cell) for cell in shared]
        matrices.append(as_matrix(one.pairs, model.pair_items)[np.ix_(place, place)])
    return matrices


def test_a_private_run_has_noise_in_its_pairs_too(datasets) -> None:  # noqa: F811
    plan = private_plan(WITH_PAIRS, noise="local", epsilon=8.0, delta=1e-5, honest=1)
    three = {name: datasets[name] for name in "ABC"}
    end = _run(plan, secure_sums("ABC"), three, {}, _Lines())
    statistics = Layout(plan.model).statistics(end.parameters)
    true = pooled_statistics(three, plan, at_test=True).pairs
    norm, unit = plan.model.pair_norm, plan.pair_unit
    deviation = plan.privacy.statistics_multiplier * norm / unit / 3**0.5
    # A coordinate beyond the bound is scaled with all of them, so only the order of size is asked for.
    assert 0.001 * deviation < (statistics.pairs - true).std() < 2 * deviation

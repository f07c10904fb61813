"""A useless or poisoned shared model does not take a platform below its own row."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from platform_rows import write_platform

from clients.adapters import open_source
from clients.assessment import held_out
from clients.dataset import Dataset, load_dataset
from clients.noisy_training import pair_sum
from clients.personal import Gain, Weighing, quality
from clients.scoring import SharedModel
from crossrec_model.config import Plan
from crossrec_model.data.prepared import prepare
from crossrec_model.parameters import initial_network
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import measure

STREAM = ExperimentRandomness(8, "poison")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Dataset:
    """A platform of more users than the others here: an interval needs them."""
    home = tmp_path_factory.mktemp("poisoned")
    source = open_source(str(write_platform(home / "rows", 3, users=300)), "A")
    data = prepare(source, into=home / "data", now=datetime.now(UTC))
    return load_dataset(data, plan.model, device=torch.device("cpu"))


def _shared(dataset: Dataset, plan: Plan, kind: str, seed: int) -> SharedModel:
    paired = replace(plan, model=replace(plan.model, pair_items=16))
    day, generator = dataset.split.validation, np.random.default_rng(seed)
    statistics = measure(dataset.index, dataset.items, day, plan.model.sketch_width)
    pairs = pair_sum(dataset, paired, statistics, day).values
    network = initial_network(paired.model, STREAM.child(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            if kind == "huge":
                parameter.mul_(1e3)
            elif kind == "random":
                parameter.copy_(torch.from_numpy(generator.normal(size=parameter.shape)))
    if kind in {"random", "huge"}:
        pairs = generator.exponential(size=len(pairs)) * 0.01
    if kind == "reversed":
        pairs = pairs.max() - pairs
        statistics = replace(statistics, sketch=statistics.sketch.max() - statistics.sketch)
    pairs = pairs.astype(np.float32)
    return SharedModel(plan=paired, network=network, statistics=replace(statistics, pairs=pairs))


@pytest.mark.parametrize("kind", ["untrained", "random", "huge", "reversed"])
def test_a_poisoned_model_is_not_served_or_does_no_harm(dataset, plan, kind: str) -> None:
    test = held_out(dataset, plan.training, "A", dataset.split.test, dataset.split.end)
    moment, weighing = test.moment, Weighing(dataset, plan.training, None)
    own = moment.own_components(test.users, None)
    components = moment.components(test.users, own)
    taken = test.views[0].relevant.toarray()
    harm = []
    for seed in range(4):
        shared = _shared(dataset, plan, kind, seed)
        served = weighing.against(shared).served
        if served is weighing.local:
            continue
        whole = components.joined(
            moment.shared_components(test.users, shared, moment.shared_graph(shared))
        )
        with_it = quality(served.scores(whole.select(served.names)), whole, taken)
        without = quality(weighing.local.scores(components), components, taken)
        gain = Gain.of(with_it - without)
        harm.append(gain.mean + 1.96 * gain.error)
    assert all(high >= 0 for high in harm), harm


def test_what_is_not_weighed_does_harm(dataset, plan) -> None:
    """What the test above protects against is real: served as it comes, the model ruins the lists."""
    test = held_out(dataset, plan.training, "A", dataset.split.test, dataset.split.end)
    moment, weighing = test.moment, Weighing(dataset, plan.training, None)
    components = moment.components(test.users, moment.own_components(test.users, None))
    taken, shared = test.views[0].relevant.toarray(), _shared(dataset, plan, "random", 0)
    parts = moment.shared_components(test.users, shared, moment.shared_graph(shared))
    poisoned = parts["shared model"] + parts["shared graph"]
    harm = Gain.of(
        quality(poisoned, components, taken)
        - quality(weighing.local.scores(components), components, taken)
    )
    assert harm.mean + 1.96 * harm.error < 0

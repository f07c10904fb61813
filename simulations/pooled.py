"""The ceiling: the same network trained with all platforms' rows in one place.

Users stay apart by platform, as the federation sees them: what this row shows is the price of
training by rounds of averaging, not of missing linkage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from clients.dataset import Dataset
from clients.noisy_training import pair_sum
from clients.training import Step, optimizer_for, rows_in_use, steps, train_steps
from crossrec_model.config import Plan
from crossrec_model.network import Network
from crossrec_model.parameters import initial_network
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import Statistics, active_users, measure, shared_log_popularity


def pooled_statistics(datasets: Mapping[str, Dataset], plan: Plan, *, at_test: bool) -> Statistics:
    """Statistics of all platforms' users together, as of the validation or the test weeks."""
    parts, weights = [], []
    for dataset in datasets.values():
        split = dataset.split
        day = split.test if at_test else split.validation
        parts.append(measure(dataset.index, dataset.items, day, plan.model.sketch_width))
        weights.append(len(active_users(dataset.index, split.validation)))

    def mean(name: str) -> npt.NDArray[np.float32]:
        values = [getattr(part, name) for part in parts]
        return np.average(values, axis=0, weights=weights).astype(np.float32)

    found = Statistics(sketch=mean("sketch"), mean=mean("mean"), square=mean("square"))
    if not plan.pairs:
        return found
    totals = [
        pair_sum(data, plan, found, data.split.test if at_test else data.split.validation).values
        for data in datasets.values()
    ]
    return replace(found, pairs=np.mean(totals, axis=0).astype(np.float32))


def train_pooled(
    datasets: Mapping[str, Dataset], plan: Plan, statistics: Statistics, *, epochs: int
) -> Network:
    """Train on the shuffled steps of all platforms, `epochs` times over all users."""
    stream = ExperimentRandomness(plan.seed, "pooled")
    device = next(iter(datasets.values())).device
    network = initial_network(plan.model, ExperimentRandomness(plan.seed)).to(device)
    rows = rows_in_use(network, (dataset.training for dataset in datasets.values()))
    for epoch in range(1, epochs + 1):
        # A fresh optimiser an epoch, as in a federated round: the rows differ in data only.
        mixed: list[Step] = []
        for platform, dataset in sorted(datasets.items()):
            popularity = shared_log_popularity(statistics, dataset.items)
            part = stream.child("epoch", epoch, "platform", platform)
            mixed += steps(dataset.training, plan, statistics, popularity, part)
        order = torch.randperm(len(mixed), generator=stream.child("order", epoch).torch())
        with network.items.only(rows):
            optimizer = optimizer_for(network, plan.training)
            train_steps(network, optimizer, (mixed[i] for i in order.tolist()), plan)
    return network

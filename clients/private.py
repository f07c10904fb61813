"""The platform's private model: trained on its own rows only, with its own graph; never sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from clients.dataset import Dataset
from clients.graph import bought_together, nearest, user_items
from clients.training import TrainingData, optimizer_for, steps, train_steps
from crossrec_model.config import ModelConfig, Plan
from crossrec_model.encoding import ItemTensors
from crossrec_model.network import Network
from crossrec_model.parameters import initial_network
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import Statistics, item_counts, log_popularity, measure


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateModel:
    """A network of the plan's shape that also convolves over the platform's own graph."""

    network: Network
    statistics: Statistics
    tensors: ItemTensors


def private_config(model: ModelConfig) -> ModelConfig:
    """The shared network's configuration with the private relation added."""
    relations = tuple(r for r in model.relations if r != "bought_together")
    return replace(model, relations=(*relations, "bought_together"))


def private_tensors(dataset: Dataset, model: ModelConfig, graph: sp.csr_matrix) -> ItemTensors:
    """The platform's items with content relations and, last, its own bought-together relation."""
    own = nearest(graph, model.neighbours)[:, None]  # [items, 1, K]
    content = dataset.items.neighbours[:, [r != "bought_together" for r in model.relations]]
    return ItemTensors.of(
        dataset.items, dataset.device, neighbours=np.concatenate([content, own], axis=1)
    )


def train_private(
    dataset: Dataset,
    plan: Plan,
    stream: ExperimentRandomness,
    *,
    epochs: int,
    note: Callable[[int, float], None] = lambda epoch, loss: None,
) -> PrivateModel:
    """Train on the events before the validation weeks; `note(epoch, loss)` as it goes."""
    end = dataset.split.validation
    config = private_config(plan.model)
    graph = bought_together(user_items(dataset.histories, len(dataset.items), end))
    tensors = private_tensors(dataset, plan.model, graph)
    statistics = measure(dataset.index, dataset.items, end, plan.model.sketch_width)
    popularity = log_popularity(item_counts(dataset.histories, len(dataset.items), end))
    network = initial_network(config, stream).to(dataset.device)
    data = TrainingData(index=dataset.index, items=dataset.items, tensors=tensors, end=end)
    for epoch in range(1, epochs + 1):
        # A fresh optimiser an epoch, as in a federated round: the rows differ in data only.
        optimizer = optimizer_for(network, plan.training)
        one = steps(data, plan, statistics, popularity, stream.child("epoch", epoch))
        note(epoch, train_steps(network, optimizer, one, plan))
    return PrivateModel(network=network, statistics=statistics, tensors=tensors)


def restore_private(
    dataset: Dataset,
    plan: Plan,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    statistics: Statistics,
    *,
    day: float,
) -> PrivateModel:
    """The model of saved network tensors, over the graph of what was taken before `day`."""
    network = Network(private_config(plan.model)).to(dataset.device)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    graph = bought_together(user_items(dataset.histories, len(dataset.items), day))
    return PrivateModel(
        network=network, statistics=statistics, tensors=private_tensors(dataset, plan.model, graph)
    )

"""The platform's private model: trained on its own rows only, with its own graph; never sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from clients.dataset import Dataset
from clients.graph import nearest
from clients.training import TrainingData, train
from crossrec_model.config import ModelConfig, Plan
from crossrec_model.data.items import item_table
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


def private_tensors(dataset: Dataset, model: ModelConfig, day: float) -> ItemTensors:
    """The platform's items as only it may see them.

    Items without a shared id have a row from their own id; the last relation is the platform's
    bought-together graph of the events before `day`.
    """
    items = dataset.items
    if (items.sketch[:, 0] < 0).any():
        items = item_table(items.catalogue, model, private_ids=True)
    own = nearest(dataset.graph(day), model.neighbours)[:, None]  # [items, 1, K]
    content = items.neighbours[:, [r != "bought_together" for r in model.relations]]
    neighbours = np.concatenate([content, own], axis=1)
    return ItemTensors.of(items, dataset.device, neighbours=neighbours)


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
    tensors = private_tensors(dataset, plan.model, end)
    statistics = measure(dataset.index, dataset.items, end, plan.model.sketch_width)
    popularity = log_popularity(item_counts(dataset.histories, len(dataset.items), end))
    network = initial_network(config, stream).to(dataset.device)
    data = TrainingData(index=dataset.index, items=dataset.items, tensors=tensors, end=end)
    for epoch in range(1, epochs + 1):
        # A fresh optimiser an epoch, as in a federated round: the rows differ in data only.
        part = stream.child("epoch", epoch)
        note(epoch, train(network, data, plan, statistics, popularity, [part]))
    return PrivateModel(network=network, statistics=statistics, tensors=tensors)


def restore_private(
    dataset: Dataset,
    plan: Plan,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    statistics: Statistics,
    *,
    day: float,
) -> PrivateModel:
    """The model of saved network tensors, over the graph of what was taken before `day`.

    Raises:
        RuntimeError: if the tensors are not those of the plan's private network.
    """
    network = Network(private_config(plan.model)).to(dataset.device)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return PrivateModel(
        network=network, statistics=statistics, tensors=private_tensors(dataset, plan.model, day)
    )

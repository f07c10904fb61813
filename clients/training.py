"""Local training on per-user blocks: one platform, one round, one epoch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crossrec_model.config import Plan, TrainingConfig
from crossrec_model.data.items import ItemTable
from crossrec_model.data.sampling import BlockSampler, UserBlock
from crossrec_model.data.users import Float64, HistoryIndex, Int
from crossrec_model.encoding import ItemTensors, encode
from crossrec_model.network import Network
from crossrec_model.objective import user_losses
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import Statistics, active_users


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """What one platform trains on: its users' events before `end` and its items."""

    index: HistoryIndex
    items: ItemTable
    tensors: ItemTensors
    end: float

    def users(self) -> Int:
        """Numbers of the users that training may draw."""
        return active_users(self.index, self.end)

    def sampler(self, config: TrainingConfig) -> BlockSampler:
        """Blocks from the events before `end`."""
        return BlockSampler(self.index, config, items=len(self.items), end=self.end)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """Input of one optimiser step: a block of users and the negatives that all of them share."""

    block: UserBlock
    negatives: Tensor
    numbers: Tensor
    tensors: ItemTensors


def steps(
    data: TrainingData,
    plan: Plan,
    statistics: Statistics,
    log_popularity: Float64,
    stream: ExperimentRandomness,
) -> Iterator[Step]:
    """One epoch: every user once, in blocks of `users_per_step`; deterministic in `stream`."""
    config, generator = plan.training, stream.numpy()
    sampler, users = data.sampler(config), generator.permutation(data.users())
    cumulative = np.cumsum(np.exp(log_popularity))
    device = data.tensors.buckets.device
    for part in np.array_split(users, max(1, round(len(users) / config.users_per_step))):
        block = sampler.draw(part, log_popularity, generator)
        negatives = catalogue_rows(cumulative, generator.random(config.negatives))
        yield Step(
            block=to_device(block, device),
            negatives=torch.from_numpy(negatives).to(device),
            numbers=torch.from_numpy(statistics.standardise(block.numbers.numpy())).to(device),
            tensors=data.tensors,
        )


def catalogue_rows(cumulative: Float64, uniform: Float64) -> Int:
    """Rows of the catalogue by a running total of popularity [items], from uniform numbers of any shape."""
    rows = np.searchsorted(cumulative, uniform * cumulative[-1])
    drawn: Int = np.minimum(rows, len(cumulative) - 1)
    return drawn


def to_device(block: UserBlock, device: torch.device) -> UserBlock:
    """The same block on `device`."""
    return replace(block, **{name: tensor.to(device) for name, tensor in vars(block).items()})


def losses(network: Network, step: Step, plan: Plan) -> Tensor:
    """Loss of each user of a step, [B]; every distinct item is encoded once."""
    block = step.block
    b, m = block.positives.shape
    rows = torch.cat([block.positives.flatten(), step.negatives])
    items, u = encode(network, step.tensors, rows, block, step.numbers)  # u [B, D]
    h, e = items.h[: b * m].view(b, m, -1), items.e[: b * m].view(b, m, -1)  # [B, M, D]
    taken = network.pair_logits(h, e, u)  # [B, M]
    left = network.all_logits(items.h[b * m :], items.e[b * m :], u)  # [B, N]
    return user_losses(plan.training.objective, taken, block.mask, left)


def optimizer_for(network: Network, config: TrainingConfig) -> torch.optim.Optimizer:
    """The plan's local optimiser."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=config.learning_rate)
    return torch.optim.Adam(network.parameters(), lr=config.learning_rate, eps=1e-6, fused=True)


def train_steps(
    network: Network, optimizer: torch.optim.Optimizer, epoch: Iterator[Step], plan: Plan
) -> float:
    """Take one optimiser step per `Step`; return the mean loss of the users that had a positive."""
    total, users = 0.0, 0
    for step in epoch:
        each = losses(network, step, plan)
        counted = int((step.block.mask.sum(1) > 0).sum())
        loss = each.sum() / max(counted, 1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, users = total + float(each.detach().sum()), users + counted
    return total / max(users, 1)

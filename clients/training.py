"""Local training on per-user blocks: one platform, one round, one epoch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

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

#: Users whose blocks are drawn at once: bounds memory.
_DRAWN_TOGETHER: Final = 1 << 14


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
    """Input of one optimiser step: a block of users and its negatives.

    `negatives` int64 [N] are shared by all users, or [B, N] are each one's.
    """

    block: UserBlock
    negatives: Tensor
    numbers: Tensor
    tensors: ItemTensors


def train(
    network: Network,
    data: TrainingData,
    plan: Plan,
    statistics: Statistics,
    log_popularity: Float64,
    streams: Sequence[ExperimentRandomness],
) -> float:
    """Train in place with a fresh optimiser, an epoch a stream; return the last epoch's mean loss."""
    loss = 0.0
    with network.items.only(rows_in_use(network, [data])):
        optimizer = optimizer_for(network, plan.training)
        for stream in streams:
            epoch = steps(data, plan, statistics, log_popularity, stream)
            loss = train_steps(network, optimizer, epoch, plan)
    return loss


def rows_in_use(network: Network, parts: Iterable[TrainingData]) -> Tensor:
    """Rows of the hash table that training on these data can read, int64 ascending, on their device."""
    table = network.items.weight
    used = torch.zeros(len(table), dtype=torch.bool, device=table.device)
    used[0] = True
    for data in parts:
        used[data.tensors.buckets] = True
        used[torch.from_numpy(data.index.histories.context).to(used.device)] = True
    return used.nonzero().squeeze(1)


def steps(
    data: TrainingData,
    plan: Plan,
    statistics: Statistics,
    log_popularity: Float64,
    stream: ExperimentRandomness,
) -> Iterator[Step]:
    """One epoch: every user drawn once, `users_per_step` a step; deterministic in `stream`.

    A step holds those of its users who have a positive: the others' loss is 0.
    """
    config, generator = plan.training, stream.numpy()
    sampler, users = data.sampler(config), generator.permutation(data.users())
    cumulative = np.cumsum(np.exp(log_popularity))
    device = data.tensors.buckets.device
    least = max(1, min(config.least_steps, len(users)))
    count = max(least, round(len(users) / config.users_per_step))
    edges = np.arange(count + 1) * len(users) // count
    together = max(1, _DRAWN_TOGETHER // config.users_per_step)
    for first in range(0, count, together):
        ends = edges[first : first + together + 1]
        speaking, block = sampler.draw_speaking(
            users[ends[0] : ends[-1]], log_popularity, generator
        )
        uniform = generator.random((len(ends) - 1, config.negatives))
        negatives = torch.from_numpy(catalogue_rows(cumulative, uniform)).to(device)
        numbers = torch.from_numpy(statistics.standardise(block.numbers.numpy())).to(device)
        block = to_device(block, device)
        cuts = np.searchsorted(speaking, ends - ends[0]).tolist()
        for number, (start, end) in enumerate(pairwise(cuts)):
            yield Step(
                block=UserBlock(**{name: all_[start:end] for name, all_ in vars(block).items()}),
                negatives=_dealt(negatives[number], end - start, config, generator),
                numbers=numbers[start:end],
                tensors=data.tensors,
            )


def _dealt(
    negatives: Tensor, users: int, config: TrainingConfig, generator: np.random.Generator
) -> Tensor:
    """A step's negatives [N], or each user's own stretch of them, [users, negatives_a_user]."""
    if config.negatives_a_user == 0:
        return negatives
    first = torch.from_numpy(generator.integers(len(negatives), size=(users, 1)))
    places = (first + torch.arange(config.negatives_a_user)) % len(negatives)
    return negatives[places.to(negatives.device)]


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
    user, slot = block.mask.nonzero(as_tuple=True)  # of T positives
    rows = torch.cat([block.positives[user, slot], step.negatives.flatten()])
    items, u = encode(network, step.tensors, rows, block, step.numbers)  # u [B, D]
    t = len(user)
    shared = step.negatives.dim() == 1
    pairs = t if shared else len(rows)
    if not shared:
        each = torch.arange(len(u), device=u.device).repeat_interleave(step.negatives.shape[1])
        user = torch.cat([user, each])
    owner = u.index_select(0, user)  # of T pairs, or of T + B·N
    own = network.logits_of(items.h[:pairs], items.e[:pairs], owner)
    where = (user[:t], slot)
    taken = own.new_zeros(block.mask.shape).index_put(where, own[:t])  # [B, M]
    left = own[t:]  # of each user's own negatives
    if shared:
        left = network.all_logits(items.h[t:], items.e[t:], u)
    left = left.view(len(block.mask), step.negatives.shape[-1])  # [B, N]
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
    total, users = torch.zeros(()), 0
    for step in epoch:
        each = losses(network, step, plan)
        counted = int(step.block.mask.any(1).sum())
        loss = each.sum() / max(counted, 1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, users = total + each.detach().sum().cpu(), users + counted
    return float(total) / max(users, 1)

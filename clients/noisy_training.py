"""What a platform gives a private run: noised steps, a noised popularity, or one bounded sum a round.

Everything of a user's that is read here ends up in a sum that moves by at most a stated bound if she
is left out; noise in proportion to that bound is added before anything is returned. How many users
there are, which were drawn and what their loss was is returned to nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from clients.dataset import Dataset
from clients.training import TrainingData, catalogue_rows, to_device
from crossrec_model.config import Plan
from crossrec_model.data.items import SKETCH_ROWS
from crossrec_model.data.sampling import BlockSampler, UserBlock
from crossrec_model.data.users import Float64, Int
from crossrec_model.network import Network
from crossrec_model.pairs import places, popular_cells, summed_pairs
from crossrec_model.parameters import Layout
from crossrec_model.privacy.bounded import BoundedSum
from crossrec_model.privacy.descent import NoisyDescent
from crossrec_model.privacy.noise import NoiseSource, unseeded_generator
from crossrec_model.privacy.per_user import (
    TABLE,
    ClippedSum,
    Inputs,
    PerUserGradients,
    UserBatch,
    inputs_of,
)
from crossrec_model.randomness import SystemRandomness
from crossrec_model.statistics import Statistics, shared_log_popularity, user_popularity

#: Users whose gradients are held at once: bounds memory, changes no result.
MICRO_BATCH: Final = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateBatches:
    """Draws Poisson samples of a platform's users, in micro-batches as the network reads them.

    `statistics` are the federation's, as received: nothing here is measured on the platform.
    """

    data: TrainingData
    plan: Plan
    statistics: Statistics
    randomness: SystemRandomness

    def sample(self, network: Network, source: NoiseSource) -> Iterator[Inputs]:
        """One step's users: each with the plan's rate, none of them is no micro-batch at all."""
        users = source.chosen(len(self.data.index.histories), self.plan.privacy.rate)
        for start in range(0, len(users), MICRO_BATCH):
            yield self._inputs(network, users[start : start + MICRO_BATCH])

    @cached_property
    def _popularity(self) -> Float64:
        return shared_log_popularity(self.statistics, self.data.items)

    @cached_property
    def _cumulative(self) -> Float64:
        return np.cumsum(np.exp(self._popularity))

    @cached_property
    def _sampler(self) -> BlockSampler:
        return BlockSampler(
            self.data.index,
            self.plan.training,
            items=len(self.data.items),
            end=self.data.end,
            reach_days=self.plan.privacy.reach_days,
        )

    def _inputs(self, network: Network, users: Int) -> Inputs:
        plan = self.plan
        generator = unseeded_generator(self.randomness)
        block = self._sampler.draw(users, self._popularity, generator)
        numbers = self.statistics.standardise(block.numbers.numpy())
        device = self.data.tensors.buckets.device
        shape = (len(users), plan.privacy.negatives)
        negatives = catalogue_rows(self._cumulative, generator.random(shape))
        batch = UserBatch(
            block=to_device(_of_one_width(block, plan.training.history), device),
            negatives=torch.from_numpy(negatives).to(device),
            numbers=torch.from_numpy(numbers).to(device),
        )
        return inputs_of(network, self.data.tensors, batch)


def _of_one_width(block: UserBlock, history: int) -> UserBlock:
    """Histories [B, history] with padding: how long a user's row is must not depend on the others."""
    spare = history - block.history.shape[1]
    return replace(
        block,
        history=functional.pad(block.history, (0, spare)),
        weights=functional.pad(block.weights, (0, 0, 0, spare)),
    )


def noised_training(network: Network, batches: PrivateBatches) -> float:
    """Take the plan's noised steps on a network in place; return the mean loss, for our operator only.

    After it the network may leave: each step is one sampled Gaussian mechanism on the ledger.
    """
    privacy = batches.plan.privacy
    source, losses = NoiseSource(batches.randomness), _Losses()
    descent = NoisyDescent(
        network,
        source,
        clip=privacy.clip,
        multiplier=privacy.multiplier,
        expected=privacy.rate * privacy.population,
        learning_rate=privacy.learning_rate,
        table=privacy.train_table,
    )
    with _gradients(network, batches) as gradients:
        for _ in range(privacy.steps):
            parts: list[ClippedSum] = []
            for inputs in batches.sample(network, source):
                descent.owed(inputs.buckets)
                parts.append(gradients.clipped_sum(inputs))
                losses.add(parts[-1])
            descent.step(parts)
    descent.settle()
    return losses.mean()


def summed_gradient(
    network: Network, batches: PrivateBatches, layout: Layout
) -> tuple[BoundedSum, float]:
    """-Σ of all users' clipped gradients / population over the trained part, without noise; mean loss.

    It must not leave but through `BoundedSum.on_grid`, whose noise only the sum over platforms completes.
    """
    privacy, losses = batches.plan.privacy, _Losses()
    total = np.zeros(layout.trained, dtype=np.float64)
    places = layout.places()
    with _gradients(network, batches) as gradients:
        for inputs in batches.sample(network, NoiseSource(batches.randomness)):
            part = gradients.clipped_sum(inputs)
            losses.add(part)
            for name, gradient in part.dense.items():
                total[places[name]] -= gradient.cpu().numpy().ravel()
            if part.table is not None:
                table = torch.from_numpy(total[places[TABLE]]).view(network.items.weight.shape)
                table.index_add_(0, part.table.rows.cpu(), -part.table.values.cpu().double())
    total /= privacy.population
    return BoundedSum(values=total, sensitivity=privacy.clip / privacy.population), losses.mean()


def summed_popularity(data: TrainingData, day: float, plan: Plan) -> BoundedSum:
    """What the platform's users took before `day`, as cells of the sketch / population; no noise yet.

    A user's cells, faded by age, are scaled down to an L2 norm of 1.
    """
    users, rows, weights = user_popularity(data.index.histories, len(data.items), day)
    cells = data.items.sketch[rows]  # [n, SKETCH_ROWS]
    shared, size = cells[:, 0] >= 0, SKETCH_ROWS * plan.model.sketch_width
    # Two of a user's items may share a cell: her norm is that of her cells, not of her items.
    keys = (users[shared, None] * size + cells[shared]).ravel()
    distinct, place = np.unique(keys, return_inverse=True)
    values = np.bincount(place, np.repeat(weights[shared], SKETCH_ROWS), len(distinct))
    norm = np.sqrt(np.bincount(distinct // size, values**2, len(data.index.histories)))
    values = values / np.maximum(norm, 1.0)[distinct // size]
    total = np.bincount(distinct % size, values, size)
    population = plan.privacy.population
    return BoundedSum(values=total / population, sensitivity=1.0 / population)


def pair_sum(dataset: Dataset, plan: Plan, statistics: Statistics, day: float) -> BoundedSum:
    """What the platform's users took together before `day`, in the plan's unit; no noise yet.

    The items are those that the shared statistics call popular. A user's pairs are scaled down to the
    plan's norm.
    """
    model = plan.model
    cells = popular_cells(statistics, model.sketch_width, model.pair_items)
    place = places(dataset.items, cells, model.sketch_width)
    total = summed_pairs(dataset.histories, place, day, model.pair_items, model.pair_norm)
    unit = plan.pair_unit
    return BoundedSum(values=total / unit, sensitivity=model.pair_norm / unit)


def _gradients(network: Network, batches: PrivateBatches) -> PerUserGradients:
    privacy = batches.plan.privacy
    return PerUserGradients(
        network,
        batches.data.tensors,
        clip=privacy.clip,
        objective=batches.plan.training.objective,
        table=privacy.train_table,
    )


class _Losses:
    """Mean loss of the users drawn, for the platform's own eyes."""

    def __init__(self) -> None:
        self._total, self._users = 0.0, 0

    def add(self, part: ClippedSum) -> None:
        """Count the losses of a clipped sum."""
        self._total += float(part.losses.sum())
        self._users += len(part.losses)

    def mean(self) -> float:
        """0 where nobody was drawn."""
        return self._total / max(self._users, 1)

"""What a platform adds to the shared vector in one round: statistics, training, each plain or private."""

from __future__ import annotations

import time

import numpy as np

from clients.membership import Member
from clients.noisy_training import (
    PrivateBatches,
    noised_training,
    pair_sum,
    summed_gradient,
    summed_popularity,
)
from clients.training import train
from crossrec_model.parameters import Vector
from crossrec_model.privacy.bounded import BoundedSum
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.randomness import ExperimentRandomness, SystemRandomness
from crossrec_model.statistics import measure, public_moments, shared_log_popularity


def plain_update(
    member: Member, platform: str, number: int, parameters: Vector
) -> tuple[Vector, float, str]:
    """A round without differential privacy: update float32 [d], mean loss, what was done.

    1. In a round of popularity or of pairs, measure the own ones: as of the validation weeks, or,
       for serving, of all that is known before the test weeks. Their difference to the received ones
       is the update; the rest of it is zero.
    2. In the rounds between, train for the plan's epochs with a fresh optimiser, on randomness that
       seed, round and platform name. The difference of the trained parts is the update; its
       statistics part is zero.
    """
    plan, layout, dataset = member.plan, member.layout, member.dataset
    work, update = plan.work_of(number), np.zeros_like(parameters)
    if work == "pairs":
        own_pairs = pair_sum(
            dataset, plan, layout.statistics(parameters), _day(member, number)
        ).values
        # A cell is worth at most the bound: a platform has more users than the unit at its own cost.
        update[layout.pairs] = np.minimum(own_pairs, 1.0) - parameters[layout.pairs]
        return update, 0.0, "measured pairs"
    if work == "popularity":
        own = measure(dataset.index, dataset.items, _day(member, number), plan.model.sketch_width)
        update[layout.measured] = layout.popularity(own) - parameters[layout.measured]
        return update, 0.0, "measured statistics"
    started = time.monotonic()
    network, statistics = layout.unpack(parameters, dataset.device)
    popularity = shared_log_popularity(statistics, dataset.items)
    stream = ExperimentRandomness(plan.seed, "round", number, "platform", platform)
    epochs = [stream.child("epoch", epoch) for epoch in range(1, plan.training.epochs + 1)]
    loss = train(network, dataset.training, plan, statistics, popularity, epochs)
    update = layout.pack(network, statistics) - parameters
    update[layout.trained :] = 0.0
    return update, loss, f"trained, loss {loss:.4f}, {time.monotonic() - started:.2f} s"


def private_update(
    member: Member, number: int, parameters: Vector, honest: int
) -> tuple[Vector, str]:
    """A round of a private plan: update float32 [d], and what was done for our operator's eyes.

    The charge for it must be on the ledger already.

    1. In a round of popularity, the users' summed popularity with noise takes the place of the
       sketch; the moments are public constants. In a round of pairs, their summed pairs with noise do.
    2. In the rounds between, with local noise, the plan's noised steps are taken and the difference
       of the trained parts is the update. With distributed noise it is the users' summed gradient.
    3. With distributed noise the update lies on the grid, and `honest` platforms' shares of the
       noise protect the sum.
    """
    plan, layout, dataset = member.plan, member.layout, member.dataset
    randomness, privacy = SystemRandomness(), plan.privacy
    update = np.zeros_like(parameters)
    work = plan.work_of(number)
    if work == "pairs":
        before, pairs = (
            parameters[layout.pairs],
            pair_sum(dataset, plan, layout.statistics(parameters), _day(member, number)),
        )
        update[layout.pairs] = _noised(member, pairs, honest, before)
        return update, "measured noised pairs"
    if work == "popularity":
        before = parameters[layout.measured]
        found = summed_popularity(dataset.training, _day(member, number), plan)
        cells = len(found.values)
        sketch = _noised(member, found, honest, before[:cells])
        moments = _rounded(layout.moments(*public_moments()), member)
        moments -= _rounded(before[cells:], member)
        update[layout.measured] = np.concatenate([sketch, moments])
        return update, "measured noised statistics"
    started = time.monotonic()
    network, statistics = layout.unpack(parameters, dataset.device)
    batches = PrivateBatches(
        data=dataset.training, plan=plan, statistics=statistics, randomness=randomness
    )
    if privacy.noise == "distributed":
        gradient, loss = summed_gradient(network, batches, layout)
        update[: layout.trained] = _share(member, gradient, privacy.multiplier, honest)
    else:
        loss = noised_training(network, batches)
        update = layout.pack(network, statistics) - parameters
        update[layout.trained :] = 0.0
    return (
        update,
        f"trained on noised gradients, loss {loss:.4f}, {time.monotonic() - started:.2f} s",
    )


def _noised(member: Member, found: BoundedSum, honest: int, before: Vector) -> Vector:
    """A statistic with its noise, or this platform's share of it, less what stands in the vector."""
    privacy = member.plan.privacy
    if privacy.noise == "distributed":
        return _share(member, found, privacy.statistics_multiplier, honest, before)
    source = NoiseSource(SystemRandomness())
    return found.noised(privacy.statistics_multiplier, source) - before


def _share(
    member: Member, found: BoundedSum, multiplier: float, honest: int, less: Vector | None = None
) -> Vector:
    """A bounded sum with this platform's share of the noise, as the secure sum takes it."""
    return found.on_grid(
        member.plan.aggregation,
        multiplier=multiplier,
        honest=honest,
        source=NoiseSource(SystemRandomness()),
        less=less,
    )


def _rounded(values: Vector, member: Member) -> Vector:
    """The nearest grid points, float32; a value on the grid stays itself."""
    step = member.plan.aggregation.step
    return (np.rint(values / np.float64(step)) * step).astype(np.float32)


def _day(member: Member, number: int) -> float:
    split = member.dataset.split
    return split.test if number > member.plan.federation.rounds // 2 else split.validation

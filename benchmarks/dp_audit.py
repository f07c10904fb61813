"""Whether the private path is as private as its price says, by audits of one training run each.

The audited code is `clients.noisy_training.noised_training` itself: Poisson sampling at rate 1,
micro-batches, gradients per user, clipping, owed and settled noise. Only the users' blocks are made up.
Of 16,000 canary users each is in or out by a coin. Each has two items of her own, one that she took up
and one that was drawn as her negative, all of whose tokens fall on one row of the table that nobody
else reads. The weights are such that her gradient is large, along these two rows only, and clipped: so
all canaries are orthogonal and each one's sum carries the full clip. The auditor sees the table before
and after and scores a canary by the change along her two rows, where she would push it. She guesses
"in" for the 200 highest scores, "out" for the 200 lowest and nothing else. Counts and weights were
chosen in advance, on simulated normal numbers, and are the same for both noises:

- the noise that is priced: the lower bound on epsilon must not exceed the price;
- half of it, the price unchanged: the same audit must find the price exceeded.

Lower bounds hold with 95 % confidence each, at the price's delta; figures are medians of several runs.
An audit of one run finds only part of the true epsilon.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clients.noisy_training import PrivateBatches, noised_training
from clients.training import TrainingData
from crossrec_model.config import ModelConfig, Plan, PrivacyConfig
from crossrec_model.data.sampling import UserBlock
from crossrec_model.data.users import CONTEXT_SIZE, USER_NUMBERS, Int
from crossrec_model.encoding import ItemTensors
from crossrec_model.evaluation.audit import Guesses, epsilon_lower_bound, guess
from crossrec_model.evaluation.figures import Figure, write_figures
from crossrec_model.network import Network
from crossrec_model.privacy.events import SampledGaussian
from crossrec_model.privacy.per_user import Inputs, PerUserGradients, UserBatch, inputs_of
from crossrec_model.privacy.pricing import calibrate_sampled, epsilon
from crossrec_model.randomness import SystemRandomness

COMMAND = "python benchmarks/dp_audit.py"
RESULTS = Path(__file__).parent / "results" / "dp_audit.json"
EPSILON, DELTA, STEPS = 2.0, 1e-5, 4
CANARIES, GUESSES = 16_000, 200
BUCKETS, TOKENS = 2**15, 14
SYSTEM = SystemRandomness()


class CanaryBatches(PrivateBatches):
    """The real batches of a platform whose users are canaries."""

    def _inputs(self, network: Network, users: Int) -> Inputs:
        taken = torch.from_numpy(2 * self.data.index.histories[users])[:, None]  # [B, 1]
        b = len(users)
        block = UserBlock(
            history=torch.zeros(b, 1, dtype=torch.int64),
            weights=torch.zeros(b, 1, 2),
            numbers=torch.zeros(b, len(USER_NUMBERS)),
            context=torch.zeros(b, CONTEXT_SIZE, dtype=torch.int64),
            positives=taken,
            mask=torch.ones(b, 1),
        )
        batch = UserBatch(block=block, negatives=taken + 1, numbers=block.numbers)
        return inputs_of(network, self.data.tensors, batch)


def plan_with(multiplier: float) -> Plan:
    """The plan of a run that takes all users in each of its steps."""
    return Plan(
        model=ModelConfig(buckets=BUCKETS, dimension=32, tower=(64, 64, 32, 1)),
        privacy=PrivacyConfig(
            noise="local",
            epsilon=EPSILON,
            delta=DELTA,
            multiplier=multiplier,
            statistics_multiplier=multiplier,
            rate=1.0,
            steps=STEPS,
            population=CANARIES // 2,
        ),
    )


def network_of(plan: Plan) -> Network:
    """An empty table, and an output that reads an item's own vector: nothing else gets a gradient."""
    network = Network(plan.model)
    network.reset(torch.Generator().manual_seed(plan.seed))
    with torch.no_grad():
        network.items.weight.zero_()
        network.output.weight[0, : plan.model.dimension] = 1.0
    return network


def batches_of(plan: Plan, users: Int) -> CanaryBatches:
    """Batches of the canaries of these numbers; item n has the row n + 1 for all its tokens."""
    items = torch.arange(1, 2 * CANARIES + 1)
    tensors = ItemTensors(
        buckets=items[:, None].expand(-1, TOKENS).contiguous(),
        neighbours=torch.full((len(items), len(plan.model.relations), 2), -1),
        vectors=torch.zeros(len(items), 0),
    )
    nothing: Any = None
    index: Any = SimpleNamespace(histories=users)
    data = TrainingData(index=index, items=nothing, tensors=tensors, end=0.0)
    return CanaryBatches(data=data, plan=plan, statistics=nothing, randomness=SYSTEM)


def scores_of(change: torch.Tensor) -> npt.NDArray[np.float64]:
    """How far the table's change [BUCKETS, D] went where each canary would push it, [m]."""
    rows = change[1 : 2 * CANARIES + 1].double().view(CANARIES, 2, -1)
    along = (rows[:, 0] - rows[:, 1]).sum(1) / (2 * rows.shape[-1]) ** 0.5
    return along.numpy()


def check_canaries() -> None:
    """Refuse canaries whose clipped gradient is not the whole clip along their own direction."""
    plan = plan_with(1.0)
    network, users = network_of(plan), np.arange(0, CANARIES, CANARIES // 50)
    batches = batches_of(plan, users)
    with PerUserGradients(
        network,
        batches.data.tensors,
        clip=plan.privacy.clip,
        objective=plan.training.objective,
    ) as gradients:
        found = gradients.clipped_sum(batches._inputs(network, np.arange(len(users))))
    table = torch.zeros_like(network.items.weight)
    table.index_add_(0, found.table.rows, found.table.values)
    wanted = np.zeros(CANARIES)
    wanted[users] = plan.privacy.clip
    worst = float(np.abs(scores_of(-table) - wanted).max())
    if worst > 1e-3:
        raise RuntimeError(f"a canary's gradient along her rows is {worst:.1e} off the clip")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One audited run: its guesses, its bound, and how far apart the two kinds of canaries lie.

    `separation` is the difference of their mean scores in units of a score's deviation.
    """

    guesses: Guesses
    bound: float
    separation: float


def audit(plan: Plan, seed: int) -> Audit:
    """Train once on the canaries whose coin says so, and guess the coins."""
    took_part = np.random.default_rng(seed).random(CANARIES) < 0.5
    network = network_of(plan)
    before = network.items.weight.detach().clone()
    noised_training(network, batches_of(plan, np.flatnonzero(took_part)))
    scores = scores_of(network.items.weight.detach() - before)
    guesses = guess(scores, took_part, inside=GUESSES, outside=GUESSES)
    inside, outside = scores[took_part], scores[~took_part]
    return Audit(
        guesses=guesses,
        bound=epsilon_lower_bound(guesses, DELTA),
        separation=float((inside.mean() - outside.mean()) / outside.std()),
    )


def audits(plan: Plan, runs: int, what: str) -> float:
    """The median bound of several runs; prints each."""
    bounds = []
    expected = STEPS**0.5 / plan.privacy.multiplier
    for seed in range(runs):
        start = time.monotonic()
        found = audit(plan, seed)
        bounds.append(found.bound)
        print(
            f"{what} {seed + 1}: {found.guesses.right} of {found.guesses.made} right, epsilon at "
            f"least {found.bound:.3f}; separation {found.separation:.3f} of {expected:.3f}; "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
    return round(statistics.median(bounds), 4)


def main() -> None:
    """Audit, print, write the figures unless it was a try-out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one run each, nothing is written")
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    torch.set_num_threads(1)
    check_canaries()
    multiplier = calibrate_sampled(EPSILON, DELTA, rate=1.0, steps=STEPS)
    event = SampledGaussian(multiplier=multiplier, rate=1.0, steps=STEPS)
    claimed = round(epsilon([event], DELTA), 4)
    print(f"claimed epsilon {claimed} at delta {DELTA}: {STEPS} steps of noise {multiplier:.4f}")
    plan = plan_with(multiplier)
    halved = replace(plan, privacy=replace(plan.privacy, multiplier=multiplier / 2))
    right, half = audits(plan, runs, "noise as priced"), audits(halved, runs, "half the noise")

    def figure(name: str, value: float, goal: str) -> Figure:
        return Figure(
            figure=f"dp.audit_{name}", value=value, goal=goal, command=COMMAND, seeds=runs
        )

    found = [
        figure("claimed", claimed, ">0"),
        figure("lower_bound", right, f"<={claimed}"),
        figure("lower_bound_half_noise", half, f">{claimed}"),
    ]
    for one in found:
        met = "met" if one.met else "MISSED"
        print(f"{one.figure} {one.value} (goal {one.goal}: {met})")
    if not options.quick:
        write_figures(RESULTS, found)


if __name__ == "__main__":
    main()

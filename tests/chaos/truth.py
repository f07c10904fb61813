"""The outcome of a run of exact platforms, computed from who contributed and nothing else.

Written without the server's code: the integers of the sum's grid are added up here by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from counting_platform import EXACT, target, weight_of

from crossrec_model.config import Plan

#: levels / max_weight of the plans here: a weight of 1 is so many steps of the grid.
STEPS = 2**20
#: A loss is summed on a grid 64 times as wide.
LOSS_BOUND = 64.0

PLAN = """[aggregation]
max_weight = 16
[federation]
optimizer = "fedavgm"
momentum = 0.5
server_lr = 0.75
rounds = {rounds}
round_timeout_s = {deadline}
"""


def after(
    plan: Plan, contributors: Iterable[Sequence[str]], dimension: int = 8
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Return parameters and velocity float32 [d], and each round's loss, after these rounds."""
    config = plan.federation
    model = np.zeros(dimension, dtype=np.float32)
    velocity = np.zeros(dimension, dtype=np.float32)
    losses = []
    for number, names in enumerate(contributors, 1):
        update, loss = _mean(model, names)
        losses.append(loss)
        wide = model.astype(np.float64)
        if number in (1, config.rounds):
            model = (wide + update).astype(np.float32)
            continue
        direction = config.momentum * velocity.astype(np.float64) + update
        velocity = direction.astype(np.float32)
        model = (wide + config.server_lr * direction).astype(np.float32)
    return model, velocity, losses


def scores(model: np.ndarray, contributors: Sequence[str], least: int) -> set[float]:
    """The evaluations that a model can have: over any `least` or more of the round's contributors."""
    found = set()
    for count in range(least, len(contributors) + 1):
        for names in combinations(contributors, count):
            weights = [weight_of(name) for name in names]
            each = [1 / (1 + float(np.abs(_goal(n, model) - model).mean())) for n in names]
            total = sum(w * round(s / EXACT) * EXACT for w, s in zip(weights, each, strict=True))
            found.add(total / sum(weights))
    return found


def _goal(name: str, model: np.ndarray) -> np.ndarray:
    return target(name, len(model))


def _mean(model: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, float]:
    total, weights, losses = np.zeros(len(model), dtype=np.int64), 0, 0
    for name in names:
        weight = int(weight_of(name))
        update = np.clip(0.5 * (_goal(name, model) - model), -1, 1)
        update = (np.round(update / EXACT) * EXACT).astype(np.float32)
        loss = round(float(np.abs(update).mean()) / EXACT) * EXACT
        total += np.round(update.astype(np.float64) * weight * STEPS).astype(np.int64)
        losses += round(loss * weight * STEPS / LOSS_BOUND)
        weights += weight * STEPS
    return total * (1.0 / weights), losses * (LOSS_BOUND / weights)

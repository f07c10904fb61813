"""How private a training run was at the least, by guesses who took part in it.

Steinke, Nasr & Jagielski 2023, "Privacy auditing with one (1) training run". Of m users put in for the
audit ("canaries") each takes part or not by the toss of a coin of her own. From what the one run
released, the auditor guesses for some of them whether they did. Too many right guesses refute a claimed
epsilon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from crossrec_model.errors import ConfigError

#: No bound above it is looked for.
_MOST_EPSILON: Final = 60.0
_HALVINGS: Final = 30


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """Of `canaries` canaries, the auditor guessed on `made` and was right on `right`.

    Raises:
        ConfigError: unless 0 ≤ right ≤ made ≤ canaries.
    """

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries:
            raise ConfigError(
                f"{self.right} right of {self.made} guesses on {self.canaries} canaries can't be; "
                "count again"
            )


def guess(
    scores: npt.NDArray[np.floating], took_part: npt.NDArray[np.bool_], *, inside: int, outside: int
) -> Guesses:
    """Guess that the `inside` canaries of highest score took part, the `outside` of lowest not.

    Args:
        scores: float [m], higher for canaries who seem to have taken part. Equal ones stand in order.
        took_part: bool [m], the coins.
        inside: how many are guessed to have taken part.
        outside: how many are guessed not to have; on all others the auditor says nothing.

    Both counts must not depend on the scores or the coins.

    Raises:
        ConfigError: for scores that are not finite, another shape, or more guesses than canaries.
    """
    m = len(scores)
    if scores.shape != (m,) or took_part.shape != (m,) or took_part.dtype != np.bool_:
        raise ConfigError(
            f"scores {scores.shape} and coins {took_part.shape} must be one number and one truth "
            "value a canary"
        )
    if not np.isfinite(scores).all():
        raise ConfigError("a score is not finite; no guess can rest on it")
    if inside < 0 or outside < 0 or inside + outside > m:
        raise ConfigError(f"{inside} + {outside} guesses on {m} canaries; choose fewer")
    order = np.argsort(scores, kind="stable")
    right = took_part[order[m - inside :]].sum() + (~took_part[order[:outside]]).sum()
    return Guesses(canaries=m, made=inside + outside, right=int(right))


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Bound the chance of so many right guesses, were the run (epsilon, delta)-private.

    Theorem 5.2 of the paper for guesses that are all equally sure: with W binomial, of `made` trials
    with probability e^ε / (1 + e^ε), and v right ones of m canaries,

        P[W ≥ v] + 2·m·δ · max over i of P[v - i ≤ W < v] / i.

    Neighbours differ by one user's presence, as in `privacy.events`.

    Raises:
        ConfigError: for a negative epsilon or a delta outside [0, 1].
    """
    if not epsilon >= 0:
        raise ConfigError(f"epsilon = {epsilon} must not be negative")
    if not 0 <= delta <= 1:
        raise ConfigError(f"delta = {delta} is outside [0, 1]")
    r, v = guesses.made, guesses.right
    rate = 1.0 / (1.0 + math.exp(-epsilon))
    chance = float(stats.binom.sf(v - 1, r, rate))
    if v:
        # P[v - i ≤ W < v] for i of 1 … v; for larger i it grows no more.
        below = np.cumsum(stats.binom.pmf(np.arange(v - 1, -1, -1), r, rate))
        chance += 2 * guesses.canaries * delta * float((below / np.arange(1, v + 1)).max())
    return min(1.0, chance)


def epsilon_lower_bound(guesses: Guesses, delta: float, *, confidence: float = 0.95) -> float:
    """The epsilon at `delta` that the run has at the least, wrong with probability 1 - `confidence`.

    It is the smallest epsilon whose `p_value` is above 1 - `confidence`: all smaller ones are refuted.
    0.0 if none is, as for no guesses; at most 60.

    Raises:
        ConfigError: for a confidence outside (0, 1) or a delta outside [0, 1].
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence = {confidence} is outside (0, 1); choose e.g. 0.95")

    def refuted(epsilon: float) -> bool:
        return p_value(guesses, epsilon, delta) <= 1 - confidence

    low, high = 0.0, 0.25
    if not refuted(low):
        return 0.0
    while refuted(high):
        low, high = high, 2 * high
        if high > _MOST_EPSILON:
            return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low

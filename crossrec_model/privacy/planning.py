"""From a budget to the noise of a plan, and from a plan to the mechanisms that it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from crossrec_model.config import Noise, Plan
from crossrec_model.errors import ConfigError
from crossrec_model.privacy.events import (
    DistributedGaussian,
    Event,
    GaussianRelease,
    SampledGaussian,
)
from crossrec_model.privacy.pricing import calibrate_distributed, calibrate_sampled

#: What all statistics rounds may cost by themselves, as a share of the run's ε.
STATISTICS_SHARE: Final = 0.4


def round_event(plan: Plan, number: int, honest: int) -> Event:
    """What one round of a private plan does to each user of a platform.

    Args:
        number: the round, from 1.
        honest: platforms in every sum whose noise nobody else knows, this one included.
    """
    privacy = plan.privacy
    statistics = plan.work_of(number) != "training"
    multiplier = privacy.statistics_multiplier if statistics else privacy.multiplier
    if privacy.noise == "distributed":
        return DistributedGaussian(multiplier=multiplier, honest=honest)
    if statistics:
        return GaussianRelease(multiplier=multiplier)
    return SampledGaussian(multiplier=multiplier, rate=privacy.rate, steps=privacy.steps)


def run_events(plan: Plan, honest: int) -> tuple[Event, ...]:
    """What the whole run does to each user of a platform that takes part in every round once."""
    rounds = plan.federation.rounds
    return tuple(round_event(plan, number, honest) for number in range(1, rounds + 1))


def private_plan(plan: Plan, *, noise: Noise, epsilon: float, delta: float, honest: int) -> Plan:
    """The plan with the noise that makes its run (epsilon, delta)-differentially private.

    `honest` as in `round_event`; local noise does not need it.

    Raises:
        ConfigError: for a budget that no noise can meet, or settings that don't go together.
    """
    plan.check_rounds()
    if noise == "none":
        raise ConfigError("noise = 'none' can't be calibrated; choose local or distributed")
    asked = plan.privacy
    if noise == "distributed":
        asked = replace(asked, rate=1.0, steps=1)
    rounds = plan.training_rounds
    measured = plan.federation.rounds - rounds
    share = STATISTICS_SHARE * epsilon
    releases: tuple[Event, ...]
    if noise == "distributed":
        statistics = calibrate_distributed(
            share, delta, rounds=measured, honest=honest, releases=()
        )
        releases = (DistributedGaussian(multiplier=statistics, honest=honest),) * measured
        multiplier = calibrate_distributed(
            epsilon, delta, rounds=rounds, honest=honest, releases=releases
        )
    else:
        statistics = calibrate_sampled(share, delta, rate=1.0, steps=measured, releases=())
        releases = (GaussianRelease(multiplier=statistics),) * measured
        steps = rounds * asked.steps
        multiplier = calibrate_sampled(
            epsilon, delta, rate=asked.rate, steps=steps, releases=releases
        )
    privacy = replace(
        asked,
        noise=noise,
        epsilon=epsilon,
        delta=delta,
        multiplier=multiplier,
        statistics_multiplier=statistics,
    )
    # All weights are equal, so the grid's whole range is free for the update.
    return replace(plan, privacy=privacy, aggregation=replace(plan.aggregation, max_weight=1.0))

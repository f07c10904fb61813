"""A plan's noise is what its budget asks for: no less, and hardly more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crossrec_model.config import FederationConfig, ModelConfig, Plan, PrivacyConfig
from crossrec_model.errors import ConfigError
from crossrec_model.privacy.events import DistributedGaussian, GaussianRelease, SampledGaussian
from crossrec_model.privacy.planning import (
    STATISTICS_SHARE,
    private_plan,
    round_event,
    run_events,
)
from crossrec_model.privacy.pricing import epsilon, prices

PLAN = Plan(
    model=ModelConfig(buckets=64, dimension=4, sketch_width=64, tower=(8, 4, 1)),
    federation=FederationConfig(rounds=5),
    privacy=PrivacyConfig(rate=0.2, steps=3),
)
DELTA = 1e-5


@pytest.fixture(scope="module")
def local() -> Plan:
    return private_plan(PLAN, noise="local", epsilon=4.0, delta=DELTA, honest=1)


@pytest.fixture(scope="module")
def distributed() -> Plan:
    return private_plan(PLAN, noise="distributed", epsilon=4.0, delta=DELTA, honest=3)


def test_a_local_run_costs_its_epsilon(local: Plan) -> None:
    events = run_events(local, 1)
    paid = epsilon(events, DELTA)
    assert 0.98 * 4.0 < paid <= 4.0
    # Against everybody: nothing rests on other platforms.
    assert prices(events, DELTA).everyone == paid
    assert epsilon(events[:1] + events[-1:], DELTA) > STATISTICS_SHARE * 4.0 * 0.97
    assert epsilon(events[:1] + events[-1:], DELTA) <= STATISTICS_SHARE * 4.0


def test_a_distributed_run_costs_its_epsilon_against_sums(distributed: Plan) -> None:
    paid = epsilon(run_events(distributed, 3), DELTA)
    assert 0.98 * 4.0 < paid <= 4.0


def test_what_a_plan_does_round_by_round(local: Plan, distributed: Plan) -> None:
    first, *middle, last = run_events(local, 1)
    assert first == last == GaussianRelease(multiplier=local.privacy.statistics_multiplier)
    step = SampledGaussian(multiplier=local.privacy.multiplier, rate=0.2, steps=3)
    assert middle == [step] * 3
    first, *middle, last = run_events(distributed, 3)
    privacy = distributed.privacy
    assert first == last
    assert first == DistributedGaussian(multiplier=privacy.statistics_multiplier, honest=3)
    assert middle == [DistributedGaussian(multiplier=privacy.multiplier, honest=3)] * 3
    assert [round_event(local, n, 1) for n in range(1, 6)] == list(run_events(local, 1))


def test_a_round_beyond_the_plan_is_priced_as_training(local: Plan) -> None:
    assert isinstance(round_event(local, 99, 1), SampledGaussian)


def test_the_same_budget_gives_the_same_plan(local: Plan, distributed: Plan) -> None:
    again = private_plan(PLAN, noise="local", epsilon=4.0, delta=DELTA, honest=7)
    assert again == local  # local noise asks nobody else
    other = private_plan(PLAN, noise="distributed", epsilon=4.0, delta=DELTA, honest=3)
    assert other == distributed


def test_distributed_noise_is_one_step_of_all_users_and_equal_weights(distributed: Plan) -> None:
    assert (distributed.privacy.rate, distributed.privacy.steps) == (1.0, 1)
    assert distributed.aggregation.max_weight == 1.0


def test_what_is_not_privacy_stays_as_asked(local: Plan) -> None:
    assert local.aggregation.max_weight == 1.0
    assert (local.privacy.noise, local.privacy.epsilon, local.privacy.delta) == (
        "local",
        4.0,
        DELTA,
    )
    back = replace(local, privacy=PLAN.privacy, aggregation=PLAN.aggregation)
    assert back == PLAN


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_a_smaller_budget_asks_for_more_noise(noise, local: Plan, distributed: Plan) -> None:
    less = private_plan(PLAN, noise=noise, epsilon=1.0, delta=DELTA, honest=3)
    full = local if noise == "local" else distributed
    assert less.privacy.multiplier > full.privacy.multiplier
    assert less.privacy.statistics_multiplier > full.privacy.statistics_multiplier


@pytest.mark.parametrize(
    "asked",
    [
        {"noise": "none"},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": float("nan")},
        {"epsilon": float("inf")},
        {"delta": 0.0},
        {"delta": 1.0},
        {"noise": "distributed", "honest": 0},
        {"noise": "distributed", "honest": 101},
    ],
)
def test_what_can_not_be_calibrated_is_refused(asked: dict) -> None:
    settings = {"noise": "local", "epsilon": 4.0, "delta": DELTA, "honest": 3} | asked
    with pytest.raises(ConfigError):
        private_plan(PLAN, **settings)


def test_a_run_without_training_rounds_is_refused() -> None:
    short = replace(PLAN, federation=FederationConfig(rounds=2))
    with pytest.raises(ConfigError, match="rounds"):
        private_plan(short, noise="local", epsilon=4.0, delta=DELTA, honest=1)


@pytest.mark.parametrize(
    "bad",
    [
        {"noise": "local"},  # a multiplier of 0 is no noise
        {"noise": "local", "multiplier": 1.0},
        {"noise": "local", "multiplier": float("nan"), "statistics_multiplier": 1.0},
        {"noise": "distributed", "multiplier": 1.0, "statistics_multiplier": 1.0},
        {"noise": "other"},
        {"clip": 0.0},
        {"clip": float("inf")},
        {"rate": 1.5},
        {"rate": 0.0},
        {"steps": 0},
        {"population": 0},
        {"reach_days": float("nan")},
    ],
)
def test_a_plan_with_privacy_that_is_none_is_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        PrivacyConfig(**bad)

"""What a platform lets a plan do to its users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients import updates
from clients.guard import LedgerGuard
from clients.round import PlatformRound
from crossrec_model.config import AggregationConfig, Plan, PrivacyConfig
from crossrec_model.errors import ConfigError
from crossrec_model.parameters import Layout, initial_vector
from crossrec_model.privacy.ledger import Budget, Ledger
from crossrec_model.privacy.planning import private_plan, run_events
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.invitation import SignedPlan
from crossrec_model.secagg.roster import Roster
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Reader, Vector
from simulations.plain import PlainSealer
from simulations.sums import identities_for

RUN, OTHER = b"r" * 16, b"s" * 16
BUDGET = Budget(epsilon=8.0, delta=1e-5, life_epsilon=10.0)


@pytest.fixture(scope="module")
def roster() -> Roster:
    return identities_for("ABC")[1].roster


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.jsonl") as ledger:
        yield ledger


@pytest.fixture(scope="module")
def private(plan: Plan) -> Plan:
    plan = replace(plan, privacy=PrivacyConfig(rate=0.5, steps=2, population=60, negatives=4))
    return private_plan(plan, noise="local", epsilon=8.0, delta=1e-5, honest=3)


@pytest.fixture(scope="module")
def distributed(plan: Plan) -> Plan:
    plan = replace(plan, privacy=PrivacyConfig(population=60, negatives=4))
    return private_plan(plan, noise="distributed", epsilon=8.0, delta=1e-5, honest=3)


def test_a_plan_without_privacy_must_be_allowed(plan, ledger, roster) -> None:
    with pytest.raises(ConfigError, match=r"no differential privacy.*--no-privacy"):
        LedgerGuard(ledger, BUDGET, lambda: roster).accept(plan, None)
    allowing = LedgerGuard(ledger, BUDGET, lambda: roster, allow_none=True)
    allowing.accept(plan, None)
    allowing.charge(plan, RUN, 1, 2)
    assert ledger.records == ()


def test_of_two_platforms_none_goes_without_privacy(plan, private, ledger) -> None:
    key = IdentityKey.generate(SystemRandomness())
    members = tuple(
        Member(name, IdentityKey.generate(SystemRandomness()).public) for name in ("A", "B")
    )
    two = Roster(federation="x", version=1, members=members, signer=key.public, allow_two=True)
    guard = LedgerGuard(ledger, BUDGET, lambda: two, allow_none=True)
    with pytest.raises(ConfigError, match="only the noise of differential privacy protects"):
        guard.accept(plan, None)
    guard.accept(private, None)
    # The other platform knows its own share: the whole noise must be in each.
    assert guard.honest(private) == 1


def test_only_the_accepted_plan_is_followed(private, ledger, roster) -> None:
    signer = IdentityKey.generate(SystemRandomness())
    signed = SignedPlan.sign(replace(roster, signer=signer.public), 2, private, signer)
    guard = LedgerGuard(ledger, BUDGET, lambda: roster, agreed=lambda: signed)
    guard.accept(private, None)
    # Cheaper and within the budget, and still not what was agreed.
    quieter = replace(private, privacy=replace(private.privacy, multiplier=99.0))
    with pytest.raises(
        ConfigError, match="is not the signed version 2 that this platform accepted"
    ):
        guard.accept(quieter, None)


def test_a_private_plan_needs_a_public_end_of_the_data(private, ledger, roster) -> None:
    with pytest.raises(ConfigError, match="--data-end YYYY-MM-DD"):
        LedgerGuard(ledger, BUDGET, lambda: roster, public_end=False).accept(private, None)


def test_a_plan_is_priced_here_whatever_it_says_of_itself(private, ledger, roster) -> None:
    guard = LedgerGuard(ledger, BUDGET, lambda: roster)
    guard.accept(private, None)
    louder = replace(private, privacy=replace(private.privacy, multiplier=0.5))
    asked = epsilon(run_events(louder, 3), 1e-5)
    with pytest.raises(
        ConfigError, match=rf"epsilon = {asked:.3g} at delta = 1e-05, more than --eps"
    ):
        guard.accept(louder, None)
    strict = LedgerGuard(ledger, replace(BUDGET, epsilon=4.0), lambda: roster)
    with pytest.raises(ConfigError, match="raise --epsilon"):
        strict.accept(private, None)


def test_what_was_spent_in_other_runs_counts(private, ledger, roster) -> None:
    guard = LedgerGuard(ledger, BUDGET, lambda: roster)
    for number in range(1, private.federation.rounds + 1):
        guard.charge(private, RUN, number, 2)
    assert ledger.spent(1e-5, RUN) == pytest.approx(epsilon(run_events(private, 3), 1e-5))
    with pytest.raises(ConfigError, match=r"all that was spent before.*raise --life-epsilon"):
        guard.accept(private, None)
    # The run that it was spent on may go on: each of its rounds is checked by itself.
    guard.accept(private, RUN)
    with pytest.raises(ConfigError):
        guard.accept(private, OTHER)


class _Platform:
    """A platform of the tests' rows with a ledger; counts what is computed."""

    def __init__(self, plan, datasets, ledger, roster, monkeypatch, budget=BUDGET) -> None:
        self.plan, self.layout = plan, Layout(plan.model)
        self.computed: list[int] = []
        self.said: list[str] = []
        made = updates.private_update

        def counting(member, number, parameters, honest):
            # Charged before anything is computed.
            assert ledger.records[-1].round == number
            self.computed.append(number)
            return made(member, number, parameters, honest)

        monkeypatch.setattr("clients.round.private_update", counting)
        self.handle = PlatformRound(
            "A",
            lambda model: datasets["A"],
            PlainSealer,
            guard=LedgerGuard(ledger, budget, lambda: roster),
            warn=self.said.append,
        )
        self.welcomed = self.ask(wire.Welcome(plan=plan.to_json()))

    def ask(self, message):
        return wire.decode(b"".join(self.handle(wire.encode(message))))

    def train(self, number: int, vector=None):
        return self.ask(
            wire.TrainRequest(
                run=RUN,
                round=number,
                rounds=self.plan.federation.rounds,
                ticket=b"",
                parameters=initial_vector(self.plan) if vector is None else vector,
            )
        )


def _bytes(reply: wire.SumReply) -> bytes:
    return b"".join(reply.body)


def test_metrics_and_numbers_of_users_stay_here(
    private, datasets, ledger, roster, monkeypatch
) -> None:
    # Wide enough for every number of users.
    wide = replace(private, aggregation=replace(private.aggregation, max_weight=1000.0))
    platform = _Platform(wide, datasets, ledger, roster, monkeypatch)
    assert platform.welcomed.training_metrics == platform.welcomed.evaluation_metrics == ()
    reply = platform.train(1)
    body = Vector("contribution").read(Reader(b"".join(reply.body)))
    # Update, and one weight that is the plan's and nobody's number of users; no metric behind it.
    assert len(body) == platform.layout.size + 1
    assert body[-1] == 1000.0
    asked = wire.EvaluateRequest(run=RUN, round=1, ticket=b"", parameters=initial_vector(private))
    assert platform.ask(asked) == wire.Failure(code=wire.FailureCode.UNEXPECTED)


def test_the_same_round_costs_once_with_local_noise(
    private, datasets, ledger, roster, monkeypatch
) -> None:
    platform = _Platform(private, datasets, ledger, roster, monkeypatch)
    first, again = _bytes(platform.train(1)), _bytes(platform.train(1))
    assert first == again
    other = platform.train(1, initial_vector(private) + np.float32(0.5))
    assert _bytes(other) != first
    assert platform.computed == [1, 1]
    assert len(ledger.records) == 2


def test_shares_of_noise_are_never_sent_twice(
    distributed, datasets, ledger, roster, monkeypatch
) -> None:
    budget = Budget(epsilon=20.0, delta=1e-5, life_epsilon=20.0)
    platform = _Platform(distributed, datasets, ledger, roster, monkeypatch, budget)
    first, again = _bytes(platform.train(1)), _bytes(platform.train(1))
    assert first != again
    assert len(ledger.records) == 2


def test_noise_is_shared_among_those_whom_the_sum_was_agreed_with(
    distributed, datasets, ledger, roster, monkeypatch
) -> None:
    budget = Budget(epsilon=20.0, delta=1e-5, life_epsilon=20.0)
    now = [roster]
    platform = _Platform(distributed, datasets, ledger, roster, monkeypatch, budget)
    platform.handle._guard._roster = lambda: now[0]
    platform.ask(wire.Welcome(plan=distributed.to_json()))
    # A larger roster is accepted, and the coordinator goes on with the sums of the one before.
    now[0] = identities_for("ABCDEFG")[1].roster
    platform.train(1)
    assert ledger.records[-1].event.honest == roster.honest() == 2
    platform.ask(wire.Welcome(plan=distributed.to_json()))
    platform.train(2)
    assert ledger.records[-1].event.honest == now[0].honest() == 3


def test_a_round_that_would_overspend_is_left_before_anything_is_computed(
    private, datasets, ledger, roster, monkeypatch
) -> None:
    tight = replace(BUDGET, epsilon=8.01, life_epsilon=8.01)
    platform = _Platform(private, datasets, ledger, roster, monkeypatch, tight)
    vector = initial_vector(private)
    left = None
    for attempt in range(60):
        reply = platform.train(2, vector + np.float32(attempt))
        if isinstance(reply, wire.Failure):
            left = reply
            break
    assert left == wire.Failure(code=wire.FailureCode.BUDGET_SPENT)
    assert len(ledger.records) == len(platform.computed) == attempt > 0
    assert "leaves the round" in platform.said[-1]
    assert ledger.spent(1e-5) <= 8.01
    # It stays in the federation, and gets the final model.
    done = wire.Finish(run=RUN, round=4, parameters=vector)
    assert platform.ask(done) == wire.Ack()


def test_a_plan_for_distributed_noise_must_fit_the_grid(plan) -> None:
    privacy = PrivacyConfig(
        noise="distributed", multiplier=1.0, statistics_multiplier=1.0, rate=1.0, steps=1
    )
    with pytest.raises(ConfigError, match="max_weight = 1"):
        replace(plan, privacy=privacy)
    with pytest.raises(ConfigError, match="powers of two"):
        replace(
            plan, privacy=privacy, aggregation=AggregationConfig(max_weight=1.0, levels=1_000_000)
        )
    with pytest.raises(ConfigError, match=r"set both to 1"):
        PrivacyConfig(
            noise="distributed", multiplier=1.0, statistics_multiplier=1.0, rate=0.5, steps=1
        )

"""Sums through the real coordinator: the secure one gives what the plain one gives, whoever is lost."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from clients.sealing import Sealer, SealerFor
from crossrec_model.config import AggregationConfig, FederationConfig, Plan
from crossrec_model.errors import ConfigError, FederationError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.errors import OldRoundError, OtherListError, SecureSumError
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.roster import Roster, sign
from crossrec_model.secagg.sums import subject_of
from crossrec_model.wire import messages as wire
from crossrec_model.wire.contribution import Contribution
from server.aggregation import Aggregation, Gathered, Question
from server.courier import NodeId
from server.federation import Federation, RunOptions, fresh_start
from server.flower import GridCourier
from server.progress import PlainProgress
from simulations.grid import InProcessGrid
from simulations.plain import PlainSum
from simulations.sums import OpenedInMemory, Sums, plain_sums, secure_sums, sums_under

D = 700
ROUNDS = 4
#: Levels for each width that masked numbers can have, for up to five platforms.
LEVELS = {16: 4096, 24: 1 << 20, 32: 1 << 24}
PLAN = Plan(
    federation=FederationConfig(rounds=ROUNDS, min_platforms=3, round_timeout_s=20.0),
    aggregation=AggregationConfig(max_weight=100.0),
)
STEP = PLAN.aggregation.max_weight / PLAN.aggregation.levels
Spoil = Callable[[wire.Message, Contribution | None], None]


def _part(platform: str, kind: Kind, number: int) -> Contribution:
    """What a platform adds to a sum: it depends on nothing but who, what and when."""
    seed = zlib.crc32(f"{platform} {kind.name} {number}".encode())
    random = np.random.default_rng(seed)
    update = random.uniform(-1, 1, D if kind is Kind.TRAIN else 0).astype(np.float32)
    # B has no data in the second round.
    weight = 0.0 if (platform, number) == ("B", 2) else float(random.integers(1, 100))
    return Contribution(update=update, weight=weight, metrics=(float(random.uniform(0, 1)),))


def _nothing(message: wire.Message, part: Contribution | None) -> None:
    """Leave everything as it is."""


@dataclass
class _Platform:
    """A small platform with a real sealer; `spoil` sees what comes and what it is about to seal."""

    name: str
    sealer_for: SealerFor
    spoil: Spoil = _nothing
    sealer: Sealer = field(init=False)

    def __call__(self, payload: bytes) -> bytes:
        message = wire.decode(payload)
        try:
            return wire.encode(self._answer(message))
        except SecureSumError:
            return wire.encode(wire.Failure(code=wire.FailureCode.LEFT_THE_SUM))

    def _answer(self, message: wire.Message) -> wire.Reply:
        match message:
            case wire.Hello():
                version = wire.PROTOCOL_VERSION
                return wire.HelloReply(
                    platform=self.name, protocol_version=version, software_version="1"
                )
            case wire.Welcome():
                self.sealer = self.sealer_for(Plan.from_json(message.plan))
                return wire.WelcomeReply(
                    dimension=D, training_metrics=("loss",), evaluation_metrics=("ndcg@10",)
                )
            case wire.Secure():
                self.spoil(message, None)
                return wire.Secure(frame=self.sealer.answer(message.frame))
            case wire.TrainRequest() | wire.EvaluateRequest():
                return self._sum(message)
            case _:
                return wire.Ack()

    def _sum(self, message: wire.TrainRequest | wire.EvaluateRequest) -> wire.SumReply:
        kind = Kind.TRAIN if isinstance(message, wire.TrainRequest) else Kind.EVALUATE
        part = _part(self.name, kind, message.round)
        self.spoil(message, part)
        body = self.sealer.seal(
            message.ticket,
            part,
            run=message.run,
            kind=kind,
            number=message.round,
            subject=subject_of(kind, message.run, message.round, message.parameters),
        )
        return wire.SumReply(run=message.run, round=message.round, body=body)


@dataclass
class _Recorded:
    """An aggregation that keeps what it has gathered."""

    inner: Aggregation
    sums: dict[tuple[Kind, int], Gathered] = field(default_factory=dict)

    @property
    def least(self) -> int:
        return self.inner.least

    @property
    def most(self) -> int:
        return self.inner.most

    def objection(self, platform: str) -> str | None:
        return self.inner.objection(platform)

    def gather(self, question: Question, seats: Mapping[str, NodeId]) -> Gathered:
        found = self.inner.gather(question, seats)
        self.sums[question.kind, question.round] = found
        return found


@dataclass(frozen=True)
class _Run:
    parameters: np.ndarray
    sums: dict[tuple[Kind, int], Gathered]
    contributors: list[tuple[str, ...]]
    said: str


def _run(
    sums: Sums,
    *,
    plan: Plan = PLAN,
    spoil: Mapping[str, Spoil] | None = None,
    platforms: int | None = None,
) -> _Run:
    """Run a federation of all platforms of these sums through the real coordinator."""
    spoilt = spoil or {}
    handlers = {
        name: _Platform(name, sealer_for, spoilt.get(name, _nothing))
        for name, sealer_for in sums.sealers.items()
    }
    stream = io.StringIO()
    with closing(InProcessGrid(handlers, at_once=2)) as grid:
        progress, courier = PlainProgress(stream), GridCourier(grid)
        recorded = _Recorded(sums.aggregation(courier, plan, progress.note))
        end = Federation(
            courier,
            fresh_start(plan, np.zeros(D, dtype=np.float32)),
            RunOptions(platforms=platforms or len(handlers), wait_s=20.0),
            aggregation=recorded,
            save=lambda checkpoint: None,
            progress=progress,
        ).run()
    contributors = [record.platforms for record in end.history]
    return _Run(end.parameters, recorded.sums, contributors, stream.getvalue())


def _check_means(run: _Run, *, step: float = STEP) -> None:
    """Compare every mean of a run with the weighted average of what its contributors hold.

    `step` is the weight's step on the grid of a secure sum, 0 for a plain one.
    """
    for (kind, number), gathered in run.sums.items():
        parts = [_part(name, kind, number) for name in gathered.contributors]
        weights = np.array([part.weight for part in parts])
        mean = gathered.mean
        # A plain vector is rounded to float32 once; a secure one is off by no more than it states.
        room = mean.update_error if step else 1e-6
        updates = np.stack([part.update.astype(np.float64) for part in parts])
        truth = np.average(updates, axis=0, weights=weights)
        assert np.abs(mean.update - truth).max(initial=0.0) <= room, (kind, number)
        metric = np.average([part.metrics[0] for part in parts], weights=weights)
        room = mean.metric_errors[0] if step else 1e-6
        assert abs(mean.metrics[0] - metric) <= room
        assert abs(mean.weight - weights.sum()) <= step * len(parts)


def _names(count: int) -> str:
    return "ABCDE"[:count]


@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_secure_run_is_a_plain_run_within_the_stated_error(count: int, bits: int) -> None:
    aggregation = replace(PLAN.aggregation, levels=LEVELS[bits])
    plan, names = replace(PLAN, aggregation=aggregation), _names(count)
    secure, plain = _run(secure_sums(names), plan=plan), _run(plain_sums(names), plan=plan)
    assert set(secure.sums) == {(kind, n) for kind in Kind for n in range(1, ROUNDS + 1)}
    assert secure.contributors == plain.contributors == [tuple(names)] * ROUNDS
    _check_means(plain, step=0.0)
    step = aggregation.max_weight / aggregation.levels
    _check_means(secure, step=step)
    errors = 0.0
    for place, gathered in secure.sums.items():
        other = plain.sums[place].mean
        difference = np.abs(gathered.mean.update - other.update).max(initial=0.0)
        assert difference <= gathered.mean.update_error + 1e-6
        if place[0] is Kind.TRAIN:
            # The bound says something: it is of the size of what rounding really does.
            assert gathered.mean.update_error <= 2.1 * count * step / (other.weight - count * step)
            assert difference > 1e-3 * gathered.mean.update_error
            errors += gathered.mean.update_error
    # The server's steps are of size 1 here, so errors add up and nothing else does.
    assert np.abs(secure.parameters - plain.parameters).max() <= errors + 1e-5
    assert (secure.parameters != plain.parameters).any()
    assert secure.said.count("keys agreed between") == 1


def _once(when: Callable[[wire.Message], bool]) -> Spoil:
    """Raise at the first message that is meant, and never again."""
    done: list[bool] = []

    def spoil(message: wire.Message, part: Contribution | None) -> None:
        if not done and when(message):
            done.append(True)
            raise RuntimeError("the platform's process is gone")

    return spoil


def _trains(number: int) -> Callable[[wire.Message], bool]:
    return lambda message: isinstance(message, wire.TrainRequest) and message.round == number


def _unmasks(message: wire.Message) -> bool:
    return isinstance(message, wire.Secure) and isinstance(
        frames.decode(message.frame), frames.Unmask
    )


@pytest.mark.parametrize("count", [4, 5])
def test_a_platform_lost_in_a_round_is_left_out_and_back_in_the_next(count: int) -> None:
    names = _names(count)
    run = _run(secure_sums(names), spoil={"B": _once(_trains(2))})
    others = tuple(name for name in names if name != "B")
    everybody = tuple(names)
    assert run.contributors == [everybody, others, everybody, everybody]
    assert "platform B was left out: the platform failed with code INTERNAL" in run.said
    _check_means(run)
    # What the plain sum over those that were there gives.
    plain = _run(plain_sums(names), spoil={"B": _once(_trains(2))})
    assert plain.contributors == run.contributors
    for place, gathered in run.sums.items():
        difference = np.abs(gathered.mean.update - plain.sums[place].mean.update)
        assert difference.max(initial=0.0) <= gathered.mean.update_error + 1e-6
    # New keys without it to evaluate, and again with it.
    assert run.said.count(f"keys agreed between {', '.join(names)}") == 2
    assert run.said.count(f"keys agreed between {', '.join(others)}") == 1


def test_of_three_none_may_be_missing_so_the_round_is_repeated() -> None:
    run = _run(secure_sums("ABC"), spoil={"B": _once(_trains(2))})
    assert run.contributors == [tuple("ABC")] * ROUNDS
    assert "round 2 is repeated: too few platforms" in run.said
    assert "B: the platform failed with code INTERNAL" in run.said
    _check_means(run)


@pytest.mark.parametrize("count", [3, 4])
def test_a_platform_lost_while_a_sum_is_opened_is_still_in_it(count: int) -> None:
    names = _names(count)
    run = _run(secure_sums(names), spoil={"C": _once(_unmasks)})
    assert run.contributors == [tuple(names)] * ROUNDS
    _check_means(run)
    # Three need three reveals: the same sum is asked for again, over the same three.
    assert ("round 1 is repeated" in run.said) == (count == 3)
    assert "while unmasking: the platform failed with code INTERNAL" in run.said


@pytest.mark.parametrize("number", [np.nan, np.inf, 1.5, -3e38])
def test_a_spoilt_contribution_stays_away_and_the_others_go_on(number: float) -> None:
    def spoil(message: wire.Message, part: Contribution | None) -> None:
        if part is not None and _trains(3)(message):
            part.update[5] = number

    run = _run(secure_sums("ABCD"), spoil={"D": spoil})
    everybody = tuple("ABCD")
    assert run.contributors == [everybody, everybody, tuple("ABC"), everybody]
    # One code for all: what was wrong with it could tell about its data.
    assert "platform D was left out: the platform failed with code LEFT_THE_SUM" in run.said
    assert run.said.count("was left out") == 1
    _check_means(run)


def test_a_metric_out_of_bounds_costs_an_evaluation_of_four_one_platform() -> None:
    def spoil(message: wire.Message, part: Contribution | None) -> None:
        if part is not None and isinstance(message, wire.EvaluateRequest) and message.round == 2:
            # Metrics are part of a frozen value; what is sealed is another one.
            object.__setattr__(part, "metrics", (1.25,))

    run = _run(secure_sums("ABCD"), spoil={"A": spoil})
    assert run.contributors == [tuple("ABCD")] * ROUNDS
    assert run.sums[Kind.EVALUATE, 2].contributors == tuple("BCD")
    assert "platform A was left out: the platform failed with code LEFT_THE_SUM" in run.said
    _check_means(run)


def test_keys_are_agreed_anew_when_the_slots_are_used_up() -> None:
    plan = replace(PLAN, aggregation=replace(PLAN.aggregation, slots=3))
    run = _run(secure_sums("ABC"), plan=plan)
    # Four rounds are trained and evaluated: eight sums, three to an agreement.
    assert run.said.count("keys agreed between A, B, C") == 3
    _check_means(run)


def test_two_platforms_are_too_few_for_a_secure_sum_only() -> None:
    with pytest.raises(ConfigError) as caught:
        secure_sums("AB")
    assert str(caught.value) == (
        "2 platforms are too few for secure aggregation, which needs 3; "
        "name more, or add --no-secure-aggregation"
    )
    with pytest.raises(FederationError) as refused:
        _run(secure_sums("ABC"), platforms=2)
    assert str(refused.value) == (
        "2 platforms are too few for a secure sum, which needs 3 of the roster; "
        "give more --platforms"
    )
    run = _run(plain_sums("AB"))
    assert run.contributors == [("A", "B")] * ROUNDS
    _check_means(run, step=0.0)


def test_two_platforms_that_were_allowed_sum_securely() -> None:
    source = SystemRandomness()
    identities = {name: IdentityKey.generate(source) for name in "AB"}
    signer = IdentityKey.generate(source)
    members = tuple(Member(name, key.public) for name, key in identities.items())
    roster = Roster(
        federation="two", version=1, members=members, signer=signer.public, allow_two=True
    )
    plan = replace(PLAN, federation=replace(PLAN.federation, min_platforms=2))
    run = _run(sums_under(identities, sign(roster, signer)), plan=plan)
    assert run.contributors == [("A", "B")] * ROUNDS
    _check_means(run)


def test_a_plan_that_no_grid_of_32_bits_holds_is_refused() -> None:
    plan = replace(PLAN, aggregation=replace(PLAN.aggregation, levels=(1 << 31) // 3))
    with pytest.raises(ConfigError, match="4 platforms of 715827882 levels need more than 32 bits"):
        _run(secure_sums("ABCD"), plan=plan)


def test_platforms_of_another_roster_are_not_let_in() -> None:
    # The same names under other keys: every one of them refuses the coordinator's invitation.
    one, other = secure_sums("ABC"), secure_sums("ABC")
    mixed = Sums(sealers=one.sealers, aggregation=other.aggregation, honest=one.honest)
    plan = replace(PLAN, federation=replace(PLAN.federation, round_timeout_s=1.0))
    with closing(InProcessGrid({n: _Platform(n, s) for n, s in mixed.sealers.items()})) as grid:
        courier = GridCourier(grid)
        aggregation = mixed.aggregation(courier, plan, lambda text: None)
        assert aggregation.objection("A") is None
        assert "not on the roster of simulation; admit it first" in str(aggregation.objection("Z"))
        assert PlainSum(courier, plan).objection("Z") is None
        progress = PlainProgress(io.StringIO())
        federation = Federation(
            courier,
            fresh_start(plan, np.zeros(D, dtype=np.float32)),
            RunOptions(platforms=3, wait_s=0.2),
            aggregation=_Stops(aggregation),
            save=lambda checkpoint: None,
            progress=progress,
        )
        with pytest.raises(
            _EnoughError, match="too few platforms for keys: 0 of 3, need 3"
        ) as caught:
            federation.run()
        assert str(caught.value).count("failed with code LEFT_THE_SUM") == 3


class _EnoughError(Exception):
    """The first refusal of a sum, which a federation would wait out."""


@dataclass
class _Stops(_Recorded):
    """An aggregation whose first refusal ends the run."""

    def gather(self, question: Question, seats: Mapping[str, NodeId]) -> Gathered:
        try:
            return super().gather(question, seats)
        except FederationError as error:
            raise _EnoughError(str(error)) from None


def test_a_simulated_platform_remembers_what_it_opened() -> None:
    opened, run, other = OpenedInMemory(), bytes(16), bytes(15) + b"\x01"
    opened(run, Kind.TRAIN, 3, ("A", "B", "C"))
    # The same question again, another kind and another run are all fine.
    opened(run, Kind.TRAIN, 3, ("A", "B", "C"))
    opened(run, Kind.EVALUATE, 3, ("A", "B", "D"))
    opened(other, Kind.TRAIN, 1, ("A", "B", "D"))
    with pytest.raises(OtherListError, match="round 3 was opened over A, B, C"):
        opened(run, Kind.TRAIN, 3, ("A", "B", "D"))
    opened(run, Kind.TRAIN, 4, ("A", "B", "D"))
    with pytest.raises(OldRoundError, match="round 3 was left behind: round 4 was opened"):
        opened(run, Kind.TRAIN, 3, ("A", "B", "C"))

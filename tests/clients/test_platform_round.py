"""The platform's round against a plain loop, and everything it must refuse."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from clients.dataset import Dataset
from clients.guard import OpenGuard
from clients.round import Finished, Member, PlatformRound, Received, Stranger
from clients.sealing import SealerFor
from clients.training import losses, optimizer_for, steps
from crossrec_model.config import AggregationConfig, FederationConfig, Plan
from crossrec_model.errors import ConfigError
from crossrec_model.parameters import Layout, initial_vector
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.sums import subject_of
from crossrec_model.statistics import active_users, measure, shared_log_popularity
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Reader, Vector
from crossrec_model.wire.contribution import Mean
from server.aggregation import Question
from server.flower import GridCourier
from simulations.grid import FIRST_NODE, InProcessGrid
from simulations.plain import PlainSealer, mean_of
from simulations.sums import secure_sums

RUN, OTHER_RUN = bytes(16), bytes(15) + b"\x01"


def _platform(
    dataset: Dataset, name: str = "A", sealer_for: SealerFor = PlainSealer, **options
) -> PlatformRound:
    return PlatformRound(name, lambda model: dataset, sealer_for, guard=OpenGuard(), **options)


def _ask(platform: PlatformRound, message: wire.Message) -> wire.Message:
    return wire.decode(b"".join(platform(wire.encode(message))))


def _welcomed(dataset: Dataset, plan: Plan, name: str = "A", **options) -> PlatformRound:
    platform = _platform(dataset, name, **options)
    reply = _ask(platform, wire.Welcome(plan=plan.to_json()))
    assert reply == wire.WelcomeReply(
        dimension=Layout(plan.model).size,
        training_metrics=("loss",),
        evaluation_metrics=("ndcg@10",),
    )
    return platform


def _train(
    platform: PlatformRound, plan: Plan, number: int, vector: np.ndarray, run: bytes = RUN
) -> wire.Message:
    return _ask(platform, _request(number, vector, rounds=plan.federation.rounds, run=run))


def _request(
    number: int, vector: np.ndarray, *, rounds: int = 4, run: bytes = RUN
) -> wire.TrainRequest:
    return wire.TrainRequest(run=run, round=number, rounds=rounds, ticket=b"", parameters=vector)


def _sent(reply: wire.Message) -> np.ndarray:
    """The vector of a plain contribution: weight · update, weight, weight · metrics."""
    assert isinstance(reply, wire.SumReply), reply
    reader = Reader(b"".join(reply.body))
    vector = Vector("contribution").read(reader)
    reader.end()
    return vector


def _mean(platforms: dict[str, PlatformRound], plan: Plan, number: int, vector: np.ndarray) -> Mean:
    total = np.zeros(len(vector) + 2)
    for _, platform in sorted(platforms.items()):
        reply = _train(platform, plan, number, vector)
        total += _sent(reply)
        assert (reply.run, reply.round) == (RUN, number)
    return mean_of(total, len(vector))


@pytest.fixture
def platforms(datasets: dict[str, Dataset], plan: Plan) -> dict[str, PlatformRound]:
    return {name: _welcomed(data, plan, name) for name, data in datasets.items()}


def _weights(datasets: dict[str, Dataset]) -> dict[str, int]:
    return {n: len(active_users(d.index, d.split.validation)) for n, d in datasets.items()}


@pytest.mark.parametrize(("number", "moment"), [(1, "validation"), (4, "test")])
def test_a_statistics_round_ends_at_the_mean_of_the_platforms_statistics(
    platforms, datasets, plan, number, moment
) -> None:
    vector = initial_vector(plan)
    # Whatever stood there before: the mean update leads to the mean of the measurements.
    vector[Layout(plan.model).trained :] += 0.25
    mean = _mean(platforms, plan, number, vector)
    expected, weights = 0.0, _weights(datasets)
    for name, data in datasets.items():
        own = measure(data.index, data.items, getattr(data.split, moment), plan.model.sketch_width)
        # Moments travel divided by 1024.
        moments = np.concatenate([own.mean, own.square]) / 1024
        expected = expected + weights[name] * np.concatenate([own.sketch, moments])
    trained = Layout(plan.model).trained
    assert mean.weight == sum(weights.values())
    np.testing.assert_array_equal(mean.update[:trained], 0.0)
    after = vector[trained:] + mean.update[trained:]
    np.testing.assert_allclose(after, expected / mean.weight, atol=1e-5)


def test_a_training_round_is_the_weighted_mean_of_plain_training_loops(
    platforms, datasets, plan
) -> None:
    layout = Layout(plan.model)
    vector = initial_vector(plan)
    vector = (vector + _mean(platforms, plan, 1, vector).update).astype(np.float32)
    mean = _mean(platforms, plan, 2, vector)
    expected, losses_seen, weights = 0.0, 0.0, _weights(datasets)
    for name, data in datasets.items():
        network, statistics = layout.unpack(vector, data.device)
        stream = ExperimentRandomness(plan.seed, "round", 2, "platform", name).child("epoch", 1)
        optimizer = optimizer_for(network, plan.training)
        total, counted = 0.0, 0
        popularity = shared_log_popularity(statistics, data.items)
        for step in steps(data.training, plan, statistics, popularity, stream):
            each = losses(network, step, plan)
            some = step.block.mask.sum(1) > 0
            optimizer.zero_grad()
            (each.sum() / max(int(some.sum()), 1)).backward()
            optimizer.step()
            total, counted = total + each.sum().item(), counted + int(some.sum())
        new = np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])
        expected = expected + weights[name] * (new - vector[: layout.trained]).astype(np.float64)
        losses_seen += weights[name] * total / counted
    assert np.abs(mean.update[: layout.trained]).max() > 1e-3
    np.testing.assert_allclose(
        mean.update[: layout.trained], expected / mean.weight, rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(mean.update[layout.trained :], 0.0)
    np.testing.assert_allclose(mean.metrics, [losses_seen / mean.weight], rtol=1e-5)


def test_the_same_round_gives_the_same_bytes_and_another_platform_other_ones(
    datasets, plan
) -> None:
    vector = initial_vector(plan)
    one, two = (_welcomed(datasets["A"], plan, "A") for _ in range(2))
    other = _welcomed(datasets["A"], plan, "Z")
    replies = [_sent(_train(p, plan, 2, vector)) for p in (one, two, other)]
    np.testing.assert_array_equal(replies[0], replies[1])
    assert np.abs(replies[0] - replies[2]).max() > 0


def test_evaluation_scores_the_shared_model_with_statistics_that_know_no_validation_week(
    datasets, plan
) -> None:
    platform = _welcomed(datasets["A"], plan)
    vector = initial_vector(plan)
    rounds = plan.federation.rounds
    own = measure(
        datasets["A"].index,
        datasets["A"].items,
        datasets["A"].split.validation,
        plan.model.sketch_width,
    )
    early, late = vector.copy(), vector.copy()
    trained = Layout(plan.model).trained
    early[trained:] = Layout(plan.model).tail(own)
    late[trained:] = Layout(plan.model).tail(replace(own, sketch=own.sketch[::-1]))

    def ndcg(number: int, parameters: np.ndarray) -> float:
        request = wire.EvaluateRequest(run=RUN, round=number, ticket=b"", parameters=parameters)
        weight, weighted = _sent(_ask(platform, request))
        assert weight == _weights(datasets)["A"]
        return float(weighted / weight)

    _train(platform, plan, 2, early)
    good, bad = ndcg(2, early), ndcg(2, late)
    assert 0 < good <= 1
    assert good != bad
    assert ndcg(rounds, late) == pytest.approx(good)


def test_states_follow_each_other(datasets, plan) -> None:
    kept: list[Received] = []
    platform = _platform(datasets["A"], keep=kept.append)
    vector = initial_vector(plan)
    assert isinstance(platform.state, Stranger)
    hello = _ask(platform, wire.Hello(session=bytes(16)))
    assert hello == wire.HelloReply(platform="A", protocol_version=2, software_version="0.1.0")
    assert _failure(_train(platform, plan, 1, vector)) == wire.FailureCode.UNEXPECTED
    _ask(platform, wire.Welcome(plan=plan.to_json()))
    assert isinstance(platform.state, Member)
    for number in (1, 2, 3, 4):
        _train(platform, plan, number, vector + number)
    assert _ask(platform, wire.Finish(run=RUN, round=4, parameters=vector)) == wire.Ack()
    assert isinstance(platform.state, Finished)
    assert [(r.round, r.finished) for r in kept] == [
        (0, False),
        (1, False),
        (2, False),
        (3, False),
        (4, True),
    ]
    # The statistics of the second request stay; the last vector's are for serving.
    width = 2 * plan.model.sketch_width
    np.testing.assert_allclose(kept[-1].validation.sketch, np.full(width, 2.0))
    assert kept[0].validation is None
    for late in (
        _request(4, vector),
        wire.EvaluateRequest(run=RUN, round=4, ticket=b"", parameters=vector),
        wire.Finish(run=RUN, round=4, parameters=vector),
        wire.Secure(frame=b"invited"),
    ):
        assert _failure(_ask(platform, late)) == wire.FailureCode.UNEXPECTED


def test_a_finished_platform_confirms_again_what_it_has(datasets, plan) -> None:
    """Its first confirmation was lost; nothing is to be paid for then."""
    asked: list[bytes | None] = []

    class Listening(OpenGuard):
        def accept(self, plan: Plan, run: bytes | None) -> None:
            asked.append(run)

    platform = PlatformRound("A", lambda model: datasets["A"], PlainSealer, guard=Listening())
    vector = initial_vector(plan)
    finish = wire.Finish(run=RUN, round=4, parameters=vector)
    other = replace(plan, seed=plan.seed + 1)
    for offered in (plan, plan, other):
        _ask(platform, wire.Welcome(plan=offered.to_json()))
        assert _ask(platform, finish) == wire.Ack()
    # As a part of its run only where the plan is that run's.
    assert asked == [None, RUN, None]


def test_a_platform_that_comes_late_takes_the_statistics_from_any_later_request(
    datasets, plan
) -> None:
    vector = initial_vector(plan)
    for number in (3, 4):
        kept: list[Received] = []
        _train(_welcomed(datasets["A"], plan, keep=kept.append), plan, number, vector + 1)
        assert float(kept[-1].validation.sketch[0]) == 1.0


def test_a_platform_that_comes_back_keeps_the_statistics_of_the_same_run_only(
    datasets, plan
) -> None:
    kept: list[Received] = []
    vector = initial_vector(plan)
    _train(_welcomed(datasets["A"], plan, keep=kept.append), plan, 3, vector + 1)
    finish = wire.Finish(run=RUN, round=4, parameters=vector)
    again: list[Received] = []
    _ask(_welcomed(datasets["A"], plan, keep=again.append, earlier=kept[-1]), finish)
    assert float(again[-1].validation.sketch[0]) == 1.0
    other = wire.Finish(run=OTHER_RUN, round=4, parameters=vector)
    # What was not finished is not left for another run: sums of both could be subtracted.
    with pytest.raises(ConfigError, match="add --new-run"):
        _ask(_welcomed(datasets["A"], plan, keep=again.append, earlier=kept[-1]), other)
    assert len(again) == 1
    finished = replace(kept[-1], finished=True)
    for options in ({"earlier": finished}, {"earlier": kept[-1], "new_run": True}):
        _ask(_welcomed(datasets["A"], plan, keep=again.append, **options), other)
        assert (again[-1].run, again[-1].validation) == (OTHER_RUN, None)
    assert len(again) == 3


def test_a_run_goes_on_with_its_own_plan_or_more_rounds_only(datasets, plan) -> None:
    kept: list[Received] = []
    vector = initial_vector(plan)
    _train(_welcomed(datasets["A"], plan, keep=kept.append), plan, 2, vector)
    longer = replace(plan, federation=replace(plan.federation, rounds=6))
    again = _welcomed(datasets["A"], longer, earlier=kept[-1])
    assert isinstance(_train(again, longer, 2, vector), wire.SumReply)
    other = replace(plan, aggregation=AggregationConfig(clip_norm=1.0))
    for earlier, changed in (
        (kept[-1], other),
        # Its last round was asked for: statistics that know the test weeks must not be trained on.
        (replace(kept[-1], round=3), longer),
    ):
        stopped = _welcomed(datasets["A"], changed, earlier=earlier)
        with pytest.raises(ConfigError, match=r"goes on with another plan .* add --new-run"):
            _train(stopped, changed, 2, vector)
        aware = _welcomed(datasets["A"], changed, earlier=earlier, new_run=True)
        assert isinstance(_train(aware, changed, 2, vector), wire.SumReply)


def test_a_coordinator_that_restarts_may_welcome_again(datasets, plan) -> None:
    read: list[int] = []

    def dataset_for(model):
        read.append(1)
        return datasets["A"]

    kept: list[Received] = []
    platform = PlatformRound("A", dataset_for, PlainSealer, guard=OpenGuard(), keep=kept.append)
    welcome = wire.Welcome(plan=plan.to_json())
    vector = initial_vector(plan)
    _ask(platform, welcome)
    _train(platform, plan, 2, vector + 1)
    _ask(platform, welcome)
    _ask(platform, wire.Finish(run=RUN, round=4, parameters=vector))
    assert read == [1]
    assert float(kept[-1].validation.sketch[0]) == 1.0
    # A new run may begin after the end of one.
    _ask(platform, welcome)
    assert isinstance(_train(platform, plan, 1, vector, OTHER_RUN), wire.SumReply)


def _failure(message: wire.Message) -> wire.FailureCode:
    assert isinstance(message, wire.Failure), message
    return message.code


def test_requests_that_do_not_fit_are_answered_with_a_code(datasets, plan) -> None:
    platform = _welcomed(datasets["A"], plan)
    vector = initial_vector(plan)
    short = _request(1, vector[:-1])
    assert _failure(_ask(platform, short)) == wire.FailureCode.UNEXPECTED
    longer = _request(1, vector, rounds=5)
    assert _failure(_ask(platform, longer)) == wire.FailureCode.UNEXPECTED
    assert isinstance(_train(platform, plan, 1, vector), wire.SumReply)
    code = _failure(_train(platform, plan, 2, vector, OTHER_RUN))
    assert code == wire.FailureCode.UNEXPECTED
    # A reply is no request.
    assert _failure(_ask(platform, wire.Ack())) == wire.FailureCode.UNEXPECTED
    frame = wire.encode(wire.Hello(session=bytes(16)))
    other = frame[:4] + (99).to_bytes(2, "little") + frame[6:]
    assert _failure(wire.decode(b"".join(platform(other)))) == wire.FailureCode.OTHER_VERSION
    for bad in (b"", frame[:-1], frame + b"\0", b"XXXX" + frame[4:]):
        assert _failure(wire.decode(b"".join(platform(bad)))) == wire.FailureCode.MALFORMED


def test_numbers_that_are_not_finite_never_pass(datasets, plan) -> None:
    said: list[str] = []
    platform = _welcomed(datasets["A"], plan, warn=said.append)
    vector = initial_vector(plan)
    frame = bytearray(wire.encode(_request(2, vector)))
    frame[-4:] = np.float32(np.nan).tobytes()
    reply = wire.decode(b"".join(platform(bytes(frame))))
    assert _failure(reply) == wire.FailureCode.MALFORMED
    huge = vector.copy()
    huge[: Layout(plan.model).trained] = 3e38
    with np.errstate(all="ignore"):
        code = _failure(_train(platform, plan, 2, huge))
    assert code == wire.FailureCode.LEFT_THE_SUM
    # Its operator is told by name; the other side gets no more than the code.
    (line,) = said
    assert line.startswith("this platform leaves the sum (NotFiniteError): the update holds NaN")
    assert isinstance(_train(platform, plan, 2, vector), wire.SumReply)
    assert len(said) == 1


def test_an_update_beyond_the_bounds_is_scaled_and_a_weight_is_capped(datasets, plan) -> None:
    vector, said = initial_vector(plan), []
    free = _sent(_train(_welcomed(datasets["A"], plan), plan, 2, vector))
    users = _weights(datasets)["A"]
    assert free[-2] == users
    update = free[:-2] / users
    norm = float(np.linalg.norm(update))
    tight = replace(plan, aggregation=AggregationConfig(clip_norm=norm / 2, max_weight=10.0))
    bound = _sent(_train(_welcomed(datasets["A"], tight, warn=said.append), tight, 2, vector))
    assert bound[-2] == 10
    # All of it is shorter by the same factor, its direction stays.
    np.testing.assert_allclose(bound[:-2] / 10, update / 2, rtol=1e-4, atol=1e-7)
    assert bound[-1] / 10 == pytest.approx(free[-1] / users, rel=1e-6)
    assert said == ["round 2: the update was scaled by 0.5 to the bounds"]
    largest = float(np.abs(update).max())
    narrow = replace(plan, aggregation=AggregationConfig(bound=largest / 4))
    small = _sent(_train(_welcomed(datasets["A"], narrow), narrow, 2, vector))
    np.testing.assert_allclose(small[:-2] / users, update / 4, rtol=1e-4, atol=1e-7)
    assert np.abs(small[:-2] / users).max() <= largest / 4 * (1 + 1e-6)


def test_nothing_is_sent_before_keys_are_agreed(datasets, plan) -> None:
    said: list[str] = []
    sealers = secure_sums("ABC").sealers
    platform = _platform(datasets["A"], "A", sealers["A"], warn=said.append)
    vector = initial_vector(plan)
    assert _failure(_ask(platform, wire.Secure(frame=b"x"))) == wire.FailureCode.UNEXPECTED
    _ask(platform, wire.Welcome(plan=plan.to_json()))
    assert _failure(_ask(platform, wire.Secure(frame=b"x"))) == wire.FailureCode.MALFORMED
    assert said == []
    ticket = frames.encode(
        frames.Ticket(
            epoch=bytes(16),
            slot=0,
            kind=frames.Kind.TRAIN,
            round=2,
            bits=32,
            levels=plan.aggregation.levels,
            length=len(vector) + 2,
        )
    )
    for asked, error in ((b"", "ParametersError"), (ticket, "OutOfTurnError")):
        request = replace(_request(2, vector), ticket=asked)
        assert _failure(_ask(platform, request)) == wire.FailureCode.LEFT_THE_SUM
        assert said.pop().startswith(f"this platform leaves the sum ({error}): ")
        assert said == []
    # It stays, and a plain vector never leaves it.
    assert isinstance(platform.state, Member)


def test_a_loss_beyond_its_bound_is_held_at_it_and_tells_nothing(datasets, plan) -> None:
    """A refusal would tell the coordinator about the data, as often as it asks."""
    sums, said = secure_sums("ABC"), []
    platforms = {
        name: _welcomed(data, plan, name, sealer_for=sums.sealers[name], warn=said.append)
        for name, data in datasets.items()
    }
    # Weights of this size are finite, but the loss under them is beyond what a sum takes.
    vector = initial_vector(plan)
    vector[: Layout(plan.model).trained] *= 1e4
    seats = {name: FIRST_NODE + at for at, name in enumerate("ABC")}

    def question(parameters: np.ndarray, number: int) -> Question:
        def request(ticket: bytes) -> bytes:
            return wire.encode(replace(_request(number, parameters), ticket=ticket))

        return Question(
            kind=frames.Kind.TRAIN,
            run=RUN,
            round=number,
            subject=subject_of(frames.Kind.TRAIN, RUN, number, parameters),
            dimension=len(parameters),
            metrics=("loss",),
            request=request,
        )

    with closing(InProcessGrid(platforms)) as grid:
        courier = GridCourier(grid)
        aggregation = sums.aggregation(courier, plan, lambda text: None)
        gathered = aggregation.gather(question(vector, 2), seats)
    assert (gathered.contributors, gathered.lost) == (("A", "B", "C"), {})
    assert gathered.mean.metrics[0] == pytest.approx(64, abs=0.1)
    assert not [line for line in said if "leaves the sum" in line]


def test_no_work_is_done_for_a_ticket_that_is_refused(datasets, plan) -> None:
    kept: list[Received] = []
    sealer_for = secure_sums("ABC").sealers["A"]
    platform = _welcomed(datasets["A"], plan, sealer_for=sealer_for, keep=kept.append)
    for request in (
        replace(_request(2, initial_vector(plan)), ticket=b"nonsense"),
        wire.EvaluateRequest(run=RUN, round=2, ticket=b"", parameters=initial_vector(plan)[:-1]),
    ):
        assert _ask(platform, request) == wire.Failure(code=wire.FailureCode.LEFT_THE_SUM)
    # A vector of the wrong length would have been told before, had anybody looked at it.
    assert kept == []


def test_a_name_that_no_message_can_carry_is_refused(datasets) -> None:
    for name in ("", "shop one", "a" * 65, ".A"):
        with pytest.raises(ConfigError, match=r"platform id .* must match .*; rename it"):
            PlatformRound(name, lambda model: datasets["A"], PlainSealer, guard=OpenGuard())


def test_a_plan_that_cannot_be_followed_is_told_to_the_operator(datasets, plan) -> None:
    platform = _platform(datasets["A"])
    short = replace(plan, federation=FederationConfig(rounds=2))
    with pytest.raises(ConfigError, match="2 rounds, at least 3"):
        platform(wire.encode(wire.Welcome(plan=short.to_json())))
    with pytest.raises(ConfigError, match="not valid JSON"):
        platform(wire.encode(wire.Welcome(plan=b"{")))
    assert isinstance(platform.state, Stranger)

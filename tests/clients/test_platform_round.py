"""The platform's round against a plain loop, and everything it must refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clients.dataset import Dataset
from clients.round import Finished, Member, PlatformRound, Received, Stranger
from clients.training import losses, optimizer_for, steps
from crossrec_model.config import FederationConfig, Plan
from crossrec_model.errors import ConfigError
from crossrec_model.parameters import Layout, initial_vector
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import active_users, measure, shared_log_popularity
from crossrec_model.wire import messages as wire
from crossrec_model.wire.contribution import mean_of

RUN, OTHER_RUN = bytes(16), bytes(15) + b"\x01"


def _platform(dataset: Dataset, name: str = "A", **options) -> PlatformRound:
    return PlatformRound(name, lambda model: dataset, **options)


def _ask(platform: PlatformRound, message: wire.Message) -> wire.Message:
    return wire.decode(platform(wire.encode(message)))


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
    rounds = plan.federation.rounds
    return _ask(
        platform, wire.TrainRequest(run=run, round=number, rounds=rounds, parameters=vector)
    )


def _mean(platforms: dict[str, PlatformRound], plan: Plan, number: int, vector: np.ndarray):
    total = 0.0
    for _, platform in sorted(platforms.items()):
        reply = _train(platform, plan, number, vector)
        assert isinstance(reply, wire.UpdateReply)
        assert (reply.run, reply.round) == (RUN, number)
        total = total + reply.contribution.astype(np.float64)
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
        expected = expected + weights[name] * np.concatenate([own.sketch, own.mean, own.square])
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
    replies = [_train(p, plan, 2, vector).contribution for p in (one, two, other)]
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
    early[trained:] = np.concatenate([own.sketch, own.mean, own.square])
    late[trained:] = np.concatenate([own.sketch[::-1], own.mean, own.square])

    def ndcg(number: int, parameters: np.ndarray) -> float:
        request = wire.EvaluateRequest(run=RUN, round=number, parameters=parameters)
        reply = _ask(platform, request)
        assert isinstance(reply, wire.MetricsReply)
        return float(reply.metrics[1] / reply.metrics[0])

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
    assert hello == wire.HelloReply(platform="A", protocol_version=1, software_version="0.1.0")
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
        wire.TrainRequest(run=RUN, round=4, rounds=4, parameters=vector),
        wire.EvaluateRequest(run=RUN, round=4, parameters=vector),
        wire.Finish(run=RUN, round=4, parameters=vector),
    ):
        assert _failure(_ask(platform, late)) == wire.FailureCode.UNEXPECTED


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
    _ask(_welcomed(datasets["A"], plan, keep=again.append, earlier=kept[-1]), other)
    assert again[-1].validation is None


def test_a_coordinator_that_restarts_may_welcome_again(datasets, plan) -> None:
    read: list[int] = []

    def dataset_for(model):
        read.append(1)
        return datasets["A"]

    kept: list[Received] = []
    platform = PlatformRound("A", dataset_for, keep=kept.append)
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
    assert isinstance(_train(platform, plan, 1, vector, OTHER_RUN), wire.UpdateReply)


def _failure(message: wire.Message) -> wire.FailureCode:
    assert isinstance(message, wire.Failure), message
    return message.code


def test_requests_that_do_not_fit_are_answered_with_a_code(datasets, plan) -> None:
    platform = _welcomed(datasets["A"], plan)
    vector = initial_vector(plan)
    short = wire.TrainRequest(run=RUN, round=1, rounds=4, parameters=vector[:-1])
    assert _failure(_ask(platform, short)) == wire.FailureCode.UNEXPECTED
    longer = wire.TrainRequest(run=RUN, round=1, rounds=5, parameters=vector)
    assert _failure(_ask(platform, longer)) == wire.FailureCode.UNEXPECTED
    assert isinstance(_train(platform, plan, 1, vector), wire.UpdateReply)
    code = _failure(_train(platform, plan, 2, vector, OTHER_RUN))
    assert code == wire.FailureCode.UNEXPECTED
    # A reply is no request.
    assert _failure(_ask(platform, wire.Ack())) == wire.FailureCode.UNEXPECTED
    frame = wire.encode(wire.Hello(session=bytes(16)))
    other = frame[:4] + (99).to_bytes(2, "little") + frame[6:]
    assert _failure(wire.decode(platform(other))) == wire.FailureCode.OTHER_VERSION
    for bad in (b"", frame[:-1], frame + b"\0", b"XXXX" + frame[4:]):
        assert _failure(wire.decode(platform(bad))) == wire.FailureCode.MALFORMED


def test_numbers_that_are_not_finite_never_pass(datasets, plan) -> None:
    platform = _welcomed(datasets["A"], plan)
    vector = initial_vector(plan)
    frame = bytearray(wire.encode(wire.TrainRequest(run=RUN, round=2, rounds=4, parameters=vector)))
    frame[-4:] = np.float32(np.nan).tobytes()
    assert _failure(wire.decode(platform(bytes(frame)))) == wire.FailureCode.MALFORMED
    huge = vector.copy()
    huge[: Layout(plan.model).trained] = 3e38
    with np.errstate(all="ignore"):
        code = _failure(_train(platform, plan, 2, huge))
    assert code == wire.FailureCode.NOT_FINITE
    assert isinstance(_train(platform, plan, 2, vector), wire.UpdateReply)


def test_a_name_that_no_message_can_carry_is_refused(datasets) -> None:
    for name in ("", "shop one", "a" * 65, ".A"):
        with pytest.raises(ConfigError, match=r"platform id .* must match .*; rename it"):
            PlatformRound(name, lambda model: datasets["A"])


def test_a_plan_that_cannot_be_followed_is_told_to_the_operator(datasets, plan) -> None:
    platform = _platform(datasets["A"])
    short = replace(plan, federation=FederationConfig(rounds=2))
    with pytest.raises(ConfigError, match="2 rounds, at least 3"):
        platform(wire.encode(wire.Welcome(plan=short.to_json())))
    with pytest.raises(ConfigError, match="not valid JSON"):
        platform(wire.encode(wire.Welcome(plan=b"{")))
    assert isinstance(platform.state, Stranger)

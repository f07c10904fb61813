"""One round over a scripted courier: order, bad answers, and what only the sum may show."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from crossrec_model.config import FederationConfig, Plan
from crossrec_model.errors import FederationError
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Vector
from crossrec_model.wire.contribution import Contribution
from server.aggregation import CohortTooSmallError
from server.courier import Arrivals, Loss, Lost, NodeId
from server.optimizer import initial_state
from server.round import ModelVersion, RoundRunner
from simulations.plain import PlainSum, pack

RUN = bytes(16)
AGREED = wire.WelcomeReply(
    dimension=3, training_metrics=("loss",), evaluation_metrics=("ndcg@10", "recall@10")
)
Script = Callable[[wire.Message], bytes | Lost]


class ScriptedCourier:
    """Answers at once, in the order given, by one function a node."""

    def __init__(self, scripts: Mapping[int, Script]) -> None:
        self._scripts = scripts

    def owner(self, node: NodeId) -> str | None:
        return None

    def nodes(self) -> dict[NodeId, float]:
        return {NodeId(node): 1.0 for node in self._scripts}

    def exchange(self, payloads: Mapping[NodeId, bytes], *, timeout_s: float) -> Arrivals:
        assert timeout_s == 7.0
        for n in self._scripts:
            yield NodeId(n), self._scripts[n](wire.decode(payloads[NodeId(n)]))


def _body(
    update: list[float], weight: float, metrics: tuple[float, ...]
) -> tuple[bytes | memoryview, ...]:
    part = Contribution(update=np.array(update, dtype=np.float32), weight=weight, metrics=metrics)
    return Vector("contribution").pieces(pack(part))


def _train(update: list[float], weight: float, loss: float = 0.5, **change: object) -> Script:
    def script(message: wire.Message) -> bytes:
        assert isinstance(message, wire.TrainRequest)
        values = {"run": message.run, "round": message.round, **change}
        body = _body(update, weight, (loss,))
        return wire.encode(wire.SumReply(body=body, **values))  # type: ignore[arg-type]

    return script


def _model() -> ModelVersion:
    config = FederationConfig()
    start = np.array([1, 2, 3], dtype=np.float32)
    return ModelVersion(run=RUN, round=4, parameters=start, optimizer=initial_state(config, 3))


def _runner(scripts: Mapping[int, Script], least: int = 1) -> RoundRunner:
    return _with(FederationConfig(round_timeout_s=7.0), scripts, least)


def _with(config: FederationConfig, scripts: Mapping[int, Script], least: int = 1) -> RoundRunner:
    aggregation = PlainSum(ScriptedCourier(scripts), Plan(federation=config), least=least)
    return RoundRunner(aggregation=aggregation, config=config, agreed=AGREED)


SEATS = {"A": NodeId(1), "B": NodeId(2), "C": NodeId(3)}


def test_the_next_model_is_the_weighted_mean() -> None:
    scripts = {1: _train([1, 0, 0], 1, 0.1), 2: _train([0, 3, 0], 3, 0.5), 3: _train([4, 4, 4], 0)}
    model, outcome = _runner(scripts).train(_model(), SEATS)
    assert model.round == 5
    np.testing.assert_allclose(model.parameters, [1.25, 4.25, 3.0], rtol=1e-6)
    assert outcome.contributors == ("A", "B", "C")
    assert outcome.metrics == {"loss": pytest.approx(0.4)}
    assert outcome.lost == {}


def test_the_sum_does_not_depend_on_who_answers_first() -> None:
    numbers = np.random.default_rng(1).normal(size=(3, 3)) * [[1e8], [1.0], [1e-8]]
    scripts = {n: _train(list(numbers[n - 1]), n) for n in (1, 2, 3)}
    results = set()
    for order in ((1, 2, 3), (3, 1, 2), (2, 3, 1)):
        model, _ = _runner({n: scripts[n] for n in order}).train(_model(), SEATS)
        results.add(model.parameters.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (lambda _: Lost(Loss.LATE), "no answer in time"),
        (lambda _: b"rubbish", "magic"),
        (lambda _: wire.encode(wire.Ack()), "Ack came where SumReply was due"),
        (
            lambda _: wire.encode(wire.Failure(code=wire.FailureCode.LEFT_THE_SUM)),
            "failed with code LEFT_THE_SUM",
        ),
        (_train([1, 1, 1], 1, round=4), "answered for round 4, not 5"),
        (_train([1, 1, 1], 1, run=bytes([1] * 16)), "answered for round 5, not 5"),
        (_train([1, 1], 1), "its vector has 4 numbers, not 5"),
    ],
)
def test_a_bad_answer_is_left_out_and_named(script: Script, reason: str) -> None:
    scripts = {1: _train([1, 1, 1], 2), 2: script, 3: _train([3, 3, 3], 2)}
    model, outcome = _runner(scripts).train(_model(), SEATS)
    np.testing.assert_allclose(model.parameters, [3, 4, 5])
    assert outcome.contributors == ("A", "C")
    assert list(outcome.lost) == ["B"]
    assert reason in outcome.lost["B"]


def test_too_few_answers_fail_the_round_and_say_why() -> None:
    scripts = {1: _train([1, 1, 1], 1), 2: lambda _: Lost(Loss.GONE), 3: lambda _: Lost(Loss.LATE)}
    with pytest.raises(CohortTooSmallError) as caught:
        _runner(scripts, least=2).train(_model(), SEATS)
    assert str(caught.value) == (
        "1 platforms answered, at least 2 are needed "
        "(B: the connection was lost; C: no answer in time)"
    )
    assert caught.value.lost == ("B", "C")


def test_a_cohort_without_any_weight_is_refused() -> None:
    scripts = {n: _train([1, 1, 1], 0) for n in (1, 2, 3)}
    with pytest.raises(FederationError, match="total weight"):
        _runner(scripts).train(_model(), SEATS)


def test_evaluation_goes_through_the_same_sums() -> None:
    def script(weight: float, *scores: float) -> Script:
        def evaluate(message: wire.Message) -> bytes:
            assert isinstance(message, wire.EvaluateRequest)
            body = _body([], weight, scores)
            return wire.encode(wire.SumReply(run=RUN, round=message.round, body=body))

        return evaluate

    scripts = {1: script(1, 0.5, 1.0), 2: script(3, 0.1, 0.0), 3: lambda _: Lost(Loss.GONE)}
    outcome = _runner(scripts).evaluate(_model(), SEATS)
    assert outcome.metrics == {"ndcg@10": pytest.approx(0.2), "recall@10": pytest.approx(0.25)}
    assert outcome.lost == {"C": "the connection was lost"}


@pytest.mark.parametrize("number", [1, 9])
def test_a_statistics_round_takes_the_mean_whatever_the_optimiser(number: int) -> None:
    config = FederationConfig(round_timeout_s=7.0, rounds=9, optimizer="fedadam", server_lr=0.1)
    start = ModelVersion(
        run=RUN,
        round=number - 1,
        parameters=np.zeros(3, dtype=np.float32),
        optimizer=initial_state(config, 3),
    )
    scripts = {1: _train([0, 0, 2], 1), 2: _train([0, 0, 6], 3)}
    model, _ = _with(config, scripts).train(start, {"A": NodeId(1), "B": NodeId(2)})
    np.testing.assert_allclose(model.parameters, [0, 0, 5])
    assert model.optimizer is start.optimizer

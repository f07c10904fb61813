"""One round of the federation, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from crossrec_model.config import FederationConfig, is_statistics_round
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.sums import subject_of
from crossrec_model.wire.codec import FloatVector
from crossrec_model.wire.messages import EvaluateRequest, TrainRequest, WelcomeReply, encode
from server.aggregation import Aggregation, Gathered, Question
from server.courier import NodeId
from server.optimizer import OptimizerState, plain_mean, step


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelVersion:
    """The shared model after `round` rounds of a run: `parameters` float32 [d]."""

    run: bytes
    round: int
    parameters: FloatVector
    optimizer: OptimizerState


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Who contributed, who was lost and why, the cohort's mean metrics, and the seconds it took.

    `update_error` bounds what rounding can have changed in any coordinate of the mean update.
    """

    contributors: tuple[str, ...]
    lost: dict[str, str]
    metrics: dict[str, float]
    seconds: float
    update_error: float


@dataclass(frozen=True, kw_only=True)
class RoundRunner:
    """What stays the same in all rounds of a run."""

    aggregation: Aggregation
    config: FederationConfig
    agreed: WelcomeReply
    #: Whether the plan has rounds for pairs.
    pairs: bool = False

    def train(
        self, model: ModelVersion, seats: Mapping[str, NodeId]
    ) -> tuple[ModelVersion, Outcome]:
        """Run one round of training and return the next model.

        1. The cohort is every seated platform; all get the same request: run, round, parameters,
           and the ticket of a sum.
        2. Each trains and answers with its sealed part of one vector: weighted update, weight,
           weighted metrics.
        3. The aggregation returns the weighted mean over those that answered well, whatever the
           order they answered in. With too few of them the round fails and the model stays.
        4. The server's optimiser takes one step, which gives the next model version. In a
           statistics round the mean is taken as it is.

        Raises:
            CohortTooSmallError: see step 3.
            FederationError: if the optimiser's step is not finite.
        """
        started, number = time.monotonic(), model.round + 1

        def request(ticket: bytes) -> bytes:
            return encode(
                TrainRequest(
                    run=model.run,
                    round=number,
                    rounds=max(self.config.rounds, number),
                    ticket=ticket,
                    parameters=model.parameters,
                )
            )

        question = Question(
            kind=Kind.TRAIN,
            run=model.run,
            round=number,
            subject=subject_of(Kind.TRAIN, model.run, number, model.parameters),
            dimension=self.agreed.dimension,
            metrics=self.agreed.training_metrics,
            request=request,
        )
        gathered = self.aggregation.gather(question, seats)
        update = gathered.mean.update
        if is_statistics_round(number, self.config.rounds, pairs=self.pairs):
            parameters, state = plain_mean(model.parameters, update), model.optimizer
        else:
            parameters, state = step(self.config, model.optimizer, model.parameters, update)
        following = ModelVersion(
            run=model.run, round=number, parameters=parameters, optimizer=state
        )
        return following, _outcome(gathered, question, started)

    def evaluate(self, model: ModelVersion, seats: Mapping[str, NodeId]) -> Outcome:
        """Return the mean validation metrics of a model, through a sum of the same kind.

        Raises:
            CohortTooSmallError: if too few platforms answer.
        """
        started = time.monotonic()

        def request(ticket: bytes) -> bytes:
            return encode(
                EvaluateRequest(
                    run=model.run, round=model.round, ticket=ticket, parameters=model.parameters
                )
            )

        question = Question(
            kind=Kind.EVALUATE,
            run=model.run,
            round=model.round,
            subject=subject_of(Kind.EVALUATE, model.run, model.round, model.parameters),
            dimension=0,
            metrics=self.agreed.evaluation_metrics,
            request=request,
        )
        return _outcome(self.aggregation.gather(question, seats), question, started)


def _outcome(gathered: Gathered, question: Question, started: float) -> Outcome:
    values = gathered.mean.metrics.tolist()
    return Outcome(
        contributors=gathered.contributors,
        lost=gathered.lost,
        metrics=dict(zip(question.metrics, values, strict=True)),
        seconds=time.monotonic() - started,
        update_error=gathered.mean.update_error,
    )

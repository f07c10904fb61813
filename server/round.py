"""One round of the federation, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from crossrec_model.config import FederationConfig, is_statistics_round
from crossrec_model.errors import FederationError, WireError
from crossrec_model.wire.codec import FloatVector
from crossrec_model.wire.contribution import mean_of
from crossrec_model.wire.messages import (
    EvaluateRequest,
    MetricsReply,
    TrainRequest,
    UpdateReply,
    WelcomeReply,
    decode_as,
    encode,
)
from server.courier import Courier, Lost, NodeId
from server.optimizer import OptimizerState, plain_mean, step

Answer = TypeVar("Answer", UpdateReply, MetricsReply)


class CohortTooSmallError(FederationError):
    """Fewer platforms answered than a round needs; the model stays as it was."""

    def __init__(self, answered: int, least: int, lost: Mapping[str, str]) -> None:
        why = "; ".join(f"{platform}: {reason}" for platform, reason in sorted(lost.items()))
        super().__init__(
            f"{answered} platforms answered, at least {least} are needed"
            + (f" ({why})" if why else "")
        )
        self.lost = tuple(sorted(lost))


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelVersion:
    """The shared model after `round` rounds of a run: `parameters` float32 [d]."""

    run: bytes
    round: int
    parameters: FloatVector
    optimizer: OptimizerState


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Who contributed, who was lost and why, the cohort's mean metrics, and the seconds it took."""

    contributors: tuple[str, ...]
    lost: dict[str, str]
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RoundRunner:
    """What stays the same in all rounds of a run."""

    courier: Courier
    config: FederationConfig
    agreed: WelcomeReply
    least: int

    def train(
        self, model: ModelVersion, seats: Mapping[str, NodeId]
    ) -> tuple[ModelVersion, Outcome]:
        """Run one round of training and return the next model.

        1. The cohort is every seated platform; all get the same request: run, round, parameters.
        2. Each trains and answers with one vector: weighted update, weight, weighted metrics.
        3. An answer that is late, malformed, not finite, of another run or round, or of another
           length is left out; under `least` answers the round fails and the model stays.
        4. The vectors are added in sorted order of platform id, in float64, so that the sum does
           not depend on who answered first. Nothing but the sum is used from here on.
        5. The sum is divided by its total weight: the cohort's mean update and mean metrics.
        6. The server's optimiser takes one step, which gives the next model version. In a
           statistics round the mean is taken as it is.

        Raises:
            CohortTooSmallError: see step 3.
            FederationError: if the optimiser's step is not finite.
        """
        started, number = time.monotonic(), model.round + 1
        request = TrainRequest(
            run=model.run,
            round=number,
            rounds=max(self.config.rounds, number),
            parameters=model.parameters,
        )
        answers, lost = self._ask(seats, encode(request), UpdateReply, model.run, number)
        names = self.agreed.training_metrics
        length = self.agreed.dimension + 1 + len(names)
        vectors = {platform: reply.contribution for platform, reply in answers.items()}
        total = self._sum(vectors, length, lost)
        mean = mean_of(total, self.agreed.dimension)
        if is_statistics_round(number, self.config.rounds):
            parameters, state = plain_mean(model.parameters, mean.update), model.optimizer
        else:
            parameters, state = step(self.config, model.optimizer, model.parameters, mean.update)
        following = ModelVersion(
            run=model.run, round=number, parameters=parameters, optimizer=state
        )
        return following, Outcome(
            contributors=tuple(sorted(vectors)),
            lost=lost,
            metrics=dict(zip(names, mean.metrics.tolist(), strict=True)),
            seconds=time.monotonic() - started,
        )

    def evaluate(self, model: ModelVersion, seats: Mapping[str, NodeId]) -> Outcome:
        """Return the mean validation metrics of a model, through sums of the same kind.

        Raises:
            CohortTooSmallError: if fewer than `least` platforms answer.
        """
        started = time.monotonic()
        request = EvaluateRequest(run=model.run, round=model.round, parameters=model.parameters)
        answers, lost = self._ask(seats, encode(request), MetricsReply, model.run, model.round)
        names = self.agreed.evaluation_metrics
        vectors = {platform: reply.metrics for platform, reply in answers.items()}
        mean = mean_of(self._sum(vectors, 1 + len(names), lost), 0)
        return Outcome(
            contributors=tuple(sorted(vectors)),
            lost=lost,
            metrics=dict(zip(names, mean.metrics.tolist(), strict=True)),
            seconds=time.monotonic() - started,
        )

    def _ask(
        self,
        seats: Mapping[str, NodeId],
        payload: bytes,
        kind: type[Answer],
        run: bytes,
        number: int,
    ) -> tuple[dict[str, Answer], dict[str, str]]:
        """Return the valid answers, and for every other platform why it has none."""
        platforms = {node: platform for platform, node in seats.items()}
        raw = self.courier.exchange(
            dict.fromkeys(platforms, payload), timeout_s=self.config.round_timeout_s
        )
        answers: dict[str, Answer] = {}
        lost: dict[str, str] = {}
        for node, answer in raw.items():
            if isinstance(answer, Lost):
                lost[platforms[node]] = str(answer.loss)
                continue
            try:
                reply = decode_as(kind, answer)
            except WireError as error:
                lost[platforms[node]] = str(error)
                continue
            if (reply.run, reply.round) == (run, number):
                answers[platforms[node]] = reply
            else:
                lost[platforms[node]] = f"it answered for round {reply.round}, not {number}"
        return answers, lost

    def _sum(
        self, vectors: dict[str, FloatVector], length: int, lost: dict[str, str]
    ) -> npt.NDArray[np.float64]:
        """Add the vectors of the right length in sorted platform order; note the others."""
        for platform in [p for p, vector in vectors.items() if len(vector) != length]:
            lost[platform] = f"its vector has {len(vectors.pop(platform))} numbers, not {length}"
        if len(vectors) < self.least:
            raise CohortTooSmallError(len(vectors), self.least, lost)
        total = np.zeros(length, dtype=np.float64)
        for platform in sorted(vectors):
            total += vectors[platform]
        return total

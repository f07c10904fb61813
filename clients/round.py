"""The platform's side of a round: request bytes in, reply bytes out. No transport, no files."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from clients.dataset import Dataset
from clients.membership import Finished, Member, Received, State, Stranger, check_same_run
from clients.scoring import SharedModel
from clients.sealing import EVALUATION_METRICS, TRAINING_METRICS, SealerFor
from clients.training import optimizer_for, steps, train_steps
from clients.validation import Validation
from crossrec_model import __version__
from crossrec_model.config import ModelConfig, Plan, check_rounds, is_statistics_round
from crossrec_model.errors import ConfigError, WireError
from crossrec_model.parameters import Layout, Vector
from crossrec_model.privacy.clipping import clip_update
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.sums import subject_of
from crossrec_model.statistics import Statistics, active_users, measure, shared_log_popularity
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.contribution import Contribution, metric_bounds

DatasetFor = Callable[[ModelConfig], Dataset]


class _RefusedError(Exception):
    """A request that is answered with a code; the platform stays."""

    def __init__(self, code: wire.FailureCode) -> None:
        super().__init__(code.name)
        self.code = code


class PlatformRound:
    """One platform's handler of frames: `handler(request bytes) → reply in pieces`.

    Args:
        platform: the platform's id.
        dataset_for: reads the platform's data for a plan's network.
        sealer_for: makes what seals this platform's part of a sum, for a plan.
        keep: gets everything that came from the federation, before the answer leaves.
        note: gets (round, rounds, what was done) after each round.
        warn: gets a line when this platform leaves a sum.
        new_run: take part in another run though the last one was not finished.
        earlier: what an earlier process of this platform kept; used if the same run goes on.

    Raises:
        ConfigError: for an id that no message can carry.
    """

    def __init__(
        self,
        platform: str,
        dataset_for: DatasetFor,
        sealer_for: SealerFor,
        *,
        keep: Callable[[Received], None] = lambda received: None,
        note: Callable[[int, int, str], None] = lambda number, rounds, text: None,
        warn: Callable[[str], None] = lambda text: None,
        new_run: bool = False,
        earlier: Received | None = None,
    ) -> None:
        if not re.fullmatch(wire.PLATFORM_ID, platform):
            raise ConfigError(f"platform id {platform!r} must match {wire.PLATFORM_ID}; rename it")
        self._platform, self._dataset_for = platform, dataset_for
        self._sealer_for, self._new_run = sealer_for, new_run
        self._keep, self._note, self._warn, self._earlier = keep, note, warn, earlier
        self.state: State = Stranger()

    def __call__(self, payload: bytes | memoryview) -> Pieces:
        """Answer one frame.

        Raises:
            ConfigError: for a plan that this platform can't follow; its operator must know.
            DataError: for data that the plan can't be followed with.
        """
        try:
            return wire.encode_pieces(self._answer(wire.decode(payload)))
        except wire.OtherVersionError:
            code = wire.FailureCode.OTHER_VERSION
        except WireError:
            code = wire.FailureCode.MALFORMED
        except _RefusedError as refused:
            code = refused.code
        except SecureSumError as error:
            # By name to our operator, as a code to the other side.
            self._warn(f"this platform leaves the sum ({type(error).__name__}): {error}")
            # One code for all: which one it is could tell about the data.
            code = wire.FailureCode.LEFT_THE_SUM
        return wire.encode_pieces(wire.Failure(code=code))

    def _answer(self, message: wire.Message) -> wire.Reply:
        match message:
            case wire.Hello():
                return wire.HelloReply(
                    platform=self._platform,
                    protocol_version=wire.PROTOCOL_VERSION,
                    software_version=__version__,
                )
            case wire.Welcome():
                return self._welcome(message)
            case wire.TrainRequest():
                return self._train(message)
            case wire.EvaluateRequest():
                return self._evaluate(message)
            case wire.Finish():
                return self._finish(message)
            case wire.Secure():
                return wire.Secure(frame=self._welcomed().sealer.answer(message.frame))
            case wire.Refuse():
                return wire.Ack()
            case _:
                raise _RefusedError(wire.FailureCode.UNEXPECTED)

    def _welcome(self, message: wire.Welcome) -> wire.WelcomeReply:
        """Accept a plan, at any time: a coordinator that restarts welcomes everybody again."""
        plan = Plan.from_json(message.plan)
        check_rounds(plan.federation)
        before, sealer = self.state, self._sealer_for(plan)
        if isinstance(before, Member) and _same_inputs(before.plan, plan):
            self.state = replace(before, plan=plan, sealer=sealer, received=None)
        else:
            dataset = self._dataset_for(plan.model)
            check = Validation.of(dataset, plan.training)
            layout = Layout(plan.model)
            self.state = Member(
                plan=plan,
                layout=layout,
                dataset=dataset,
                check=check,
                sealer=sealer,
                received=None,
            )
        if not isinstance(before, Stranger) and before.received is not None:
            self._earlier = before.received
        return wire.WelcomeReply(
            dimension=self.state.layout.size,
            training_metrics=TRAINING_METRICS,
            evaluation_metrics=EVALUATION_METRICS,
        )

    def _train(self, message: wire.TrainRequest) -> wire.SumReply:
        """Take part in one round.

        1. Keep the vector received: a platform that is stopped now loses nothing.
        2. In the first and the last round, measure the own statistics: as of the validation weeks,
           or, for serving, of all that is known before the test weeks. Their difference to the
           received ones is the update; the trained part of it is zero.
        3. In the rounds between, unpack the network and the cohort's statistics and train for the
           plan's epochs with a fresh optimiser, on randomness that seed, round and platform name.
           The difference of the trained parts is the update; its statistics part is zero.
        4. The weight is the number of users before the validation weeks, up to the plan's most.
           The update is scaled down to the plan's bounds. Update, weight and metrics leave as one
           sealed vector.
        """
        member = self._member(message.run)
        rounds = member.plan.federation.rounds
        if message.rounds != rounds:
            raise _RefusedError(wire.FailureCode.UNEXPECTED)
        self._check_ticket(member, message, Kind.TRAIN)
        member = self._take(member, message.run, message.round - 1, message.parameters)
        if is_statistics_round(message.round, rounds):
            update, loss = self._measured(member, message), 0.0
            self._note(message.round, rounds, "measured statistics")
        else:
            started = time.monotonic()
            update, loss = self._trained(member, message)
            seconds = time.monotonic() - started
            self._note(message.round, rounds, f"trained, loss {loss:.4f}, {seconds:.2f} s")
        limits = member.plan.aggregation
        factor = clip_update(update, norm=limits.clip_norm, bound=limits.bound)
        if factor < 1.0:
            self._warn(
                f"round {message.round}: the update was scaled by {factor:.3g} to the bounds"
            )
        return self._sealed(member, message, Kind.TRAIN, update, loss)

    def _measured(self, member: Member, message: wire.TrainRequest) -> Vector:
        """Step 2: the update float32 [d] of a statistics round."""
        split = member.dataset.split
        day = split.validation if message.round == 1 else split.test
        width = member.plan.model.sketch_width
        own = measure(member.dataset.index, member.dataset.items, day, width)
        update = np.zeros_like(message.parameters)
        before = message.parameters[member.layout.trained :]
        update[member.layout.trained :] = member.layout.tail(own) - before
        return update

    def _trained(self, member: Member, message: wire.TrainRequest) -> tuple[Vector, float]:
        """Step 3: the update float32 [d] of a training round, and its mean loss."""
        plan, dataset = member.plan, member.dataset
        network, statistics = member.layout.unpack(message.parameters, dataset.device)
        popularity = shared_log_popularity(statistics, dataset.items)
        stream = ExperimentRandomness(plan.seed, "round", message.round, "platform", self._platform)
        optimizer, loss = optimizer_for(network, plan.training), 0.0
        for epoch in range(1, plan.training.epochs + 1):
            part = stream.child("epoch", epoch)
            one = steps(dataset.training, plan, statistics, popularity, part)
            loss = train_steps(network, optimizer, one, plan)
        update = member.layout.pack(network, statistics) - message.parameters
        update[member.layout.trained :] = 0.0
        return update, loss

    def _evaluate(self, message: wire.EvaluateRequest) -> wire.SumReply:
        """Score the validation users with the shared model alone."""
        member = self._member(message.run)
        self._check_ticket(member, message, Kind.EVALUATE)
        network, statistics = member.layout.unpack(
            self._checked(member, message.parameters), member.dataset.device
        )
        known = member.received.validation if member.received else None
        if message.round == member.plan.federation.rounds and known is not None:
            # The last round's statistics have seen the validation weeks.
            statistics = known
        shared = SharedModel(network=network, statistics=statistics)
        nothing = np.zeros(0, dtype=np.float32)
        return self._sealed(member, message, Kind.EVALUATE, nothing, member.check.ndcg(shared))

    def _finish(self, message: wire.Finish) -> wire.Ack:
        """Keep the final model; what is private is trained after the coordinator has its answer."""
        member = self._member(message.run)
        member = self._take(member, message.run, message.round, message.parameters, finished=True)
        if member.received is not None:
            self.state = Finished(received=member.received)
        return wire.Ack()

    def _sealed(
        self,
        member: Member,
        message: wire.TrainRequest | wire.EvaluateRequest,
        kind: Kind,
        update: Vector,
        metric: float,
    ) -> wire.SumReply:
        """Seal update float32 [d], weight and metric into this platform's part of the sum."""
        users = len(active_users(member.dataset.index, member.dataset.split.validation))
        weight = min(float(users), member.plan.aggregation.max_weight)
        # Never a refusal: whether a loss is beyond a bound would tell about the data.
        names = TRAINING_METRICS if kind is Kind.TRAIN else EVALUATION_METRICS
        (most,) = metric_bounds(names)
        inside = most if math.isnan(metric) else min(max(metric, -most), most)
        body = member.sealer.seal(
            message.ticket,
            Contribution(update=update, weight=weight, metrics=(inside,)),
            run=message.run,
            kind=kind,
            number=message.round,
            subject=subject_of(kind, message.run, message.round, message.parameters),
        )
        return wire.SumReply(run=message.run, round=message.round, body=body)

    def _check_ticket(
        self, member: Member, message: wire.TrainRequest | wire.EvaluateRequest, kind: Kind
    ) -> None:
        """Refuse a sum before any work is done for it."""
        dimension = member.layout.size if kind is Kind.TRAIN else 0
        member.sealer.check(
            message.ticket, dimension, run=message.run, kind=kind, number=message.round
        )

    def _welcomed(self) -> Member:
        if not isinstance(self.state, Member):
            raise _RefusedError(wire.FailureCode.UNEXPECTED)
        return self.state

    def _member(self, run: bytes) -> Member:
        """The state of a welcomed platform, for a request of its own run."""
        member = self._welcomed()
        if member.received is not None:
            if member.received.run != run:
                raise _RefusedError(wire.FailureCode.UNEXPECTED)
        elif self._earlier is not None and not self._new_run:
            check_same_run(self._earlier, run, member.plan)
        return member

    def _take(
        self, member: Member, run: bytes, number: int, vector: Vector, *, finished: bool = False
    ) -> Member:
        """Keep the shared vector as of the end of round `number`."""
        vector = self._checked(member, vector)
        validation = self._validation_statistics(member, run)
        if validation is None and 1 <= number < member.plan.federation.rounds:
            # Every vector between the two statistics rounds carries those of the first.
            validation = member.layout.unpack(vector, member.dataset.device)[1]
        received = Received(
            plan=member.plan,
            run=run,
            round=number,
            vector=vector,
            validation=validation,
            finished=finished,
        )
        self._keep(received)
        self.state = replace(member, received=received)
        return self.state

    def _validation_statistics(self, member: Member, run: bytes) -> Statistics | None:
        if member.received is not None:
            return member.received.validation
        earlier = self._earlier
        if earlier is None or earlier.run != run or earlier.plan.model != member.plan.model:
            return None
        return earlier.validation

    def _checked(self, member: Member, vector: Vector) -> Vector:
        if len(vector) != member.layout.size:
            raise _RefusedError(wire.FailureCode.UNEXPECTED)
        return vector


def _same_inputs(one: Plan, other: Plan) -> bool:
    return (one.model, one.training) == (other.model, other.training)

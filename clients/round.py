"""The platform's side of a round: request bytes in, reply bytes out. No transport, no files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from clients.dataset import Dataset
from clients.guard import Guard
from clients.membership import Finished, Member, Received, State, Stranger, check_same_run
from clients.scoring import SharedModel
from clients.sealing import SealerFor, metric_names
from clients.updates import plain_update, private_update
from clients.validation import Validation
from crossrec_model import __version__
from crossrec_model.config import ModelConfig, Plan
from crossrec_model.errors import ConfigError, WireError
from crossrec_model.parameters import Layout, Vector
from crossrec_model.privacy.clipping import clip_update
from crossrec_model.privacy.ledger import BudgetExceededError
from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.sums import subject_of
from crossrec_model.statistics import Statistics, active_users
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.contribution import Contribution, metric_bounds

#: A private run's model holds no larger number.
LARGEST_PARAMETER: Final = 1e4

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
        guard: decides on plans and charges private rounds.
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
        guard: Guard,
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
        self._guard = guard
        self._released: tuple[bytes, Vector] | None = None
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
        except BudgetExceededError as error:
            self._warn(f"this platform leaves the round: {error}")
            code = wire.FailureCode.BUDGET_SPENT
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
        plan.check_rounds()
        earlier = self._going_on(plan)
        self._guard.accept(plan, None if earlier is None else earlier.run)
        # Both of the roster that is pinned now: it may change before the next welcome.
        before, sealer, honest = self.state, self._sealer_for(plan), self._guard.honest(plan)
        if isinstance(before, Member) and _same_inputs(before.plan, plan):
            self.state = replace(before, plan=plan, sealer=sealer, honest=honest, received=None)
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
                honest=honest,
                received=None,
            )
        if not isinstance(before, Stranger) and before.received is not None:
            self._earlier = before.received
        return wire.WelcomeReply(
            dimension=self.state.layout.size,
            training_metrics=metric_names(plan, Kind.TRAIN),
            evaluation_metrics=metric_names(plan, Kind.EVALUATE),
        )

    def _going_on(self, plan: Plan) -> Received | None:
        """What was received of a run that is not finished, or whose end was not confirmed."""
        if isinstance(self.state, Finished):
            return self.state.received if self.state.received.plan == plan else None
        known = self.state.received if isinstance(self.state, Member) else None
        known = known or self._earlier
        return None if known is None or known.finished else known

    def _train(self, message: wire.TrainRequest) -> wire.SumReply:
        """Take part in one round.

        1. Keep the vector received: a platform that is stopped now loses nothing.
        2. A private round is charged to the ledger, durably, before anything is computed; then its
           noised update is made (`private_update`). Asked again for the very same round, an update
           with local noise leaves again as it was: that tells nothing new and costs nothing.
        3. Without privacy, statistics are measured or the network is trained (`plain_update`). The
           weight is the number of users before the validation weeks, up to the plan's most.
        4. The update is scaled down to the plan's bounds. Update, weight and metrics leave as one
           sealed vector.
        """
        member = self._member(message.run)
        plan = member.plan
        if message.rounds != plan.federation.rounds:
            raise _RefusedError(wire.FailureCode.UNEXPECTED)
        self._check_ticket(member, message, Kind.TRAIN)
        member = self._take(member, message.run, message.round - 1, message.parameters)
        loss = 0.0
        if plan.privacy.on:
            update = self._private(member, message)
        else:
            update, loss, done = plain_update(
                member, self._platform, message.round, message.parameters
            )
            self._note(message.round, message.rounds, done)
        limits = plan.aggregation
        if (
            plan.privacy.noise != "distributed"
        ):  # that lies within the grid, and scaled it would not
            factor = clip_update(update, norm=limits.clip_norm, bound=limits.bound)
            if factor < 1.0:
                self._warn(
                    f"round {message.round}: the update was scaled by {factor:.3g} to the bounds"
                )
        return self._sealed(member, message, Kind.TRAIN, update, loss)

    def _private(self, member: Member, message: wire.TrainRequest) -> Vector:
        """Step 2: the noised update float32 [d]."""
        asked = subject_of(Kind.TRAIN, message.run, message.round, message.parameters)
        if self._released is not None and self._released[0] == asked:
            self._note(message.round, message.rounds, "sent the same noised update again")
            return self._released[1].copy()
        self._released = None
        if not (np.abs(message.parameters) <= LARGEST_PARAMETER).all():
            # Sums in float32 could then differ by more than the clip for one user. All of it is public.
            raise _RefusedError(wire.FailureCode.UNEXPECTED)
        self._guard.charge(member.plan, message.run, message.round, member.honest)
        update, done = private_update(member, message.round, message.parameters, member.honest)
        if member.plan.privacy.noise == "local":
            # Not with distributed noise: two cohorts' sums of the same shares could be subtracted.
            # Whoever seals it may overwrite it.
            self._released = asked, update.copy()
        self._note(message.round, message.rounds, done)
        return update

    def _evaluate(self, message: wire.EvaluateRequest) -> wire.SumReply:
        """Score the validation users with the shared model alone; never in a private run."""
        member = self._member(message.run)
        if member.plan.privacy.on:
            raise _RefusedError(wire.FailureCode.UNEXPECTED)
        self._check_ticket(member, message, Kind.EVALUATE)
        network, statistics = member.layout.unpack(
            self._checked(member, message.parameters), member.dataset.device
        )
        known = member.received.validation if member.received else None
        if message.round > member.plan.validation_rounds()[-1] and known is not None:
            # The last statistics have seen the validation weeks.
            statistics = known
        shared = SharedModel(plan=member.plan, network=network, statistics=statistics)
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
        names, most = metric_names(member.plan, kind), member.plan.aggregation.max_weight
        weight = most
        pairs = kind is Kind.TRAIN and member.plan.work_of(message.round) == "pairs"
        if not (member.plan.privacy.on or pairs):
            users = len(active_users(member.dataset.index, member.dataset.split.validation))
            weight = min(float(users), most)
        metrics = tuple(
            # Never a refusal: whether a loss is beyond a bound would tell about the data.
            bound if math.isnan(metric) else min(max(metric, -bound), bound)
            for bound in metric_bounds(names)
        )
        body = member.sealer.seal(
            message.ticket,
            Contribution(update=update, weight=weight, metrics=metrics),
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
        if validation is None and number in member.plan.validation_rounds():
            # Every vector between the statistics rounds carries those of the first.
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

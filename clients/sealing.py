"""What seals a platform's part of a sum before it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.agreement import Terms
from crossrec_model.secagg.grid import Grid
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.participant import Participant, RecordOpening
from crossrec_model.secagg.roster import COLLUDING_SHARE, Roster
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.contribution import Contribution

TRAINING_METRICS: Final = ("loss",)
EVALUATION_METRICS: Final = ("ndcg@10",)


def metric_names(plan: Plan, kind: Kind) -> tuple[str, ...]:
    """What a contribution says beside the update: nothing in a private run, it is not paid for."""
    if plan.privacy.on:
        return ()
    return TRAINING_METRICS if kind is Kind.TRAIN else EVALUATION_METRICS


class Sealer(Protocol):
    """Seals contributions to sums, and takes part in whatever messages that needs."""

    def answer(self, frame: bytes) -> bytes:
        """Answer a frame of the aggregation's own protocol; raises SecureSumError to leave it."""

    def check(self, ticket: bytes, dimension: int, *, run: bytes, kind: Kind, number: int) -> None:
        """Raise SecureSumError if a contribution to this sum would not be sealed."""

    def seal(
        self,
        ticket: bytes,
        contribution: Contribution,
        *,
        run: bytes,
        kind: Kind,
        number: int,
        subject: bytes,
    ) -> Pieces:
        """Return the contribution as the sum of this ticket wants it.

        `subject` is `secagg.sums.subject_of` the request.

        Raises:
            SecureSumError: if it must not or can't be sent.
        """


#: Makes what seals for a plan, or raises SecureSumError if the platform may not take part.
SealerFor = Callable[[Plan], Sealer]


def secure_sealer(
    platform: str,
    identity: IdentityKey,
    roster: Roster,
    record: RecordOpening,
    *,
    least_share: float = COLLUDING_SHARE,
) -> SealerFor:
    """Return what makes a platform's side of the secure sum for a plan.

    It raises ConfigError for a plan that withstands fewer colluding platforms than `least_share` of
    the roster's, or whose grid is too fine for the roster.
    """

    def make(plan: Plan) -> Sealer:
        limits = plan.aggregation
        # Not the thresholds: with equal ones, fewer platforms' noise would count for enough.
        if roster.colluding(limits.colluding_share) < roster.colluding(least_share):
            raise ConfigError(
                f"the plan's aggregation.colluding_share = {limits.colluding_share:.3g} is below "
                f"{least_share:.3g}, which this platform asks for; ask the coordinator's operator "
                "for another plan, or accept it with --colluding-share"
            )
        Grid.of(limits, ()).bits(len(roster.members))
        return Participant(
            platform=platform,
            identity=identity,
            terms=Terms.of(roster, plan),
            grids={
                kind: Grid.of(limits, metric_names(plan, kind))
                for kind in (Kind.TRAIN, Kind.EVALUATE)
            },
            randomness=SystemRandomness(),
            record=record,
        )

    return make

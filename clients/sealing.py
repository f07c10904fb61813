"""What seals a platform's part of a sum before it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from crossrec_model.config import Plan
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.agreement import Terms, plan_digest
from crossrec_model.secagg.errors import RosterError
from crossrec_model.secagg.grid import Grid
from crossrec_model.secagg.identity import IdentityKey, PublicIdentity
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.participant import Participant, RecordOpening
from crossrec_model.secagg.roster import Roster
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.contribution import Contribution

TRAINING_METRICS: Final = ("loss",)
EVALUATION_METRICS: Final = ("ndcg@10",)


class Sealer(Protocol):
    """Seals contributions to sums, and takes part in whatever messages that needs."""

    def answer(self, frame: bytes) -> bytes:
        """Answer a frame of the aggregation's own protocol; raises SecureSumError to leave it."""

    def seal(
        self, ticket: bytes, contribution: Contribution, *, run: bytes, kind: Kind, number: int
    ) -> Pieces:
        """Return the contribution as the sum of this ticket wants it.

        Raises:
            SecureSumError: if it must not or can't be sent.
        """


#: Makes what seals for a plan, or raises SecureSumError if the platform may not take part.
SealerFor = Callable[[Plan], Sealer]


def secure_sealer(
    platform: str, identity: IdentityKey, roster: Roster, record: RecordOpening
) -> SealerFor:
    """Return what makes a platform's side of the secure sum for a plan."""

    def make(plan: Plan) -> Sealer:
        limits = plan.aggregation
        return Participant(
            platform=platform,
            identity=identity,
            terms=Terms(
                roster=roster,
                plan=plan_digest(plan.to_json()),
                colluding_share=limits.colluding_share,
            ),
            grids={
                Kind.TRAIN: Grid.of(limits, TRAINING_METRICS),
                Kind.EVALUATE: Grid.of(limits, EVALUATION_METRICS),
            },
            randomness=SystemRandomness(),
            record=record,
        )

    return make


def check_member(roster: Roster, platform: str, public: PublicIdentity) -> None:
    """Raise RosterError unless the roster holds this platform with this key."""
    if roster.public(platform) != public:
        raise RosterError(
            f"the roster has another key for platform {platform}; send this platform's card to the "
            "coordinator's operator again"
        )

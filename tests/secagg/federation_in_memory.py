"""Platforms and a coordinator of the secure sum over plain calls, with contributions known exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import pytest

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Terms, plan_digest
from crossrec_model.secagg.coordinator import Collecting, Unmasking
from crossrec_model.secagg.errors import (
    OldRoundError,
    OtherListError,
    OutOfTurnError,
    SecureSumError,
)
from crossrec_model.secagg.gathering import Agreement, Delivering, Inviting, Listing
from crossrec_model.secagg.grid import Grid
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.masking import Numbers
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.participant import Idle, Participant, RecordOpening
from crossrec_model.secagg.roster import Roster
from crossrec_model.wire.contribution import Contribution

SYSTEM: Final = SystemRandomness()
RUN: Final = bytes(range(16))
PLAN: Final = plan_digest(b"{}")
#: The digest of the request that every part answers.
SUBJECT: Final = bytes(range(160, 192))
#: Coordinates of a part: see `exact_part`.
DIMENSION: Final = 24
#: Steps of the coarsest grid on which parts are exact; every multiple of it will do.
LEVELS: Final = 1 << 12
#: Levels whose sums over 3 to 7 platforms need 16, 24 and 32 bits.
LEVELS_OF_WIDTH: Final = {16: LEVELS, 24: 1 << 20, 32: 1 << 24}
_ONE_HOT: Final = 12
_MAX_WEIGHT: Final = 16
M = TypeVar("M", bound=frames.Message)


def grid_of(levels: int = LEVELS) -> Grid:
    """The grid for parts of `exact_part`."""
    return Grid(levels=levels, bound=1.0, max_weight=float(_MAX_WEIGHT), metric_bounds=(64.0,))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a platform adds, and its integers, worked out without the grid."""

    values: tuple[int, ...]
    weight: int
    metric: int
    levels: int

    @property
    def contribution(self) -> Contribution:
        """A fresh contribution: the update in units of 1 / 256, the metric in units of 1 / 4."""
        update = np.array(self.values, dtype=np.float32) / np.float32(256)
        return Contribution(update=update, weight=float(self.weight), metrics=(self.metric / 4,))

    @property
    def integers(self) -> tuple[int, ...]:
        """The vector that is summed: every entry is a whole number of steps, so nothing is rounded."""
        unit = self.weight * (self.levels // LEVELS)
        return tuple(unit * number for number in (*self.values, 256, self.metric))


def exact_part(
    position: int, seed: int, *, levels: int = LEVELS, dimension: int = DIMENSION
) -> Part:
    """Make the part of the platform at a position from 0 to 11.

    The first 12 coordinates name the platform (256 in its own one, 0 in the others), so that each
    platform's place in a sum can be read off; the others are random.
    """
    source = random.Random(f"{position}/{seed}")
    own = [256 * (at == position) for at in range(_ONE_HOT)]
    drawn = [source.randint(-256, 256) for _ in range(dimension - _ONE_HOT)]
    return Part(
        values=(*own, *drawn),
        weight=1 << source.randint(0, 4),
        metric=source.randint(0, 256),
        levels=levels,
    )


def plain_sum(parts: Iterable[Part], bits: int) -> list[int]:
    """The sum of the parts' integers modulo 2^bits."""
    columns = zip(*(part.integers for part in parts), strict=True)
    return [sum(column) % (1 << bits) for column in columns]


def modulo(total: Numbers, bits: int) -> list[int]:
    """The numbers of a total, without the bits above the modulus."""
    return [int(number) % (1 << bits) for number in total]


class Openings:
    """What one platform has opened; it outlives restarts, as the real record on disk does."""

    def __init__(self) -> None:
        self.latest: dict[tuple[bytes, int], tuple[int, tuple[str, ...]]] = {}

    def __call__(self, run: bytes, kind: int, round: int, survivors: tuple[str, ...]) -> None:
        """Record an opening; see `participant.RecordOpening`."""
        before, names = self.latest.get((run, kind), (0, ()))
        if round < before:
            raise OldRoundError(f"round {before} was opened")
        if round == before and names != survivors:
            raise OtherListError(f"round {round} was opened over others")
        self.latest[run, kind] = (round, survivors)


class GivenFirst:
    """Randomness whose first draw is given, which is a platform's seed of a key agreement."""

    def __init__(self, first: bytes) -> None:
        self._first: bytes | None = first

    def bytes(self, count: int) -> bytes:
        """The given bytes, then those of the operating system."""
        given, self._first = self._first, None
        if given is None:
            return SYSTEM.bytes(count)
        assert len(given) == count
        return given


class Federation:
    """N platforms with fresh identities, and the coordinator's steps with those that are named."""

    def __init__(
        self,
        count: int = 5,
        *,
        levels: int = LEVELS,
        share: float = 1 / 3,
        terms: Callable[[Roster], Terms] | None = None,
        records: Mapping[str, RecordOpening] | None = None,
        identities: Mapping[str, IdentityKey] | None = None,
        signer: IdentityKey | None = None,
    ) -> None:
        self.names = tuple(f"p{number:02}" for number in range(1, count + 1))
        self.identities = dict(
            identities or {name: IdentityKey.generate(SYSTEM) for name in self.names}
        )
        self.roster = Roster(
            federation="test",
            version=1,
            members=tuple(Member(name, self.identities[name].public) for name in self.names),
            signer=(signer or IdentityKey.generate(SYSTEM)).public,
        )
        self.terms = (
            terms(self.roster)
            if terms
            else Terms(roster=self.roster, plan=PLAN, colluding_share=share)
        )
        self.grid = grid_of(levels)
        self.records = dict(records or {name: Openings() for name in self.names})
        self.platforms = {name: self.made(name) for name in self.names}

    def made(self, name: str, randomness: SystemRandomness = SYSTEM) -> Participant:
        """A platform's side, as a process that has just started has it."""
        return Participant(
            platform=name,
            identity=self.identities[name],
            terms=self.terms,
            grids=dict.fromkeys(Kind, self.grid),
            randomness=randomness,
            record=self.records[name],
        )

    def restart(self, name: str) -> None:
        """Let a platform's process end and start anew."""
        self.platforms[name] = self.made(name)

    def ask(self, name: str, message: frames.Message, kind: type[M]) -> M:
        """Send a message to a platform and return its answer of one kind, through the codec."""
        return frames.decode_as(kind, self.platforms[name].answer(frames.encode(message)))

    def invite(self, *, slots: int = 3, run: bytes = RUN) -> frames.Invite:
        """An invitation to a new key agreement."""
        return frames.Invite(
            run=run,
            epoch=SYSTEM.bytes(16),
            slots=slots,
            roster=self.roster.digest,
            plan=self.terms.plan,
        )

    def listing(
        self,
        members: Iterable[str] | None = None,
        *,
        slots: int = 3,
        invite: frames.Invite | None = None,
    ) -> Listing:
        """Step 1 with these members, or all platforms."""
        inviting = Inviting(terms=self.terms, invite=invite or self.invite(slots=slots))
        members = self.names if members is None else members
        return inviting.close(
            {name: self.ask(name, inviting.invite, frames.Keys) for name in members}
        )

    def delivering(self, listing: Listing) -> Delivering:
        """Step 2 with all members."""
        return listing.close(
            {name: self.ask(name, listing.message, frames.Shares) for name in listing.members}
        )

    def agree(
        self,
        members: Iterable[str] | None = None,
        *,
        slots: int = 3,
        invite: frames.Invite | None = None,
    ) -> Agreement:
        """Steps 1 to 3 with these members, or all platforms."""
        delivering = self.delivering(self.listing(members, slots=slots, invite=invite))
        return delivering.close(
            {
                name: self.ask(name, delivery, frames.Ready)
                for name, delivery in delivering.messages().items()
            }
        )

    def ticket(
        self,
        agreement: Agreement,
        slot: int = 0,
        *,
        kind: Kind = Kind.TRAIN,
        number: int = 1,
        dimension: int = DIMENSION,
    ) -> frames.Ticket:
        """The ticket of a sum, as the plan gives it."""
        return frames.Ticket(
            epoch=agreement.invite.epoch,
            slot=slot,
            kind=kind,
            round=number,
            bits=self.grid.bits(len(agreement.members)),
            levels=self.grid.levels,
            length=self.grid.length(dimension),
        )

    def part(self, name: str, seed: int = 0, *, dimension: int = DIMENSION) -> Part:
        """A platform's part; another seed gives another one."""
        position = self.names.index(name)
        return exact_part(position, seed, levels=self.grid.levels, dimension=dimension)

    def seal(self, name: str, ticket: frames.Ticket, part: Part, *, run: bytes = RUN) -> bytes:
        """Let a platform seal a part for the kind and round that the ticket names."""
        pieces = self.platforms[name].seal(
            frames.encode(ticket),
            part.contribution,
            run=run,
            kind=ticket.kind,
            number=ticket.round,
            subject=SUBJECT,
        )
        return b"".join(pieces)

    def collect(
        self, agreement: Agreement, ticket: frames.Ticket, parts: Mapping[str, Part]
    ) -> Unmasking:
        """Step 4 with the platforms whose parts are given."""
        collecting = Collecting(agreement=agreement, ticket=ticket, subject=SUBJECT)
        for name, part in parts.items():
            collecting.add(name, self.seal(name, ticket, part))
        return collecting.close()

    def open(self, unmasking: Unmasking, asked: Iterable[str] | None = None) -> list[int]:
        """Step 5 with these survivors, or all; return the sum modulo 2^bits."""
        for name in unmasking.survivors if asked is None else asked:
            unmasking.add(name, self.ask(name, unmasking.message, frames.Reveal))
        return modulo(unmasking.open(), unmasking.ticket.bits)


def refuses(
    federation: Federation,
    name: str,
    message: frames.Message,
    error: type[SecureSumError],
    match: str,
) -> None:
    """The platform answers with exactly this error, and with nothing to anything that was agreed."""
    platform = federation.platforms[name]
    record = federation.records[name]
    before = dict(record.latest) if isinstance(record, Openings) else None
    with pytest.raises(error, match=match) as caught:
        platform.answer(frames.encode(message))
    assert caught.type is error
    assert "\n" not in str(caught.value)
    if isinstance(record, Openings):
        assert record.latest == before
    is_left(federation, name, getattr(message, "epoch", bytes(16)))


def is_left(federation: Federation, name: str, epoch: bytes) -> None:
    """The platform has no keys any more: no list, delivery, ticket or question gets an answer."""
    platform = federation.platforms[name]
    assert isinstance(platform.state, Idle)
    everybody: Any = {"survivors": federation.names, "dropped": ()}
    for later in (
        frames.KeyList(epoch=epoch, keys=()),
        frames.Delivery(epoch=epoch, bundles=()),
        frames.Unmask(epoch=epoch, slot=0, **everybody),
    ):
        with pytest.raises(OutOfTurnError):
            platform.answer(frames.encode(later))
    ticket = frames.Ticket(
        epoch=epoch, slot=2, kind=Kind.TRAIN, round=9, bits=16, levels=4096, length=26
    )
    with pytest.raises(OutOfTurnError, match="before keys were agreed"):
        federation.seal(name, ticket, federation.part(name))

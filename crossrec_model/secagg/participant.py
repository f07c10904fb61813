"""Steps 4 and 5, seen from one platform, and the platform's whole side as one object.

    Agreed --seal--> Sealed --unmask--> Opened
              ^         |                  |
              +-- seal, with a later slot -+

A slot is used once: its masks never cover two vectors. A sum is opened for one list of survivors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from crossrec_model.errors import WireError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Agreed, Invited, Listed, Terms, exchange
from crossrec_model.secagg.errors import (
    OldSlotError,
    OtherListError,
    OutOfTurnError,
    ParametersError,
    SecureSumError,
    SurvivorsError,
)
from crossrec_model.secagg.grid import Grid
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.masking import Masker, Numbers, pack
from crossrec_model.secagg.sums import SumDomain
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.contribution import Contribution

#: Records durably that (run, kind, round) is opened for these survivors, or raises OldRoundError or
#: OtherListError if that was done for another list or a later round. Called before any share leaves.
RecordOpening = Callable[[bytes, int, int, tuple[str, ...]], None]
S = TypeVar("S")


@dataclass(frozen=True)
class Idle:
    """No keys: before a key agreement, and after one that was left with an error."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sealed:
    """After step 4: the masked vector has left."""

    agreed: Agreed
    ticket: frames.Ticket

    def unmask(self, message: frames.Unmask, record: RecordOpening) -> Opened:
        """Step 5: reveal shares that open the sum over the survivors, and nothing else.

        Raises:
            SurvivorsError: for lists that overlap, name strangers or leave members out, or a list
                of survivors without this platform.
            TooFewPlatformsError: for fewer survivors than the threshold.
            OldRoundError, OtherListError: if this round was opened for others, or left behind.
        """
        agreed, slot = self.agreed, self.ticket.slot
        if message.slot != slot:
            raise OldSlotError(
                f"slot {message.slot} can't be opened; the last vector was in {slot}"
            )
        check_lists(tuple(agreed.members), message)
        if agreed.platform not in message.survivors:
            raise SurvivorsError(
                "the coordinator calls this platform dropped, but it has sent its vector; "
                "shares for both can't be given"
            )
        if len(message.survivors) < agreed.terms.threshold:
            raise agreed.terms.too_few(len(message.survivors), "among the survivors")
        record(agreed.invite.run, self.ticket.kind, self.ticket.round, message.survivors)
        reveal = frames.Reveal(
            epoch=agreed.invite.epoch,
            slot=slot,
            seeds=b"".join(agreed.seed_share(name, slot) for name in message.survivors),
            keys=b"".join(agreed.key_share(name, slot) for name in message.dropped),
        )
        return Opened(agreed=agreed, ticket=self.ticket, asked=message, reveal=reveal)


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """After step 5."""

    agreed: Agreed
    ticket: frames.Ticket
    asked: frames.Unmask
    reveal: frames.Reveal = field(repr=False)

    def again(self, message: frames.Unmask) -> frames.Reveal:
        """Answer the same question once more; raises OtherListError for any other."""
        if message != self.asked:
            raise OtherListError("a second, different list of survivors came for the same sum")
        return self.reveal


State = Idle | Invited | Listed | Agreed | Sealed | Opened


def check_lists(members: tuple[str, ...], message: frames.Unmask) -> None:
    """Raise SurvivorsError unless the two lists are sorted, disjoint and make up the members."""
    for one in (message.survivors, message.dropped):
        if list(one) != sorted(set(one)):
            raise SurvivorsError("a list of survivors or dropped platforms is not strictly sorted")
    if both := set(message.survivors) & set(message.dropped):
        raise SurvivorsError(f"platform {min(both)} is both a survivor and dropped")
    if set(message.survivors) | set(message.dropped) != set(members):
        raise SurvivorsError("survivors and dropped platforms together are not the members")


class Participant:
    """One platform's side of the protocol: frames in, frames out; it holds the present state.

    A refusal is raised by name and ends the key agreement on this side: the keys are forgotten and
    only a new invitation starts again.

    Args:
        platform, identity: who this is; both must stand in the roster.
        terms: the roster, the digest of the plan that was accepted, and who may collude.
        grids: how contributions to each kind of sum become integers; part of the plan.
        record: see `RecordOpening`.

    Raises:
        RosterError: if the roster holds another key for this platform, or none.
    """

    def __init__(
        self,
        *,
        platform: str,
        identity: IdentityKey,
        terms: Terms,
        grids: Mapping[frames.Kind, Grid],
        randomness: SystemRandomness,
        record: RecordOpening,
    ) -> None:
        terms.roster.check_member(platform, identity.public)
        self._platform, self._identity, self._terms = platform, identity, terms
        self._grids, self._randomness, self._record = grids, randomness, record
        self._seen: set[bytes] = set()
        self.state: State = Idle()

    def answer(self, frame: bytes) -> bytes:
        """Answer a frame of step 1, 2, 3 or 5.

        Raises:
            SecureSumError: by name; see the steps.
            WireError: for bytes that are no frame. The state stays as it was.
        """
        message = frames.decode(frame)
        try:
            match message:
                case frames.Invite():
                    return self._invite(message)
                case frames.KeyList():
                    state = self._due(Invited, message.epoch)
                    self.state, shares = state.share(message, self._randomness)
                    return frames.encode(shares)
                case frames.Delivery():
                    self.state = self._due(Listed, message.epoch).deliver(message)
                    ready = frames.Ready(epoch=message.epoch, transcript=self.state.transcript)
                    return frames.encode(ready)
                case frames.Unmask():
                    return self._unmask(message)
                case _:
                    raise OutOfTurnError(f"{type(message).__name__} is not for a platform")
        except SecureSumError:
            self.state = Idle()
            raise

    def check(
        self, ticket: bytes, dimension: int, *, run: bytes, kind: frames.Kind, number: int
    ) -> None:
        """Check a ticket before any work is done for it; raises as `seal`."""
        self._checked(ticket, dimension, run, kind, number)

    def seal(
        self,
        ticket: bytes,
        contribution: Contribution,
        *,
        run: bytes,
        kind: frames.Kind,
        number: int,
        subject: bytes,
    ) -> Pieces:
        """Step 4: return the frame of the masked vector; `contribution.update` becomes part of it.

        `subject` is `sums.subject_of` the request that is answered.

        Raises:
            NotFiniteError, ValueOutOfBoundsError: for a contribution that the grid can't hold.
            OldSlotError: for a slot that is not above all before it.
            ParametersError: for a ticket with another modulus, grid, length, kind or round.
            OutOfTurnError: without a finished key agreement.
            KeyListError: for a member's weak public key.
        """
        dimension = len(contribution.update)
        agreed, asked = self._checked(ticket, dimension, run, kind, number)
        try:
            masker = _masker(agreed, asked, subject)
            chunks = self._grids[kind].encode_into(
                contribution.update,
                contribution.weight,
                contribution.metrics,
                bits=asked.bits,
                randomness=self._randomness,
            )
        except SecureSumError:
            # What can't be sent must not be asked for again and again.
            self.state = Idle()
            raise
        # From here on the slot is spent, whatever happens.
        self.state = Sealed(agreed=agreed, ticket=asked)
        head = frames.Upload(
            epoch=asked.epoch, slot=asked.slot, bits=asked.bits, length=asked.length
        )
        masked = _masked(chunks, masker, asked.bits, contribution)
        return frames.encode(head), *masked

    def _invite(self, message: frames.Invite) -> bytes:
        if message.epoch in self._seen:
            raise OldSlotError("this key agreement was begun before; a new one is needed")
        self._seen.add(message.epoch)
        self.state = Invited.accept(
            self._terms, message, self._platform, self._identity, self._randomness
        )
        return frames.encode(self.state.own)

    def _unmask(self, message: frames.Unmask) -> bytes:
        if isinstance(self.state, Opened) and self.state.asked.epoch == message.epoch:
            return frames.encode(self.state.again(message))
        self.state = self._due(Sealed, message.epoch).unmask(message, self._record)
        return frames.encode(self.state.reveal)

    def _due(self, kind: type[S], epoch: bytes) -> S:
        """The present state, if it is of the kind that the message needs, and of its epoch."""
        if not isinstance(self.state, kind):
            raise OutOfTurnError(
                f"a message for the state {kind.__name__} came in {type(self.state).__name__}"
            )
        if _epoch_of(self.state) != epoch:
            raise OldSlotError("the message is of another key agreement")
        return self.state

    def _ready_for(self, asked: frames.Ticket, run: bytes) -> Agreed:
        state = self.state
        agreed = state.agreed if isinstance(state, Sealed | Opened) else state
        if not isinstance(agreed, Agreed):
            raise OutOfTurnError("a vector is asked for before keys were agreed")
        if (agreed.invite.epoch, agreed.invite.run) != (asked.epoch, run):
            raise OldSlotError("a vector is asked for under keys of another agreement or run")
        last = state.ticket.slot if isinstance(state, Sealed | Opened) else -1
        if not last < asked.slot < agreed.invite.slots:
            raise OldSlotError(
                f"slot {asked.slot} is asked for after {last} of {agreed.invite.slots}; "
                "each is used once, in rising order"
            )
        return agreed

    def _checked(
        self, ticket: bytes, dimension: int, run: bytes, kind: frames.Kind, number: int
    ) -> tuple[Agreed, frames.Ticket]:
        """The keys and the ticket of a sum that is due now, with the plan's own parameters."""
        try:
            asked = frames.decode_as(frames.Ticket, ticket)
            agreed = self._ready_for(asked, run)
            self._check_parameters(asked, dimension, len(agreed.members), kind, number)
        except WireError as error:
            self.state = Idle()
            raise ParametersError(f"the ticket of the sum is malformed: {error}") from None
        except SecureSumError:
            self.state = Idle()
            raise
        return agreed, asked

    def _check_parameters(
        self, asked: frames.Ticket, dimension: int, members: int, kind: frames.Kind, number: int
    ) -> None:
        grid = self._grids[kind]
        own = {
            "kind": kind,
            "round": number,
            "bits": grid.bits(members),
            "levels": grid.levels,
            "length": grid.length(dimension),
        }
        for name, value in own.items():
            if getattr(asked, name) != value:
                raise ParametersError(
                    f"{name} of the sum is {getattr(asked, name)}, the plan gives {value}; "
                    "nothing is sent"
                )


def _epoch_of(state: State) -> bytes | None:
    match state:
        case Invited() | Listed() | Agreed():
            return state.invite.epoch
        case Sealed() | Opened():
            return state.agreed.invite.epoch
        case Idle():
            return None


def _masker(agreed: Agreed, ticket: frames.Ticket, subject: bytes) -> Masker:
    """All masks of one platform in a sum: its own, and one with every other member."""
    run, slot, me = agreed.invite.run, ticket.slot, agreed.platform
    domain = SumDomain(run=run, transcript=agreed.transcript, ticket=ticket, subject=subject)
    private = agreed.secrets.pair(slot)
    add = [domain.self_key(agreed.secrets.mask(slot), me)]
    subtract: list[bytes] = []
    for name, keys in agreed.members.items():
        if name == me:
            continue
        key = domain.pair_key(exchange(private, keys.pair(slot), name), me, name)
        (add if me < name else subtract).append(key)
    return Masker(ticket.bits, add=add, subtract=subtract)


def _masked(
    chunks: Iterable[Numbers], masker: Masker, bits: int, contribution: Contribution
) -> Pieces:
    """Mask chunk by chunk; all but the last, small one is packed over the update's own memory."""
    own = contribution.update.view(np.uint8).data
    at, left, tail = 0, len(contribution.update), bytearray()
    for chunk in chunks:
        masker.apply(chunk)
        width = len(chunk) * bits // 8
        if left:
            pack(chunk, bits, own[at : at + width])
            at, left = at + width, left - len(chunk)
        else:
            tail = bytearray(width)
            pack(chunk, bits, memoryview(tail))
    return (own[:at], bytes(tail)) if at else (bytes(tail),)

"""Private set intersection by Diffie-Hellman on ristretto255, seen from one side; no I/O.

With secret scalars a and b, both fresh in every session, and H hashing to the group:

1. A signs a fresh key and offers a linkage; B answers with one of its own. All that follows is sealed.
2. Each announces how many elements it will send, padding included.
3. Each sends its elements, shuffled, as a·H(x) (B: b·H(y)), in blocks.
4. Each multiplies what it gets by its own scalar and sends it back in the same order.
5. Each now has a·b·H(x) for its own elements in an order it knows, and a·b·H(y) for the other's in an
   order it does not: what is in both sets is in both lists.

Both learn which of *their own* elements the other has, and the other's padded size; nothing about any
other element, under the decisional Diffie-Hellman assumption and with both following the protocol
(semi-honest). See Meadows 1986, Huberman et al. 1999; docs/linkage.md says what a cheat can do.

A state is a type; each has exactly the steps that may follow. A refused frame changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from crossrec_model.linkage.blinding import SEED_BYTES, Blinding, rows_of
from crossrec_model.linkage.blocks import check_number, opened_points
from crossrec_model.linkage.channel import Channel, OfferSecret, accept_offer, make_offer
from crossrec_model.linkage.compared import MARK_BYTES, Compared, compare_marks
from crossrec_model.linkage.errors import (
    MissingBlockError,
    ReplayedBlockError,
    TruncatedError,
    UnknownPlatformError,
)
from crossrec_model.linkage.group import Cores, Rows
from crossrec_model.linkage.messages import (
    BLOCK,
    Accept,
    Announcement,
    Offer,
    Sealed,
    Stream,
    decode_as,
    encode,
)
from crossrec_model.linkage.policy import Permit
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.roster import Roster

#: Own blocks under way at a time.
WINDOW: Final = 2
#: Makes a writable array uint8 [rows, 16] of a name: memory, or a file that outlives the process.
Storage = Callable[[str, int], Rows]


def in_memory(_name: str, rows: int) -> Rows:
    """Make an array in memory."""
    return np.zeros((rows, MARK_BYTES), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """What one platform brings: its pinned roster, its id and key."""

    roster: Roster
    platform: str
    key: IdentityKey

    def offer(
        self, digests: Rows, permit: Permit, randomness: SystemRandomness
    ) -> tuple[Offered, bytes]:
        """Step 1 of the initiator: the next state, and the offer for the permit's partner.

        Raises:
            UnknownPlatformError: for a partner that is not on the roster.
        """
        secret = make_offer(
            self.roster,
            self.platform,
            permit.partner,
            permit.purpose,
            self.key,
            randomness.bytes(SEED_BYTES),
        )
        seed = randomness.bytes(SEED_BYTES)
        return Offered(secret=secret, digests=digests, seed=seed, permit=permit), encode(
            secret.offer
        )

    def accept(
        self, frame: bytes, digests: Rows, permit: Permit, randomness: SystemRandomness
    ) -> tuple[Accepted, bytes]:
        """Step 1 of the responder: the next state, and the acceptance.

        Raises:
            LinkageError: HandshakeError or UnknownPlatformError.
            WireError: for anything but an offer.
        """
        offer = decode_as(Offer, frame)
        if (offer.initiator, offer.purpose) != (permit.partner, permit.purpose):
            raise UnknownPlatformError(
                f"an offer by {offer.initiator} for {offer.purpose.name.lower()} came where "
                f"{permit.partner} for {permit.purpose.name.lower()} was due"
            )
        channel, accept = accept_offer(
            self.roster, self.platform, offer, self.key, randomness.bytes(SEED_BYTES)
        )
        seed = randomness.bytes(SEED_BYTES)
        state = Accepted(channel=channel, digests=digests, seed=seed, permit=permit)
        return state, encode(accept)


@dataclass(frozen=True, kw_only=True, eq=False)
class Offered:
    """The initiator waits for the acceptance."""

    secret: OfferSecret
    digests: Rows
    seed: bytes
    permit: Permit

    def __repr__(self) -> str:
        return f"Offered(to {self.permit.partner})"

    def accepted(self, frame: bytes) -> tuple[Opening, bytes]:
        """Step 2 of the initiator: use up the permit, announce the size.

        Raises:
            HandshakeError: if it is not the partner's acceptance of this offer.
            WireError: for anything but an acceptance.
        """
        channel = self.secret.opened(decode_as(Accept, frame))
        self.permit.use()
        blinding = Blinding(self.digests, self.seed)
        state = Opening(channel=channel, blinding=blinding, permit=self.permit)
        return state, _announcement(channel, blinding)


@dataclass(frozen=True, kw_only=True, eq=False)
class Opening:
    """The initiator has announced its size and waits for the partner's."""

    channel: Channel
    blinding: Blinding
    permit: Permit

    def announced(self, frame: bytes, storage: Storage = in_memory) -> Exchanging:
        """Step 2: take the partner's size.

        Raises:
            LinkageError: TamperedError, OtherSessionError, SmallSetError.
            WireError: for anything but a sealed announcement.
        """
        size = _announced(self.channel, frame, self.permit)
        return Exchanging.begin(self.channel, self.blinding, size, storage)


@dataclass(frozen=True, kw_only=True, eq=False)
class Accepted:
    """The responder waits for the initiator's size: the first proof that the initiator is there now."""

    channel: Channel
    digests: Rows
    seed: bytes
    permit: Permit

    def __repr__(self) -> str:
        return f"Accepted(of {self.permit.partner})"

    def announced(self, frame: bytes, storage: Storage = in_memory) -> tuple[Exchanging, bytes]:
        """Step 2 of the responder: take the size, use up the permit, announce the own size.

        An old offer that somebody sends again gets no further than here, and uses up nothing.

        Raises:
            LinkageError: TamperedError, OtherSessionError, SmallSetError.
            WireError: for anything but a sealed announcement.
        """
        size = _announced(self.channel, frame, self.permit)
        self.permit.use()
        blinding = Blinding(self.digests, self.seed)
        state = Exchanging.begin(self.channel, blinding, size, storage)
        return state, _announcement(self.channel, blinding)


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Blocks: own ones sent, own ones that came back, the partner's taken and answered."""

    sent: int = 0
    returned: int = 0
    taken: int = 0


@dataclass(eq=False)
class Exchanging:
    """Steps 3 and 4. To resume, make it anew from what it was made of and its counters."""

    channel: Channel
    blinding: Blinding
    their_size: int
    #: Doubly blinded: own elements in the order sent, the partner's in the order received.
    own: Rows
    theirs: Rows
    counters: Counters

    @classmethod
    def begin(
        cls,
        channel: Channel,
        blinding: Blinding,
        their_size: int,
        storage: Storage = in_memory,
        counters: Counters | None = None,
    ) -> Exchanging:
        """Begin, or go on at `counters` with the arrays that the storage kept."""
        own, theirs = storage("own", blinding.size), storage("theirs", their_size)
        return cls(channel, blinding, their_size, own, theirs, counters or Counters())

    def __repr__(self) -> str:
        return f"Exchanging({self.counters})"

    @property
    def their_blocks(self) -> int:
        """How many blocks the partner will send."""
        return -(-self.their_size // BLOCK)

    @property
    def over(self) -> bool:
        """Whether every block came, went and came back."""
        counters, ours = self.counters, self.blinding.blocks
        return counters.returned == ours and counters.taken == self.their_blocks

    def next_block(self, cores: Cores) -> bytes | None:
        """Step 3: the next block of own elements, or None when all are sent."""
        number = self.counters.sent
        if number == self.blinding.blocks:
            return None
        plain = self.blinding.block(number, cores)
        self.counters = replace(self.counters, sent=number + 1)
        return encode(self.channel.seal(Stream.BLINDED, number, plain))

    def receive(self, frame: bytes, cores: Cores) -> bytes | None:
        """Step 4: take a block. The partner's is answered, an own one that came back is kept.

        Raises:
            LinkageError: TamperedError, OtherSessionError, ReplayedBlockError, MissingBlockError,
                BlockNumberError, BlockSizeError, RepeatedElementError, PointError.
            WireError: for anything but a sealed block.
        """
        sealed = decode_as(Sealed, frame)
        counters = self.counters
        if sealed.stream is Stream.BLINDED:
            check_number(sealed, counters.taken, self.their_blocks)
            rows = rows_of(sealed.number, self.their_size)
            points = opened_points(self.channel, sealed, rows)
            doubled = cores.multiply(points, self.blinding.scalar)
            self.theirs[rows] = doubled[:, :MARK_BYTES]
            self.counters = replace(counters, taken=counters.taken + 1)
            answer = self.channel.seal(Stream.RETURNED, sealed.number, doubled.tobytes())
            return encode(answer)
        if sealed.stream is Stream.RETURNED:
            check_number(sealed, counters.returned, counters.sent)
            rows = self.blinding.rows(sealed.number)
            self.own[rows] = opened_points(self.channel, sealed, rows)[:, :MARK_BYTES]
            self.counters = replace(counters, returned=counters.returned + 1)
            return None
        raise ReplayedBlockError("a second announcement came; the first one counts")

    def advance(
        self, cores: Cores, send: Callable[[bytes], object], receive: Callable[[], bytes]
    ) -> None:
        """Steps 3 and 4 to their end, over a line that keeps the order.

        No more than `WINDOW` own blocks are under way, so that a courier holds little.
        """
        while not self.over:
            while self.counters.sent - self.counters.returned < WINDOW:
                block = self.next_block(cores)
                if block is None:
                    break
                send(block)
            answer = self.receive(receive(), cores)
            if answer is not None:
                send(answer)

    def compare(self) -> Compared:
        """Step 5.

        Raises:
            TruncatedError: if blocks are missing.
            RepeatedElementError: if an element stands twice, in whatever blocks.
            MadeUpError: if padding is common, which nobody else can have.
        """
        if not self.over:
            raise TruncatedError(
                f"the other side ended after {self.counters.taken} of {self.their_blocks} blocks, "
                f"and {self.counters.returned} of {self.blinding.blocks} answers; link again"
            )
        return compare_marks(self.own, self.theirs, self.blinding, self.channel.secret("links"))


def _announcement(channel: Channel, blinding: Blinding) -> bytes:
    plain = encode(Announcement(size=blinding.size, block=BLOCK))
    return encode(channel.seal(Stream.ANNOUNCE, 0, plain))


def _announced(channel: Channel, frame: bytes, permit: Permit) -> int:
    sealed = decode_as(Sealed, frame)
    if (sealed.stream, sealed.number) != (Stream.ANNOUNCE, 0):
        raise MissingBlockError("a block came before the other side's announcement")
    size = decode_as(Announcement, channel.open(sealed)).size
    permit.check_partner(size)
    return size

"""Profiles carried between two linked platforms, seen from one side; no I/O.

1. A signs a fresh key and offers to carry profiles; B answers with one of its own, as in a linkage
   (`channel`). The purpose is bound into the signatures and every key, so that no frame of this opens in
   a set intersection, or the other way round.
2. Each announces how many bytes its batch has.
3. Each sends its batch in blocks of one length, the last filled up with zeros.
4. Each confirms what it has taken: the digest of the partner's batch.

A side's frames are two, its blocks, and the receipt: how many it has sent and taken says where it stands.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final

from crossrec_model.linkage.blocks import check_number
from crossrec_model.linkage.channel import Channel, OfferSecret, accept_offer, make_offer
from crossrec_model.linkage.errors import (
    BlockSizeError,
    HandshakeError,
    MissingBlockError,
    ReceiptError,
    TruncatedError,
    UnknownPlatformError,
)
from crossrec_model.linkage.intersection import Side
from crossrec_model.linkage.messages import (
    BLOCK,
    POINT_BYTES,
    Accept,
    BatchSize,
    Offer,
    Purpose,
    Sealed,
    Stream,
    decode_as,
    encode,
)
from crossrec_model.randomness import SystemRandomness

#: Bytes of every block: as a block of points has, so that the courier's bound is one.
BLOCK_BYTES: Final = BLOCK * POINT_BYTES
#: Frames of a side before its blocks: offer or acceptance, and the announcement.
BEFORE: Final = 2
_SECRET_BYTES: Final = 32


def blocks_of(size: int) -> int:
    """How many blocks carry so many bytes."""
    return -(-size // BLOCK_BYTES)


def offer_profiles(
    side: Side, partner: str, batch: bytes, randomness: SystemRandomness
) -> tuple[Offered, bytes]:
    """Step 1 of the initiator: the next state, and the offer.

    Raises:
        UnknownPlatformError: for a partner that is not on the roster.
        WireError: for a batch that is too long.
    """
    BatchSize(size=len(batch))
    secret = make_offer(
        side.roster,
        side.platform,
        partner,
        Purpose.PROFILES,
        side.key,
        randomness.bytes(_SECRET_BYTES),
    )
    return Offered(secret=secret, batch=batch), encode(secret.offer)


def accept_profiles(
    side: Side, partner: str, frame: bytes, batch: bytes, randomness: SystemRandomness
) -> tuple[Accepted, bytes]:
    """Step 1 of the responder: the next state, and the acceptance.

    Raises:
        LinkageError: HandshakeError or UnknownPlatformError.
        WireError: for anything but an offer, or a batch that is too long.
    """
    BatchSize(size=len(batch))
    offer = decode_as(Offer, frame)
    if offer.initiator != partner:
        raise UnknownPlatformError(f"an offer by {offer.initiator} came where {partner}'s was due")
    if offer.purpose is not Purpose.PROFILES:
        raise HandshakeError(
            f"an offer to link {offer.purpose.name.lower()} came where profiles were due"
        )
    channel, accept = accept_offer(
        side.roster, side.platform, offer, side.key, randomness.bytes(_SECRET_BYTES)
    )
    return Accepted(channel=channel, batch=batch), encode(accept)


@dataclass(frozen=True, kw_only=True, eq=False)
class Offered:
    """The initiator waits for the acceptance."""

    secret: OfferSecret
    batch: bytes = field(repr=False)

    def accepted(self, frame: bytes) -> tuple[Opening, bytes]:
        """Step 2 of the initiator: announce the size.

        Raises:
            HandshakeError: if it is not the partner's acceptance of this offer.
            WireError: for anything but an acceptance.
        """
        channel = self.secret.opened(decode_as(Accept, frame))
        return Opening(channel=channel, batch=self.batch), _announcement(channel, self.batch)


@dataclass(frozen=True, kw_only=True, eq=False)
class Opening:
    """The initiator has announced its size and waits for the partner's."""

    channel: Channel
    batch: bytes = field(repr=False)

    def announced(self, frame: bytes) -> Carrying:
        """Step 2: take the partner's size.

        Raises:
            LinkageError: TamperedError, OtherSessionError, MissingBlockError.
            WireError: for anything but a sealed announcement.
        """
        size = _announced(self.channel, frame)
        return Carrying(channel=self.channel, batch=self.batch, their_size=size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Accepted:
    """The responder waits for the initiator's size: the first proof that the initiator is there now."""

    channel: Channel
    batch: bytes = field(repr=False)

    def announced(self, frame: bytes) -> tuple[Carrying, bytes]:
        """Step 2 of the responder: take the size, announce the own; an old offer gets no further.

        Raises:
            LinkageError: TamperedError, OtherSessionError, MissingBlockError.
            WireError: for anything but a sealed announcement.
        """
        size = _announced(self.channel, frame)
        state = Carrying(channel=self.channel, batch=self.batch, their_size=size)
        return state, _announcement(self.channel, self.batch)


@dataclass(frozen=True, kw_only=True, eq=False)
class Carrying:
    """Steps 3 and 4. `sent` and `taken` count the own and the partner's blocks."""

    channel: Channel
    batch: bytes = field(repr=False)
    their_size: int
    sent: int = 0
    taken: int = 0

    @property
    def blocks(self) -> int:
        """How many blocks the own batch has."""
        return blocks_of(len(self.batch))

    @property
    def their_blocks(self) -> int:
        """How many blocks the partner will send."""
        return blocks_of(self.their_size)

    def next_block(self) -> tuple[Carrying, bytes] | None:
        """Step 3: the next block of the own batch, or None when all are sent."""
        if self.sent >= self.blocks:
            return None
        start = self.sent * BLOCK_BYTES
        plain = self.batch[start : start + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
        sealed = self.channel.seal(Stream.PROFILES, self.sent, plain)
        return replace(self, sent=self.sent + 1), encode(sealed)

    def receive(self, frame: bytes) -> tuple[Carrying, bytes]:
        """Step 3: the bytes in the partner's next block, without what fills the last one up.

        Raises:
            LinkageError: TamperedError, OtherSessionError, ReplayedBlockError, MissingBlockError,
                BlockNumberError, BlockSizeError.
            WireError: for anything but a sealed block.
        """
        sealed = decode_as(Sealed, frame)
        if sealed.stream is not Stream.PROFILES:
            raise MissingBlockError(
                f"a frame of {sealed.stream.name.lower()} came where block {self.taken} was due"
            )
        check_number(sealed, self.taken, self.their_blocks)
        plain = self.channel.open(sealed)
        length = min(BLOCK_BYTES, self.their_size - self.taken * BLOCK_BYTES)
        if len(plain) != BLOCK_BYTES or plain[length:].strip(b"\0"):
            raise BlockSizeError(f"block {sealed.number} is longer or shorter than its place")
        return replace(self, taken=self.taken + 1), plain[:length]

    def receipt(self, theirs: bytes) -> bytes:
        """Step 4: confirm the partner's whole batch.

        Raises:
            TruncatedError: if it is not whole.
        """
        if len(theirs) != self.their_size:
            raise TruncatedError(
                f"the other side ended after {len(theirs)} of {self.their_size} bytes"
            )
        return encode(self.channel.seal(Stream.RECEIPT, 0, sha256(theirs).digest()))

    def confirmed(self, frame: bytes) -> None:
        """Step 4: take the partner's receipt.

        Raises:
            LinkageError: TamperedError, OtherSessionError, MissingBlockError, or ReceiptError if it is of
                another batch.
            WireError: for anything but a sealed receipt.
        """
        sealed = decode_as(Sealed, frame)
        if (sealed.stream, sealed.number) != (Stream.RECEIPT, 0):
            raise MissingBlockError(
                f"a frame of {sealed.stream.name.lower()} came where the receipt was due"
            )
        if not hmac.compare_digest(self.channel.open(sealed), sha256(self.batch).digest()):
            raise ReceiptError("the receipt is of other profiles than were sent; begin anew")


def _announcement(channel: Channel, batch: bytes) -> bytes:
    plain = encode(BatchSize(size=len(batch)))
    return encode(channel.seal(Stream.ANNOUNCE, 0, plain))


def _announced(channel: Channel, frame: bytes) -> int:
    sealed = decode_as(Sealed, frame)
    if (sealed.stream, sealed.number) != (Stream.ANNOUNCE, 0):
        raise MissingBlockError("a block came before the other side's announcement")
    return decode_as(BatchSize, channel.open(sealed)).size
